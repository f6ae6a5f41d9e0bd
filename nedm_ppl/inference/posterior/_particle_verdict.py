r"""What speaks against a posterior by particles: reasons to doubt its numbers, and what their absence does not promise.

The standard error of an estimate is made of what the filters saw. A filter that misses a mode or a tail of the posterior does not
know what it missed, and its error is too small. Three things show it more often than not: repeats that disagree by more than
particles of one good filter can; a step at which next to all weight lay on a few particles; a tail of the last weights so heavy
that their mean has no error (`pareto`). None of them being there is no proof: what no particle of any repeat came near leaves no
trace.
"""

import numpy as np

from nedm_ppl.inference.likelihood._pareto import RELIABLE, pareto_k
from nedm_ppl.inference.posterior._particles import Particles
from nedm_ppl.numbers import relative_weights

__all__ = ["DoubtfulPosterior", "doubts"]

DISAGREEING = 0.5  # relative standard deviation of the repeats' estimates of Z
FEW = 5.0  # effective particles at the worst step, of at least ENOUGH
ENOUGH = 20
LAST_SHARE = 0.01  # effective share of the last weights
TAIL_SHARE = 0.1  # below which their tail is looked at


class DoubtfulPosterior(UserWarning):
    """A posterior by particles whose numbers are not to be trusted; the message says why."""


def doubts(particles: Particles) -> tuple[str, ...]:
    """Reasons to doubt the results of several filters of one posterior, worst first; none where nothing speaks against them.

    Args:
        particles: What the filters left, a leading axis of repeats on everything.
    """
    found = []
    num_repeats, num = np.shape(particles.log_weights)
    logs = np.asarray(particles.log_evidence, np.float64)
    if num_repeats > 1 and relative_weights(logs).std(ddof=1) > DISAGREEING:
        found.append(
            f"the repeats disagree about the evidence, by {np.ptp(logs):.1f} nats: the posterior is seen by some of them alone"
        )
    ess = np.asarray(particles.ess, np.float64)
    worst = np.unravel_index(int(np.argmin(ess)), ess.shape)
    last = float(ess[:, 0].min())
    if num >= ENOUGH and ess[worst] < FEW:
        found.append(
            f"all but {float(ess[worst]):.1f} of {num} particles were lost at t = {int(worst[1])} of one repeat"
        )
    elif last < LAST_SHARE * num:
        found.append(f"the last weights of one repeat are those of {last:.1f} particles of {num}")
    k = float(np.max(pareto_k(np.asarray(particles.log_weights, np.float64).T))) if num >= ENOUGH else -np.inf
    if k > RELIABLE and last < TAIL_SHARE * num:
        found.append(f"the last weights have a heavy tail, k-hat {k:.2f}: a mean of them has no error")
    ancestors = np.asarray(particles.num_ancestors)[:, 0]
    if len(ancestors) and ancestors.max() == 1 < num:
        found.append(
            "the particles of every run descend from one particle at t = T: the filter has forgotten its start"
        )
    return tuple(found)
