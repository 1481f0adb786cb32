"""A Gaussian process from mixtures to scores (paper, section 3.4; kernel and priors are ours).

The paper names no kernel. Ours is Matern-5/2 with a length-scale for each weight, in coordinates
that are learnt with it (`coordinates.py`). With few runs in many dimensions the most probable
hyper-parameters are too sure of themselves, so predictions average over draws from their posterior.
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.optimize
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from mixjax.search import coordinates as coordinates_lib
from mixjax.search import process
from mixjax.search.coordinates import Coordinates
from mixjax.search.policies import Observations
from mixjax.search.process import JITTER, Data, Matern52, Points
from mixjax.search.space import Space

# Medians and log-sds of the log-normal priors, in sds of a coordinate over the space and of the
# scores; the length-scales' median is LENGTH sqrt(d), the typical distance in d coordinates.
LENGTH, LENGTH_SPREAD = 2.0, 1.0
AMPLITUDE, AMPLITUDE_SPREAD = 1.0, 1.0
NOISE, NOISE_SPREAD = 0.1, 1.5
OFFSET, OFFSET_SPREAD = 3e-3, 1.5
# The exponent of learnt coordinates lies between those of logarithm and square root; its logit is
# normal.
LARGEST_EXPONENT, EXPONENT_LOGIT, EXPONENT_SPREAD = 0.5, -1.0, 2.0
# The search for hyper-parameters stays within this many prior sds of the medians.
REACH = 5.0
# Starts of the search, in prior sds: (length-scales, noise). The posterior can have several optima.
STARTS = ((0.0, 0.0), (-0.7, -1.0))

# Draws of the hyper-parameters, in mirrored pairs about the mode. From MANY runs on the data have
# settled them, and the mode alone predicts as well.
DRAWS, MANY = 16, 256


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
  """`lengths` has one length-scale a weight, in sds of its coordinate over the space; `amplitude`
  and `noise` are sds, in sds of the scores."""

  lengths: tuple[float, ...]
  amplitude: float
  noise: float
  coordinates: Coordinates = coordinates_lib.SQRT


class Draw(eqx.Module):
  """One process conditioned on runs; stacked along a first axis for several."""

  lengths: Float[Array, " d"]
  amplitude: Float[Array, ""]
  noise: Float[Array, ""]
  exponent: Float[Array, ""]
  offset: Float[Array, ""]
  factor: Float[Array, "n n"]  # Cholesky factor of K + noise
  weights: Float[Array, " n"]  # (K + noise)^-1 residuals


@dataclasses.dataclass(frozen=True, eq=False)
class LeaveOneOut:
  """Each run predicted from all others: `mean`, `sd` (noise included), and how often 95% holds."""

  mean: Float[np.ndarray, " n"]
  sd: Float[np.ndarray, " n"]
  coverage: float


@dataclasses.dataclass(frozen=True, eq=False)
class Surrogate:
  """Processes conditioned on runs. Scores go in and come out in their own units.

  `hyper` are the most probable hyper-parameters and `log_marginal` is theirs, that of the n
  standardised scores; `draws` are stacked along their first axis.
  """

  space: Space
  hyper: Hyperparameters
  log_marginal: float
  draws: Draw
  data: Data
  count: int

  @property
  def noise_sd(self) -> float:
    """The fitted noise of one run, in score units, over and above its stated standard error."""
    return self.data.scale * float(np.sqrt(np.mean(np.asarray(self.draws.noise) ** 2) + JITTER))

  def predict(self, points) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Posterior mean and sd of the latent (noise-free) score at `points: float[m, d]`."""
    points = self.space.check(points)
    parts = [
      self._run(_predict, points[start : start + process.CHUNK], process.CHUNK)
      for start in range(0, max(len(points), 1), process.CHUNK)
    ]
    mean, variance = (np.concatenate(column) for column in zip(*parts, strict=True))
    return (
      self.data.center + self.data.scale * mean,
      self.data.scale * np.sqrt(np.maximum(variance, 0)),
    )

  def joint(self, points) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, "m m"]]:
    """Posterior mean and covariance of the latent scores at `points: float[m, d]` together."""
    points, count = self.space.check(points), len(points)
    size = max(64, 1 << (count - 1).bit_length())
    mean, covariance = self._run(_joint, points, size)
    return self.data.center + self.data.scale * mean, self.data.scale**2 * covariance[:, :count]

  def leave_one_out(self) -> LeaveOneOut:
    """Every run predicted from the others at the same hyper-parameters, in closed form."""
    means, variances = [], []
    for draw in range(len(self.draws.noise)):
      factor = np.asarray(self.draws.factor[draw])[: self.count, : self.count]
      weights = np.asarray(self.draws.weights[draw])
      inverse = scipy.linalg.solve_triangular(factor, np.eye(self.count), lower=True)
      precision = np.sum(inverse**2, axis=0)
      means.append(self.data.residuals[: self.count] - weights[: self.count] / precision)
      variances.append(1 / precision)
    mean, sd = np.mean(means, 0), np.sqrt(np.mean(variances, 0) + np.var(means, 0))
    inside = np.abs(self.data.residuals[: self.count] - mean) <= 1.96 * sd
    return LeaveOneOut(
      self.data.center + self.data.scale * mean, self.data.scale * sd, float(np.mean(inside))
    )

  def _run(self, program, points, size: int) -> list[np.ndarray]:
    with process.exact():
      reference = coordinates_lib.reference(self.space)
      filled = process.fill(points, size)
      answer = program(self.draws, self.data.rows, self.data.real, reference, filled)
      return [np.asarray(a)[: len(points)] for a in answer]


def fit(
  observations: Observations,
  space: Space,
  *,
  coordinates: Coordinates | None = None,
  draws: int | None = None,
) -> Surrogate:
  """The processes that the runs make probable. Deterministic. ValueError if there is no run.

  `coordinates` are learnt unless given. `draws` of the hyper-parameters are made around their mode
  (Laplace's approximation), an even number, or 1 for the mode alone; None is 16, and 1 from 256
  runs on.
  """
  data = Data.of(observations, space)
  if draws is None:
    draws = DRAWS if len(observations) < MANY else 1
  if draws != 1 and (draws < 2 or draws % 2):
    raise ValueError(f"draws come in pairs, or there is one: not {draws}")
  reference = coordinates_lib.reference(space)
  learnt = coordinates is None
  size = space.dim + 2 + 2 * learnt
  fixed = np.array([0.0, 0.0] if learnt else dataclasses.astuple(coordinates))

  def objective(z):
    value, gradient = _negative_log_posterior(z, fixed, learnt, reference, *_arrays(data))
    if not (np.isfinite(value) and np.isfinite(gradient).all()):
      return 1e25, np.zeros_like(z)
    return float(value), np.asarray(gradient)

  best = None
  with process.exact():
    for lengths, noise in STARTS:
      start = np.zeros(size)
      start[: space.dim], start[space.dim + 1] = lengths, noise
      found = scipy.optimize.minimize(
        objective, start, jac=True, method="L-BFGS-B", bounds=[(-REACH, REACH)] * size
      )
      if best is None or found.fun < best.fun:
        best = found
    points = best.x[None]
    if draws > 1:
      points = np.concatenate([points, _around(best.x, objective, draws)])
    thetas = jax.vmap(lambda z: _unpack(z, fixed, learnt))(points)
    return _conditioned(observations, space, data, thetas)


def condition(observations: Observations, space: Space, hyper: Hyperparameters) -> Surrogate:
  """The process with given hyper-parameters. ValueError if there is no run."""
  data = Data.of(observations, space)
  if len(hyper.lengths) != space.dim:
    raise ValueError(f"{len(hyper.lengths)} length-scales for {space.dim} weights")
  values = (hyper.lengths, hyper.amplitude, hyper.noise, *dataclasses.astuple(hyper.coordinates))
  with process.exact():
    return _conditioned(observations, space, data, tuple(np.array(v)[None] for v in values))


def _conditioned(observations: Observations, space: Space, data: Data, thetas) -> Surrogate:
  """`thetas` are hyper-parameters: the mode, then the draws; the mode alone is its own draw."""
  reference = coordinates_lib.reference(space)
  draws, log_marginals = _condition(thetas, reference, *_arrays(data))
  if len(log_marginals) > 1:
    draws = jax.tree.map(lambda leaf: leaf[1:], draws)
  lengths, amplitude, noise, exponent, offset = (np.asarray(value[0]).tolist() for value in thetas)
  hyper = Hyperparameters(tuple(lengths), amplitude, noise, Coordinates(exponent, offset))
  return Surrogate(space, hyper, float(log_marginals[0]), draws, data, len(observations))


def _around(mode, objective, count: int) -> Float[np.ndarray, "count z"]:
  """Draws from the normal distribution with the curvature of the posterior at its mode."""
  step = 1e-3
  shifts = step * np.eye(len(mode))
  curvature = np.array([objective(mode + s)[1] - objective(mode - s)[1] for s in shifts])
  values, vectors = np.linalg.eigh((curvature + curvature.T) / (4 * step))
  # In z the prior has curvature 1: data that bend the other way make the posterior no wider.
  root = vectors / np.sqrt(np.maximum(values, 1.0)) @ vectors.T
  half = np.random.default_rng(0).standard_normal((count // 2, len(mode))) @ root
  return np.clip(mode + np.concatenate([half, -half]), -REACH, REACH)


def _arrays(data: Data):
  return data.rows, data.real, data.residuals, data.variance


def _unpack(z, fixed, learnt: bool):
  """Lengths, amplitude, noise, exponent and offset from prior sds."""
  dim = len(z) - 2 - 2 * learnt
  values = jnp.exp(
    jnp.log(jnp.array([LENGTH * dim**0.5] * dim + [AMPLITUDE, NOISE]))
    + jnp.array([LENGTH_SPREAD] * dim + [AMPLITUDE_SPREAD, NOISE_SPREAD]) * z[: dim + 2]
  )
  exponent, offset = fixed
  if learnt:
    exponent = LARGEST_EXPONENT * jax.nn.sigmoid(EXPONENT_LOGIT + EXPONENT_SPREAD * z[dim + 2])
    offset = OFFSET * jnp.exp(OFFSET_SPREAD * z[dim + 3])
  return values[:dim], values[dim], values[dim + 1], jnp.asarray(exponent), jnp.asarray(offset)


def _features(theta, reference, rows) -> Array:
  *_, exponent, offset = theta
  mean, sd = coordinates_lib.spread(reference, exponent, offset)
  return (coordinates_lib.transform(rows, exponent, offset) - mean) / sd


def _process(theta, reference, rows, real, variance):
  lengths, amplitude, noise, *_ = theta
  points = Points(_features(theta, reference, rows), real)
  return process.gaussian_process(Matern52(lengths, amplitude), points, noise, variance)


@jax.jit(static_argnames="learnt")
@jax.value_and_grad
def _negative_log_posterior(z, fixed, learnt, reference, rows, real, residuals, variance):
  """In z, the prior sds from the medians, the prior is a standard normal."""
  theta = _unpack(z, fixed, learnt)
  found = _process(theta, reference, rows, real, variance)
  return 0.5 * jnp.sum(z**2) - process.log_marginal(found, residuals)


@jax.jit
def _condition(thetas, reference, rows, real, residuals, variance):
  def one(theta):
    found = _process(theta, reference, rows, real, variance)
    whitened = found.solver.solve_triangular(residuals)
    weights = found.solver.solve_triangular(whitened, transpose=True)
    draw = Draw(*theta, found.solver.scale_tril, weights)
    return draw, process.log_marginal(found, residuals)

  return jax.lax.map(one, thetas)


def _cross(draw: Draw, rows, real, reference, points):
  """Kernel, the points as it sees them, and their covariance with the runs: plain and whitened."""
  theta = (draw.lengths, draw.amplitude, draw.noise, draw.exponent, draw.offset)
  kernel = Matern52(draw.lengths, draw.amplitude)
  seen = Points(_features(theta, reference, points), jnp.ones(len(points)))
  cross = kernel(seen, Points(_features(theta, reference, rows), real))
  return kernel, seen, cross, solve_triangular(draw.factor, cross.T, lower=True)


@jax.jit
def _predict(draws, rows, real, reference, points):
  def one(draw):
    kernel, seen, cross, whitened = _cross(draw, rows, real, reference, points)
    return cross @ draw.weights, kernel(seen) - jnp.sum(whitened**2, axis=0)

  means, variances = jax.lax.map(one, draws)
  return means.mean(0), variances.mean(0) + means.var(0)


@jax.jit
def _joint(draws, rows, real, reference, points):
  def one(draw):
    kernel, seen, cross, whitened = _cross(draw, rows, real, reference, points)
    return cross @ draw.weights, kernel(seen, seen) - whitened.T @ whitened

  means, covariances = jax.lax.map(one, draws)
  about = means - means.mean(0)
  return means.mean(0), covariances.mean(0) + about.T @ about / len(means)
