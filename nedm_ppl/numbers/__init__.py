"""Numbers that carry their error. They know no other part."""

from nedm_ppl.numbers._estimate import Estimate as Estimate
