"""Names and places: what is public is found, and no two things share a name."""

import importlib
import inspect
import pkgutil

import pytest

import nedm_ppl

MODULES = sorted(info.name for info in pkgutil.walk_packages(nedm_ppl.__path__, "nedm_ppl."))
PUBLIC = [name for name in MODULES if "._" not in name]


@pytest.mark.central
def test_no_function_has_the_name_of_a_public_file_or_folder():
    """`inference.thermodynamics` would be the folder or the function, whichever was imported last."""
    places = {name.rsplit(".", 1)[1] for name in PUBLIC}
    assert {"inference", "schedules", "posterior"} <= places
    functions = {
        name: module
        for module in PUBLIC
        for name, value in vars(importlib.import_module(module)).items()
        if inspect.isroutine(value) and not name.startswith("_") and (value.__module__ or "").startswith("nedm_ppl.")
    }
    assert {"multiply", "fit", "log_likelihood"} <= set(functions)
    assert not places & set(functions), {name: functions[name] for name in places & set(functions)}


@pytest.mark.central
@pytest.mark.parametrize("module", PUBLIC)
def test_what_a_folder_exports_is_there(module):
    """Every name in `__all__` exists."""
    found = importlib.import_module(module)
    assert all(hasattr(found, name) for name in getattr(found, "__all__", ()))
