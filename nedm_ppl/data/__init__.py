"""The experiments' data, with the truth beside them where it is known."""

from nedm_ppl.data._archives import LabeledImages as LabeledImages
from nedm_ppl.data._archives import cifar10 as cifar10
from nedm_ppl.data._archives import fashion_mnist as fashion_mnist
from nedm_ppl.data._archives import mnist as mnist
from nedm_ppl.data._dead_leaves import dead_leaves as dead_leaves
from nedm_ppl.data._dead_leaves import leaf_radii as leaf_radii
from nedm_ppl.data._dead_leaves import same_leaf_probability as same_leaf_probability
from nedm_ppl.data._digits import Digits as Digits
from nedm_ppl.data._digits import digits as digits
from nedm_ppl.data._gray_code import gray_code_entropy as gray_code_entropy
from nedm_ppl.data._gray_code import gray_code_log_prob as gray_code_log_prob
from nedm_ppl.data._gray_code import gray_decode as gray_decode
from nedm_ppl.data._gray_code import gray_encode as gray_encode
from nedm_ppl.data._gray_code import gray_word_log_prob as gray_word_log_prob
from nedm_ppl.data._gray_code import int_scale as int_scale
from nedm_ppl.data._heartbeat import HEARTBEAT_LOG_PROB as HEARTBEAT_LOG_PROB
from nedm_ppl.data._heartbeat import heartbeat as heartbeat
from nedm_ppl.data._plane import PLANE_DENSITIES as PLANE_DENSITIES
from nedm_ppl.data._plane import plane as plane
from nedm_ppl.data._plane import plane_entropy as plane_entropy
from nedm_ppl.data._plane import plane_log_density as plane_log_density
from nedm_ppl.data._plane import plane_moments as plane_moments
from nedm_ppl.data._swiss_roll import swiss_roll as swiss_roll
from nedm_ppl.data._swiss_roll import swiss_roll_log_density as swiss_roll_log_density
