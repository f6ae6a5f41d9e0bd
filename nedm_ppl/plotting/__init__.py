r"""The paper's figures and the curves of training, from arrays.

Every function takes arrays and Matplotlib axes, draws, and returns the axes; none draws random numbers, computes with
a model, shows or saves. Where axes are left out a new figure of a readable size is made. A trajectory has time on the
axis after its first, ascending from data: shape (N, T + 1, *event), so that `trajectory[:, t]` is $x_t$ whatever
direction the chain ran in.

One color is the forward chain's, one the model's, and black the truth; all from the set of Okabe and Ito (2008), which
readers with any color vision tell apart. Training objectives come in bits, as their argument names say.
"""

from nedm_ppl.plotting._curves import bound_by_step as bound_by_step
from nedm_ppl.plotting._curves import loss_curve as loss_curve
from nedm_ppl.plotting._curves import thermodynamics_figure as thermodynamics_figure
from nedm_ppl.plotting._images import digits_figure as digits_figure
from nedm_ppl.plotting._images import image_grid as image_grid
from nedm_ppl.plotting._images import restoration_figure as restoration_figure
from nedm_ppl.plotting._images import reverse_chain_figure as reverse_chain_figure
from nedm_ppl.plotting._pairs import pairs_figure as pairs_figure
from nedm_ppl.plotting._paper import drift_points as drift_points
from nedm_ppl.plotting._paper import heartbeat_figure as heartbeat_figure
from nedm_ppl.plotting._paper import plane_figure as plane_figure
from nedm_ppl.plotting._paper import swiss_roll_figure as swiss_roll_figure
from nedm_ppl.plotting._pictures import denoising_figure as denoising_figure
from nedm_ppl.plotting._pictures import neighbors_figure as neighbors_figure
from nedm_ppl.plotting._pictures import network_figure as network_figure
from nedm_ppl.plotting._pictures import spectrum_figure as spectrum_figure
from nedm_ppl.plotting._shared import FORWARD as FORWARD
from nedm_ppl.plotting._shared import NULL as NULL
from nedm_ppl.plotting._shared import REVERSE as REVERSE
from nedm_ppl.plotting._shared import TRUTH as TRUTH
