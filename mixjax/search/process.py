"""What the Gaussian processes of the search share: data, kernel, precision.

Everything runs in float64, whatever the rest of the program uses. Arrays are filled up to a few
fixed sizes with rows that are not real, so that a growing study meets few compilations.
"""

import contextlib
import dataclasses
from typing import Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import threadpoolctl
import tinygp
from jaxtyping import Array, Float
from tinygp.solvers import DirectSolver

from mixjax.search.observations import Observations
from mixjax.search.space import Space

# Noise variance no fit goes below, in squared standard deviations of the scores.
JITTER = 1e-6

# A run this many times as far below the median as the worst twentieth is taken to be just there:
# one that diverged says that its mixture is bad, not how bad, and must not flatten all others. On
# the gallery's worst benchmark a mixture that is merely bad is 8 times as far.
FARTHEST, ENOUGH = 10.0, 8

# Points predicted by one call of a compiled program.
CHUNK = 1024


class Points(eqx.Module):
  """Rows as the kernel sees them; `real` is 0 for those that only fill up an array."""

  features: Float[Array, "n d"]
  real: Float[Array, " n"]


class Matern52(tinygp.kernels.Kernel):
  """amplitude^2 Matern-5/2 of the scaled L2 distance; all distances from one matrix product."""

  lengths: Float[Array, " d"]
  amplitude: Float[Array, ""]

  def evaluate(self, a: Points, b: Points) -> Float[Array, ""]:
    return self(*(Points(p.features[None], p.real[None]) for p in (a, b)))[0, 0]

  def __call__(self, a: Points, b: Points | None = None) -> Array:
    if b is None:
      return self.amplitude**2 * a.real
    x, y = a.features / self.lengths, b.features / self.lengths
    squared = jnp.sum(x**2, 1)[:, None] + jnp.sum(y**2, 1)[None] - 2 * x @ y.T
    # The square root has no gradient at 0; nor may rounding make a distance negative.
    r = jnp.sqrt(5 * jnp.maximum(squared, 1e-30))
    return self.amplitude**2 * (1 + r + r**2 / 3) * jnp.exp(-r) * a.real[:, None] * b.real


class Form(Protocol):
  """What a kernel is made of; hashable, as compiled programs take it as a static argument.

  It sees columns made of the d weights. `lengths` has one length-scale for each column, `amplitude`
  is a scalar or has one for each term. A search moves them in z, prior sds from their medians.
  """

  def size(self, dim: int) -> tuple[int, int]:
    """Entries of z: those in front, which set the length-scales, and all. The last is the noise."""

  def unpack(self, z: Float[Array, " z"]) -> tuple[Array, Array, Array]:
    """Length-scales, amplitude and noise."""

  def columns(self, rows: Float[Array, "n d"]) -> Float[Array, "n columns"]:
    """What the kernel compares, before the coordinates are learnt."""

  def kernel(self, lengths: Array, amplitude: Array) -> tinygp.kernels.Kernel:
    """The kernel on `Points` of such columns."""


@contextlib.contextmanager
def exact():
  """Float64, and linear algebra on one thread.

  The matrices are small; on a busy machine, threads that wait for each other cost 30 times more.
  """
  with jax.enable_x64(True), threadpoolctl.threadpool_limits(1, user_api="blas"):
    yield


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
  """Runs as the compiled programs take them: standardised and filled up.

  `rows: float[filled, d]` are the mixtures; `residuals` and `variance`, the stated noise, are in
  standardised scores (score - center) / scale. From 8 runs on, very low scores are cut (FARTHEST).
  """

  rows: Float[np.ndarray, "filled d"]
  real: Float[np.ndarray, " filled"]
  residuals: Float[np.ndarray, " filled"]
  variance: Float[np.ndarray, " filled"]
  center: float
  scale: float

  @classmethod
  def of(cls, observations: Observations, space: Space) -> "Data":
    """ValueError if there is no run."""
    count = len(observations)
    if not count:
      raise ValueError("a surrogate needs at least one finished run")
    # 16, 32, 64, then steps of 64.
    size = max(16, 1 << (count - 1).bit_length()) if count <= 64 else -(-count // 64) * 64
    # Dividing by the largest first keeps scores of any magnitude from overflowing.
    scores = _without_outliers(observations.scores)
    largest = float(np.abs(scores).max()) or 1.0
    shares = scores / largest
    spread = shares.std()
    spread = spread if spread > 1e-12 else 1.0
    residuals = np.zeros(size)
    residuals[:count] = (shares - shares.mean()) / spread
    variance = np.zeros(size)
    if observations.stderr is not None:
      # A run a million times noisier than the spread says nothing; more would only overflow.
      with np.errstate(over="ignore"):
        variance[:count] = np.minimum(observations.stderr / largest / spread, 1e6) ** 2
    return cls(
      fill(space.check(observations.mixtures), size),
      fill(np.ones(count), size),
      residuals,
      variance,
      float(shares.mean() * largest),
      float(spread * largest),
    )


def _without_outliers(scores: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
  if len(scores) < ENOUGH:
    return scores
  median, low = np.median(scores), np.quantile(scores, 0.05, method="higher")
  return scores if low == median else np.maximum(scores, median - FARTHEST * (median - low))


def fill(rows: Float[np.ndarray, " n *d"], size: int) -> Float[np.ndarray, " size *d"]:
  """`rows`, then rows of zeros."""
  filled = np.zeros((size, *rows.shape[1:]))
  filled[: len(rows)] = rows
  return filled


def gaussian_process(kernel, points: Points, noise, variance) -> tinygp.GaussianProcess:
  """The process of runs at `points` with noise sd `noise` beside each one's own `variance`."""
  # Rows that are not real have no covariance; a variance of 1 makes them inert in every solve.
  diagonal = jnp.where(points.real > 0, variance + noise**2 + JITTER, 1.0)
  return tinygp.GaussianProcess(kernel, points, diag=diagonal, solver=DirectSolver)


def log_marginal(process: tinygp.GaussianProcess, residuals: Array) -> Array:
  """Log density of the real residuals."""
  unreal = jnp.sum(1 - process.X.real)
  return process.log_probability(residuals) + 0.5 * jnp.log(2 * jnp.pi) * unreal
