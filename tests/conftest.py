"""What the whole suite shares: its failure rate, its statistics, the float64 context, and what was compiled before.

Every statistical test runs under a fixed key. Were the keys redrawn, the chance that a right package fails any of at most
`NUM_COMPARISONS` comparisons (of numbers, not of arrays) is at most `FAILURE_RATE` (Bonferroni). Four standard errors are
that level for a normal mean.
"""

import gc
import hashlib
import os
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

# Tests compile much and compute little: spend less on optimizing what is compiled. Set before JAX starts.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
if version("jaxlib").startswith("0.10."):  # halves the time to compile; jaxlib 0.12 stops at the name of this flag
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"


def compiled() -> Path:
    """A folder outside the clone for what is compiled: programs for this processor by this JAX, since others cannot run them."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    processor = [line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))]
    name = hashlib.sha256(repr((sorted(set(processor)), os.environ["XLA_FLAGS"])).encode()).hexdigest()[:16]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "nedm_ppl" / f"compiled-{version('jaxlib')}-{name}"


# Workers, and the processes that tests start, share what each compiles; the next run finds it. To run without: an empty string.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(compiled()))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault(
    "TF_CPP_MIN_LOG_LEVEL", "3"
)  # it takes its own tuning flags for a processor's, and says so at every load
gc.set_threshold(100_000, 50, 100)  # tracing makes many small objects, and few cycles

import jax
import matplotlib
import numpy as np
import pytest
from hypothesis import settings
from scipy import stats

matplotlib.use("Agg")

settings.register_profile("exact", max_examples=8, deadline=None, derandomize=True)
settings.load_profile("exact")

FAILURE_RATE = 0.08
NUM_COMPARISONS = 1200
SIGNIFICANCE = FAILURE_RATE / NUM_COMPARISONS
STANDARD_ERRORS = 4.0
assert 2.0 * stats.norm.sf(STANDARD_ERRORS) <= SIGNIFICANCE


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Of a test marked `cases(n)`, n cases spread over all run by default; the others are marked long. What makes JAX forget
    all that it has compiled runs last."""
    tests = defaultdict(list)
    for item in items:
        if item.get_closest_marker("cases"):
            tests[item.parent, item.originalname].append(item)
    for cases in tests.values():
        number = cases[0].get_closest_marker("cases").args[0]
        stride = max(1, len(cases) // number)
        kept = {
            i * len(cases) // number + i % stride for i in range(number)
        }  # i % stride: not always the same last parameter
        for i, item in enumerate(cases):
            if i not in kept:
                item.add_marker(pytest.mark.long)
    items.sort(key=lambda item: "double" in item.fixturenames)


@pytest.fixture
def x64():
    """float64 for one test; everything else runs in float32, the default."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def double():
    """float64 after float32: JAX keeps diffrax's constants in the precision they were first used in, and must forget it."""
    jax.clear_caches()
    with jax.enable_x64(True):
        yield
    jax.clear_caches()


@pytest.fixture
def significance() -> float:
    """The p-value below which a test of a sampling law fails."""
    return SIGNIFICANCE


def standard_error(draws) -> np.ndarray:
    """Standard error of the mean over the first axis."""
    draws = np.asarray(draws, np.float64)
    return draws.std(axis=0, ddof=1) / np.sqrt(draws.shape[0])


def assert_mean(draws, truth) -> None:
    """The mean over the first axis is `truth`, a known number, within four standard errors; and the error is not void."""
    draws = np.asarray(draws, np.float64)
    assert np.all(np.isfinite(draws))
    error, allowed = np.abs(draws.mean(axis=0) - truth), STANDARD_ERRORS * standard_error(draws)
    assert np.all(error <= allowed + 1e-6 * (1.0 + np.abs(truth))), f"off by {error}, allowed {allowed}"


def assert_same_mean(first, second) -> None:
    """Two estimates have one expectation, within four standard errors of their difference."""
    difference = np.mean(np.asarray(first, np.float64), axis=0) - np.mean(np.asarray(second, np.float64), axis=0)
    allowed = STANDARD_ERRORS * np.hypot(standard_error(first), standard_error(second))
    assert np.all(np.abs(difference) <= allowed), f"off by {difference}, allowed {allowed}"


def chi_square(counts, law) -> float:
    """The p-value of counts against a law over their cells."""
    law = np.asarray(law, np.float64)
    return stats.chisquare(counts, law / law.sum() * np.sum(counts)).pvalue
