"""Every notebook runs, in small, and is committed with the outputs of a full run."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FIRST = "hierarchy"  # runs in CI, with the newest versions
NOTEBOOKS = sorted((Path(__file__).parent.parent / "examples" / "notebooks").glob("*.ipynb"))


@pytest.mark.central
def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_committed_with_outputs_and_small(path):
    cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any(cell.outputs for cell in cells)
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)
    assert path.stat().st_size < 500_000


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=[pytest.mark.long] + [pytest.mark.notebook] * (path.stem == FIRST))
        for path in NOTEBOOKS
    ],
    ids=lambda path: path.stem,
)
def test_notebook_runs(path, monkeypatch):
    monkeypatch.setenv("NEDM_SMALL", "1")  # read in the first cell
    resources = {"metadata": {"path": str(path.parent)}}
    ran = NotebookClient(nbformat.read(path, 4), timeout=300, kernel_name="python3", resources=resources).execute()
    assert not any(output.output_type == "error" for cell in ran.cells for output in cell.get("outputs", ()))
