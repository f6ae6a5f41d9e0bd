"""What the documentation says runs: its tutorial as it is pasted, and the examples of docstrings."""

import doctest
import importlib
import re
import runpy
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from test_layout import PACKAGE, PUBLIC, SOURCES

DOCS = Path(__file__).parent.parent / "docs"
# All that the test changes: sizes.
SMALLER = {
    "index.md": {"20_000": "300", "2_000": "50", "num_updates=3000": "num_updates=5"},
    "tutorial.md": {
        "num_updates=2000": "num_updates=20",
        "key(2), 1000)": "key(2), 50)",
        "holdout[:200]": "holdout[:4]",
        "num_trajectories=64": "num_trajectories=8",
        "num_particles=500": "num_particles=50",
    },
}

WITH_EXAMPLES = [
    ".".join(("nedm_ppl", *path.relative_to(PACKAGE).with_suffix("").parts))
    for path in SOURCES
    if ">>>" in path.read_text()
]
# What these modules do is tested elsewhere; their examples would take a thirtieth of the suite.
SLOW = {
    f"nedm_ppl.{name}"
    for name in (
        "inference.bound._bound",
        "inference.composition._particle_metropolis",
        "inference.composition._path_gibbs",
        "restoration",
        "sklearn",
    )
}
MOST_USED = {
    "GaussianDiffusion",
    "BernoulliDiffusion",
    "Diffusion",
    "DataPrediction",
    "NoisePrediction",
    "VelocityPrediction",
    "LevelPrediction",
    "BitPrediction",
    "FlipRate",
    "Conditional",
    "respace",
    "log_snr_linear",
    "erasing",
    "ResidualMLP",
    "fit",
    "evaluate",
    "bound_terms",
    "TrajectoryBound",
    "marginal_log_likelihood",
    "sandwich",
    "compare",
    "multiply",
    "ParticlePosterior",
    "NormalObservation",
    "Known",
    "LinearObservation",
    "Function",
    "PathGibbs",
    "ParticleMetropolis",
    "Estimate",
    "entropy_bounds",
    "swiss_roll",
    "restore",
    "Hidden",
    "Noise",
}


def pasted(page, smaller):
    """The blocks of a page, one after the other, with nothing changed but sizes, each of which stands there once."""
    script = "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL))
    for size, less in smaller.items():
        assert script.count(size) == 1, size
        script = script.replace(size, less)
    return script


@pytest.mark.filterwarnings("ignore::nedm_ppl.inference.DoubtfulPosterior")  # fifty particles
@pytest.mark.long  # the blocks of the README run by default
@pytest.mark.parametrize("page", ["index.md", "tutorial.md"])
def test_a_page_runs_as_it_is_pasted(page, tmp_path, monkeypatch, capsys):
    (tmp_path / "page.py").write_text(pasted(DOCS / page, SMALLER[page]))
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path("page.py")
    assert "±" in capsys.readouterr().out and names["samples"].ndim == 2
    plt.close("all")


@pytest.mark.parametrize(
    "module", [pytest.param(name, marks=pytest.mark.long if name in SLOW else ()) for name in WITH_EXAMPLES]
)
def test_examples_in_docstrings_run(module):
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted and not result.failed


@pytest.mark.central
def test_what_is_used_most_has_an_example():
    named = {name: value for module in PUBLIC for name, value in vars(importlib.import_module(module)).items()}
    shown = {name for name, value in named.items() if ">>>" in (getattr(value, "__doc__", None) or "")}
    assert len(MOST_USED) >= 30 and shown >= MOST_USED, MOST_USED - shown
