"""The package declares what it imports, and the two lists of pins are what they say they are."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# xarray reads and writes netCDF through these; it asks for neither.
BEHIND_XARRAY = {"h5netcdf", "h5py"}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared() -> dict[str, str]:
    """Distribution -> lower bound, as pyproject.toml has them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    parsed = [re.fullmatch(r"([\w.-]+)>=([\d.]+)", entry) for entry in project["dependencies"]]
    assert all(parsed), "every dependency has a lower bound and nothing else"
    return {canonical(found[1]): found[2] for found in parsed if found}


def imported(folder: Path) -> set[str]:
    """Top-level names of every third-party import in a folder, those inside functions too."""
    names = set()
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(str(node.module).partition(".")[0])
    return names - set(sys.stdlib_module_names) - {"nedm_ppl"}


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text().split()
    return {canonical(pin): version for pin, _, version in (line.partition("==") for line in lines)}


@pytest.mark.central
def test_every_import_is_declared_and_every_declaration_is_needed():
    distributions = packages_distributions()
    used = {canonical(name) for module in imported(ROOT / "nedm_ppl") for name in distributions[module]}
    assert used | BEHIND_XARRAY == set(declared())


def test_an_import_inside_a_function_is_seen(tmp_path):
    (tmp_path / "lazy.py").write_text("def f():\n    import json, a.b\n    from c.d import e\n    from . import g\n")
    assert imported(tmp_path) == {"a", "c"}


def test_the_lowest_pins_are_the_lower_bounds_and_the_newest_are_not_below_them():
    bounds, lowest, newest = declared(), pins("constraints-lowest.txt"), pins("constraints-newest.txt")
    for name, bound in bounds.items():
        parts = [int(part) for part in bound.split(".")]
        assert [int(part) for part in lowest[name].split(".")][: len(parts)] == parts, name
        assert [int(part) for part in newest[name].split(".")] >= parts, name
