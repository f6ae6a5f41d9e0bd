"""Names and places: what is public is found, and no two things share a name."""

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

import nedm_ppl
import nedm_ppl.inference

MODULES = sorted(info.name for info in pkgutil.walk_packages(nedm_ppl.__path__, "nedm_ppl."))
PACKAGE = Path(nedm_ppl.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
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
    assert {"multiply", "fit", "marginal_log_likelihood"} <= set(functions)
    assert not places & set(functions), {name: functions[name] for name in places & set(functions)}


@pytest.mark.central
@pytest.mark.parametrize("module", PUBLIC)
def test_what_a_folder_exports_is_there(module):
    """Every name in `__all__` exists."""
    found = importlib.import_module(module)
    assert all(hasattr(found, name) for name in getattr(found, "__all__", ()))


BLOCKS = {
    "inference.bound": "divergence unsampled_trajectories",
    "inference.likelihood": "k_threshold pareto_k spread_threshold trajectory_log_weight upper_spread",
    "inference.posterior": "Particles conditional_filter conditional_importance multinomial particle_filter systematic",
    "laws": "LinearGaussian PointNormal",
}


def test_building_blocks_are_public_in_their_folder_alone():
    for module, names in BLOCKS.items():
        for name in names.split():
            assert hasattr(importlib.import_module(f"nedm_ppl.{module}"), name), name
            assert not hasattr(nedm_ppl.inference, name), name


LONG_FUNCTIONS = {  # of more than 40 lines of code, and why each stays whole
    "fit": "its 24 arguments, and the loop that reads as a run goes",
    "filtered": "the algorithm, whose parts close over its arguments",
    "conditional_filter": "the algorithm, whose parts close over its arguments",
    "run": "the arguments of an experiment, and the order in which its outputs are written",
    "marginal_log_likelihood": "its arguments and their checks, then four calls",
    "compare": "a refusal for everything that would make two numbers incomparable",
    "_equation": "one case for every primitive that is understood",
    "_metrics": "one dictionary, as it is written",
    "loglik": "the options of a command",
    "sample": "the options of a command",
    "train": "the options of a command",
    "loss_curve": "one figure",
}
LONG_FILES = {  # of more than 300 lines, and why one idea fills them
    "models/_units.py": "the map, a class for every kind of data, and laws in it",
    "models/_default.py": "what data look like, and what is chosen for it",
    "laws/_low_rank.py": "one law, and what is closed between Gaussians",
    "models/reverse/_reverse.py": "the parameterizations of real data, a class each",
    "models/_saving.py": "one format, its writer, its reader and its sentences",
    "models/_diffusion.py": "the model, whose docstrings are the reference",
    "models/_flow.py": "the field, its solver and the law they make",
    "inference/posterior/_multiplier.py": "the multipliers, one class each",
    "inference/posterior/_particle_posterior.py": "one object, its numbers and its report",
    "inference/posterior/_downstream.py": "one program's sites, each by its kind",
    "inference/likelihood/_likelihood.py": "the estimate, its numbers and its conversions",
    "inference/program/_structure.py": "one case for every primitive",
    "inference/training/_fit.py": "training, and what is asked of its arguments",
    "inference/bound/_bound.py": "the bound, its terms and the objective",
    "models/chain/schedules.py": "a function for every schedule, each with its example",
    "restoration.py": "what is hidden or noisy, how it is restored, and what is written of it",
}


def code_lines(source, node) -> int:
    """Lines of a function without blanks, comments and docstrings."""
    lines, left_out = source.splitlines(), set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(inner) is not None:
            left_out |= set(range(inner.body[0].lineno, inner.body[0].end_lineno + 1))
    kept = (lines[i - 1].strip() for i in range(node.lineno, node.end_lineno + 1) if i not in left_out)
    return sum(bool(line) and not line.startswith("#") for line in kept)


def test_long_functions_and_files_are_named_with_a_reason():
    functions, files = {}, set()
    for path in SOURCES:
        source = path.read_text()
        if len(source.splitlines()) > 300:
            files.add(str(path.relative_to(PACKAGE)))
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef) and (length := code_lines(source, node)) > 40:
                functions[node.name] = length
    assert set(functions) == set(LONG_FUNCTIONS), set(functions) ^ set(LONG_FUNCTIONS)
    assert max(functions.values()) <= 60, functions
    assert files == set(LONG_FILES), files ^ set(LONG_FILES)
