"""What the commands print, as tables."""

import math

from rich.table import Table

from nedm_ppl.files import printable

__all__ = ["likelihood_table", "metrics_table", "renamed", "restoration_table"]


def likelihood_table(summary: dict) -> Table:
    """Numbers of `nedm loglik`, as `LogLikelihood.summary` has them."""
    table = Table("quantity", "nats", "bits", title="log p(x_0), importance sampling")
    mean, se = summary["mean_nats"], summary["se_nats"]
    bits = f"{summary['mean_bits']:.4f} ± {summary['se_bits']:.4f}"
    table.add_row("mean over the data", f"[bold]{mean:.4f} ± {se:.4f}[/bold]", f"[bold]{bits}[/bold]")
    per_nat = 1.0 / math.log(2.0)
    for name, key in (("  of which Monte Carlo error", "monte_carlo_se_nats"), ("  bias, about", "bias_nats")):
        table.add_row(name, f"{summary[key]:.4f}", f"{per_nat * summary[key]:.4f}")
    table.add_section()
    table.add_row("data", f"{summary['num_data']:,}", "")
    table.add_row("trajectories per datum, at most", f"{summary['num_trajectories']:,}", "")
    table.add_row("effective sample size, least", f"{summary['ess_min']:.1f}", "")
    table.add_row("Pareto k-hat, largest", f"{summary['k_hat_max']:.2f}", "")
    table.add_row("data whose weights spread too far to trust", f"{summary['num_flagged']:,}", "")
    table.add_row("data above the target standard error", f"{summary['num_above_target']:,}", "")
    table.caption = str(summary["estimate"])
    return table


def restoration_table(metrics: dict) -> Table:
    """Numbers of `nedm inpaint` and `nedm denoise`, as `restoration.save` writes them."""
    what = (
        f"mask {printable(metrics['mask'])}"
        if metrics["task"] == "inpaint"
        else f"noise of scale {metrics['scale']:.3g}"
    )
    table = Table("quantity", "value", title=f"{metrics['task']}, {what}, {metrics['num_data']} data")
    table.add_row("RMSE of the posterior mean, units of the data", f"[bold]{metrics['rmse']:.4f}[/bold]")
    table.add_row("RMSE of one posterior draw", f"{metrics['rmse_posterior_draw']:.4f}")
    table.add_row("RMSE of one draw of the paper's method", f"{metrics['rmse_paper_draw']:.4f}")
    table.add_row("truths inside their central 90 %", f"{metrics['coverage_90']:.1%}")
    table.add_row("log evidence, mean, nats", f"{metrics['log_evidence_nats']:.3f}")
    table.add_section()
    sizes = f"{metrics['num_steps']}, {metrics['num_repeats']} x {metrics['num_particles']}"
    table.add_row("steps, filters x particles per datum", sizes)
    table.add_row("effective sample size, least on the way", f"{metrics['ess_min']:.1f}")
    table.add_row("ancestors at t = T, least", f"{metrics['num_ancestors_min']}")
    table.add_row("posteriors with a reason to doubt them", f"{metrics['num_doubtful']} of {metrics['num_data']}")
    return table


def renamed(metrics: dict) -> dict:
    """Metrics by the names of today: those of runs before 2026-11-28 had two others."""
    old = {"train_steps": "num_updates", "num_particles": "num_trajectories"}
    return {
        old.get(name, name): renamed(value) if name == "log_likelihood" else value for name, value in metrics.items()
    }


def metrics_table(metrics: dict, published: str = "") -> Table:
    """Numbers of an experiment, as metrics.json has them, beside the paper's own."""

    def text(entry: dict) -> str:
        if entry["mean"] is None:
            return "unknown"
        return f"{entry['mean']:.4f}" + ("" if not entry.get("se") else f" ± {entry['se']:.4f}")

    name = ", ".join(filter(None, (metrics["experiment"], metrics.get("density"))))
    title = f"{name}, T = {metrics['num_steps']}, seed {metrics['seed']}"
    table = Table("quantity", metrics["unit"], title=title)
    table.add_row("bound K on the holdout (higher is better)", f"[bold]{text(metrics['bound'])}[/bold]")
    likelihood = metrics.get("log_likelihood")
    if likelihood is not None:
        data = f"{likelihood['num_data']:,} data x {likelihood['num_trajectories']} trajectories"
        table.add_row(f"log likelihood, {data}", text(likelihood))
        k_hat = likelihood["k_hat_max"]
        if "above_bound" in likelihood:  # not in folders of earlier versions
            table.add_row("  bound K on the same data", text(likelihood["bound"]))
            table.add_row("  log likelihood above K, datum by datum", text(likelihood["above_bound"]))
        table.add_row("  its largest Pareto k-hat", "unknown" if k_hat is None else f"{k_hat:.2f}")
    table.add_row("null: log likelihood under the noise law", text(metrics["null"]))
    table.add_row("K above the null", text(metrics["bound_above_null"]))
    table.add_row("truth: exact log likelihood", text(metrics["truth"]))
    if published:
        table.add_row("the paper's K", published)
    if "excess" in metrics:
        table.add_row("truth above the log likelihood, datum by datum", text(metrics["excess"]))
    if "bits_per_dim_discrete" in metrics:
        table.add_row("discrete bits per pixel (lower is better)", text(metrics["bits_per_dim_discrete"]))
    table.add_section()
    for name, entry in metrics["terms"].items():
        table.add_row(f"term of K: {name.replace('_', ' ')}", text(entry))
    if (found := metrics.get("classification")) is not None:
        table.add_section()
        table.add_row("accuracy of Bayes' rule on the holdout", text(found["accuracy"]))
        table.add_row("  its calibration error", f"{found['bayes']['calibration_error']:.4f}")
        tempered = found["tempered"]
        table.add_row(f"  at temperature {tempered['temperature']:.3f}", f"{tempered['calibration_error']:.4f}")
    table.add_section()
    table.add_row("holdout data", f"{metrics['holdout_size']:,}")
    table.add_row("training", f"{metrics['num_updates']:,} updates, {metrics['train_seconds']:.0f} s")
    return table
