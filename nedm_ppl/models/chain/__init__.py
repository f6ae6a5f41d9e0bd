"""The forward chain: schedules, the two processes, and a whole trajectory as one distribution (paper, sections 2.1 and 2.2)."""

from nedm_ppl.models.chain._bernoulli import BernoulliDiffusion as BernoulliDiffusion
from nedm_ppl.models.chain._chain import Kernel as Kernel
from nedm_ppl.models.chain._chain import MarkovChain as MarkovChain
from nedm_ppl.models.chain._gaussian import GaussianDiffusion as GaussianDiffusion
from nedm_ppl.models.chain._process import DiffusionProcess as DiffusionProcess
