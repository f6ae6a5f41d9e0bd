"""What checks annotations as the package runs, in `make typed`: beartype, with what mypy and the package take for granted.

An integer is a float. An array is one of JAX or of NumPy, and NumPy's has any number of axes.
"""

import jax
import numpy as np
from beartype import BeartypeConf, FrozenDict, beartype

SAME = FrozenDict({jax.Array: jax.Array | np.ndarray | np.generic, np.ndarray: np.ndarray | np.generic})
checked = beartype(conf=BeartypeConf(is_pep484_tower=True, hint_overrides=SAME))
