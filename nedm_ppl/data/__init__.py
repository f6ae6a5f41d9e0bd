"""The experiments' data, with the truth beside them where it is known."""

from nedm_ppl.data.digits import Digits as Digits
from nedm_ppl.data.digits import digits as digits
from nedm_ppl.data.heartbeat import HEARTBEAT_LOG_PROB as HEARTBEAT_LOG_PROB
from nedm_ppl.data.heartbeat import heartbeat as heartbeat
from nedm_ppl.data.swiss_roll import swiss_roll as swiss_roll
from nedm_ppl.data.swiss_roll import swiss_roll_log_density as swiss_roll_log_density
