"""Every example runs, in small."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
SMALL = {"swiss_roll": (5, 300), "heartbeat": (5, 8), "digits": (4, 5)}


def test_every_example_is_run():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(SMALL)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "heartbeat" else pytest.mark.long) for name in SMALL]
)
def test_example_runs_and_ends_with_its_number(name, capsys):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    result = module.main(*SMALL[name])
    assert np.isfinite(result.mean) and result.se > 0
    assert str(result) in capsys.readouterr().out
