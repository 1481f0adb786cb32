"""The default form of kernel, one Matern-5/2 with a length-scale for each weight; its priors."""

import dataclasses

import jax.numpy as jnp

from mixjax.search.process import Matern52

# Medians and log-sds of the log-normal priors, in sds of a coordinate over the space and of the
# scores; the length-scales' median is LENGTH sqrt(d), the typical distance in d coordinates.
LENGTH, LENGTH_SPREAD = 2.0, 1.0
AMPLITUDE, AMPLITUDE_SPREAD = 1.0, 1.0
NOISE, NOISE_SPREAD = 0.1, 1.5


@dataclasses.dataclass(frozen=True)
class Flat:
  """Every weight alike, with a length-scale of its own."""

  def size(self, dim: int) -> tuple[int, int]:
    return dim, dim + 2

  def unpack(self, z):
    dim = len(z) - 2
    values = jnp.exp(
      jnp.log(jnp.array([LENGTH * dim**0.5] * dim + [AMPLITUDE, NOISE]))
      + jnp.array([LENGTH_SPREAD] * dim + [AMPLITUDE_SPREAD, NOISE_SPREAD]) * z
    )
    return values[:dim], values[dim], values[dim + 1]

  def columns(self, rows):
    return rows

  def kernel(self, lengths, amplitude):
    return Matern52(lengths, amplitude)


FLAT = Flat()
