"""Pictures that every experiment draws."""

from pathlib import Path

import numpy as np

from nedm_ppl.experiments._spec import Result
from nedm_ppl.files import write_figure

__all__ = ["thermodynamics_figure", "training_figures"]


def training_figures(
    result: Result, out: Path, *, num_coordinates: int = 1, per: str = "datum", bits_per_unit: float = 1.0
) -> None:
    """The loss curve with the null and truth lines, and where along the chain the bound loses its bits.

    Args:
        result: The run.
        out: Its folder.
        num_coordinates: What a datum's bits are divided by.
        per: What they are then per.
        bits_per_unit: Bits, so divided, in the unit of the metrics.
    """
    from nedm_ppl import plotting

    bits = 1.0 / (np.log(2.0) * num_coordinates)
    history, metrics = result.fitted.history, result.metrics
    validation = None
    if history["validation_step"].size:
        se = np.nan_to_num(history["validation_se"])  # of one datum there is none to draw
        validation = (history["validation_step"], history["validation_bound"] * bits, se * bits)
    ax = plotting.loss_curve(
        history["step"],
        history["bound"] * bits,
        null_bits=_scaled(metrics["null"]["mean"], bits_per_unit),
        truth_bits=_scaled(metrics["truth"]["mean"], bits_per_unit),
        validation=validation,
        per=per,
    )
    write_figure(ax, out / "loss.png")
    write_figure(plotting.bound_by_step(result.terms.times, result.terms.divergences), out / "bound_by_step.png")


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else factor * value


def thermodynamics_figure(result: Result, out: Path, *, nats_per_unit: float, units: str) -> None:
    """Loss per step, entropies of the reverse steps, and work."""
    from nedm_ppl import plotting

    log_snr, entropy, losses, work = result.thermodynamics
    axes = plotting.thermodynamics_figure(
        log_snr,
        (entropy.lower, entropy.upper),
        losses,
        (work.work, work.free_energy),
        nats_per_unit=nats_per_unit,
        units=units,
    )
    write_figure(axes, out / "thermodynamics.png")
