"""Int8 versions of trained networks that are about as accurate as in float32.

- `equalisation`, `fine_tuning`: other weights, which lose less by rounding.
- `recovery`: tries these and the methods of `nas.quantisation` until the accuracy is that of
  float32.
"""

from nas.deploy.quantisation.fine_tuning import FineTuning
from nas.deploy.quantisation.recovery import MAX_DROP, Quantisation, quantise_within

__all__ = ["MAX_DROP", "FineTuning", "Quantisation", "quantise_within"]
