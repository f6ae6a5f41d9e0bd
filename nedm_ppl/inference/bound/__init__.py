"""The bound K, its terms, and its value over a data set (paper, section 2.3)."""

from nedm_ppl.inference.bound._bound import BoundTerms as BoundTerms
from nedm_ppl.inference.bound._bound import TrajectoryBound as TrajectoryBound
from nedm_ppl.inference.bound._bound import bound_terms as bound_terms
from nedm_ppl.inference.bound._bound import trajectory_terms as trajectory_terms
from nedm_ppl.inference.bound._bound import unsampled_trajectories as unsampled_trajectories
from nedm_ppl.inference.bound._divergence import divergence as divergence
from nedm_ppl.inference.bound._evaluation import evaluate as evaluate
