"""The coordinates in which a surrogate measures how far two mixtures are apart.

Raw weights do badly on recorded runs: from 0 to 1% of a domain matters more than from 50 to 51%.
The family here is Box-Cox's, ((p + offset)^exponent - 1) / exponent: it holds the logarithm
(exponent 0), the square root, whose Euclidean distance is Hellinger's (0.5), and the weights
themselves (1).
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mixjax.search.space import Space, candidates

# Rows that tell how much each coordinate varies on a space.
REFERENCE_ROWS = 256


@dataclasses.dataclass(frozen=True)
class Coordinates:
  """One member of the family. `offset` is the weight below which nothing much changes."""

  exponent: float
  offset: float


RAW = Coordinates(1.0, 0.0)
SQRT = Coordinates(0.5, 0.0)
LOG = Coordinates(0.0, 1e-3)


def transform(weights: Float[Array, "n d"], exponent, offset) -> Float[Array, "n d"]:
  """Differentiable in `exponent` and `offset` wherever `offset` is positive."""
  logarithm = jnp.log(weights + offset)
  safe = jnp.where(exponent > 1e-6, exponent, 1.0)
  return jnp.where(exponent > 1e-6, jnp.expm1(safe * logarithm) / safe, logarithm)


def spread(reference: Float[Array, "r d"], exponent, offset) -> tuple[Array, Array]:
  """Mean and sd `float[d]` of each coordinate over `reference`; 1 for one that does not vary."""
  rows = transform(reference, exponent, offset)
  mean = rows.mean(0)
  variance = jnp.mean((rows - mean) ** 2, 0)
  varies = variance > 1e-18
  return mean, jnp.where(varies, jnp.sqrt(jnp.where(varies, variance, 1.0)), 1.0)


def reference(space: Space) -> Float[np.ndarray, "r d"]:
  """Rows spread over the pool of `space`, or over the space itself where that is no wider.

  A pool with fewer candidates than weights cannot tell how much each varies.
  """
  wide = space.pool is not None and len(space.pool) >= space.dim
  pool = space.pool if wide else candidates(space, REFERENCE_ROWS, 0)
  return pool[np.linspace(0, len(pool) - 1, REFERENCE_ROWS).round().astype(int)]
