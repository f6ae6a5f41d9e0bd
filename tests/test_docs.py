"""What the documentation says runs: its tutorial as it is pasted, and the examples of docstrings."""

import doctest
import importlib
import re
import runpy
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from test_layout import MODULES

DOCS = Path(__file__).parent.parent / "docs"
# All that the test changes: sizes.
SMALLER = {
    "index.md": {"20_000": "300", "2_000": "50", "num_updates=3000": "num_updates=5"},
    "tutorial.md": {
        "num_updates=2000": "num_updates=20",
        "(1000,)": "(50,)",
        "x_holdout[:200]": "x_holdout[:4]",
        "num_trajectories=64": "num_trajectories=8",
        "num_particles=500": "num_particles=50",
    },
}


def pasted(page, smaller):
    """The blocks of a page, one after the other, with nothing changed but sizes, each of which stands there once."""
    script = "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL))
    for size, less in smaller.items():
        assert script.count(size) == 1, size
        script = script.replace(size, less)
    return script


@pytest.mark.filterwarnings("ignore::nedm_ppl.inference.DoubtfulPosterior")  # fifty particles
@pytest.mark.parametrize("page", [pytest.param("index.md", marks=pytest.mark.long), "tutorial.md"])
def test_a_page_runs_as_it_is_pasted(page, tmp_path, monkeypatch, capsys):
    (tmp_path / "page.py").write_text(pasted(DOCS / page, SMALLER[page]))
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path("page.py")
    assert "±" in capsys.readouterr().out and names["samples"].ndim == 2
    plt.close("all")


@pytest.mark.central
def test_examples_in_docstrings_run():
    results = [doctest.testmod(importlib.import_module(module)) for module in MODULES]
    assert sum(result.attempted for result in results) >= 2
    assert not any(result.failed for result in results)
