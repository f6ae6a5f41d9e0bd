"""Numbers that carry their error, and means of weights. They know no other part."""

from nedm_ppl.numbers._estimate import Estimate as Estimate
from nedm_ppl.numbers._weights import effective_sample_size as effective_sample_size
from nedm_ppl.numbers._weights import log_mean_exp as log_mean_exp
from nedm_ppl.numbers._weights import relative_weights as relative_weights
