"""Log likelihoods by importance sampling over trajectories, bounds from both sides, comparison, classification."""

from nedm_ppl.inference.likelihood._classification import Classification as Classification
from nedm_ppl.inference.likelihood._classification import calibration_error as calibration_error
from nedm_ppl.inference.likelihood._classification import classify as classify
from nedm_ppl.inference.likelihood._classification import fit_temperature as fit_temperature
from nedm_ppl.inference.likelihood._comparison import Compared as Compared
from nedm_ppl.inference.likelihood._comparison import compare as compare
from nedm_ppl.inference.likelihood._likelihood import LogLikelihood as LogLikelihood
from nedm_ppl.inference.likelihood._likelihood import TargetNotReachedWarning as TargetNotReachedWarning
from nedm_ppl.inference.likelihood._likelihood import marginal_log_likelihood as marginal_log_likelihood
from nedm_ppl.inference.likelihood._pareto import k_threshold as k_threshold
from nedm_ppl.inference.likelihood._pareto import pareto_k as pareto_k
from nedm_ppl.inference.likelihood._pareto import spread_threshold as spread_threshold
from nedm_ppl.inference.likelihood._pareto import upper_spread as upper_spread
from nedm_ppl.inference.likelihood._parzen import Parzen as Parzen
from nedm_ppl.inference.likelihood._parzen import parzen_log_likelihood as parzen_log_likelihood
from nedm_ppl.inference.likelihood._sandwich import Sandwich as Sandwich
from nedm_ppl.inference.likelihood._sandwich import sandwich as sandwich
from nedm_ppl.inference.likelihood._weights import trajectory_log_weight as trajectory_log_weight
