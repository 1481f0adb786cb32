"""A Gaussian process from mixtures to scores (paper, section 3.4; kernel and priors are ours).

The paper names no kernel. Ours is Matern-5/2 on the square roots of the weights, whose Euclidean
distance is the Hellinger distance of two mixtures; raw weights do far worse on recorded runs. Each
axis has its own length-scale. Everything runs in float64, whatever the rest of the program uses.
"""

import contextlib
import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.special
import threadpoolctl
import tinygp
from jaxtyping import Array, Float
from tinygp.solvers import DirectSolver

from mixjax.search.policies import Observations
from mixjax.search.space import Space

# Noise variance no fit goes below, in squared standard deviations of the scores.
JITTER = 1e-6

# Medians and log-sds of the log-normal priors; the length-scale's median is the space's own.
LENGTH_SPREAD = 1.0
AMPLITUDE, AMPLITUDE_SPREAD = 1.0, 1.0
NOISE, NOISE_SPREAD = 0.1, 1.5
# The search for hyper-parameters stays within this many log-sds of the medians.
REACH = 4.0
# Starts of the search, in log-sds: (length-scale, noise). The posterior can have several optima.
STARTS = ((0.0, 0.0), (-1.0, -1.0), (1.0, 1.0), (1.0, -1.0))

# Points predicted by one call of a compiled program.
CHUNK = 1024


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
  """Length-scales, one an axis or (ARD) one a coordinate; sds of function and noise."""

  lengths: tuple[float, ...]
  amplitude: float
  noise: float


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


@dataclasses.dataclass(frozen=True, eq=False)
class LeaveOneOut:
  """Each run predicted from all others: `mean`, `sd` (noise included), and how often 95% holds."""

  mean: Float[np.ndarray, " n"]
  sd: Float[np.ndarray, " n"]
  coverage: float


@dataclasses.dataclass(frozen=True, eq=False)
class Surrogate:
  """A process conditioned on runs. Scores go in and come out in their own units.

  `process` and `hyper` are in standardised scores (score - center) / scale, and `process` is filled
  up with rows that are not real; `log_marginal` is that of the n standardised scores.
  """

  space: Space
  hyper: Hyperparameters
  process: tinygp.GaussianProcess
  residuals: Float[np.ndarray, " n"]
  weights: Float[np.ndarray, " filled"]  # (K + noise)^-1 residuals
  log_marginal: float
  center: float
  scale: float

  @property
  def noise_sd(self) -> float:
    """The fitted noise of one run, in score units, over and above its stated standard error."""
    return self.scale * float(np.hypot(self.hyper.noise, JITTER**0.5))

  def predict(self, points) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Posterior mean and sd of the latent (noise-free) score at `points: float[m, d]`."""
    mean, variance = self._in_chunks(_predict, points, self.weights)
    return self.center + self.scale * mean, self.scale * np.sqrt(np.maximum(variance, 0))

  def covariance(self, points, other) -> Float[np.ndarray, " m"]:
    """Posterior covariance of the latent scores at `points: float[m, d]` and `other: float[d]`."""
    other = _features(self.space, np.asarray(other)[None])
    (covariance,) = self._in_chunks(_covariance, points, other)
    return self.scale**2 * covariance

  def leave_one_out(self) -> LeaveOneOut:
    """Every run predicted from the others at the same hyper-parameters, in closed form."""
    count = len(self.residuals)
    factor = np.asarray(self.process.solver.scale_tril)[:count, :count]
    inverse = scipy.linalg.solve_triangular(factor, np.eye(count), lower=True)
    precision = np.sum(inverse**2, axis=0)
    error, sd = self.weights[:count] / precision, 1 / np.sqrt(precision)
    mean = self.center + self.scale * (self.residuals - error)
    return LeaveOneOut(mean, self.scale * sd, float(np.mean(np.abs(error) <= 1.96 * sd)))

  def _in_chunks(self, program, points, *arguments) -> list[np.ndarray]:
    """`program` over all points, a fixed number at a time so that it is compiled once."""
    features = _features(self.space, points)
    outputs = []
    with _exact():
      for start in range(0, max(len(features), 1), CHUNK):
        part = features[start : start + CHUNK]
        answer = program(self.process, _fill(part, CHUNK), *arguments)
        outputs.append([np.asarray(a)[: len(part)] for a in answer])
    return [np.concatenate(parts) for parts in zip(*outputs, strict=True)]


def fit(observations: Observations, space: Space, *, ard: bool = False) -> Surrogate:
  """The process with the most probable hyper-parameters given the runs.

  `ard` gives every coordinate, not only every axis, a length-scale: better on one benchmark, worse
  on an average of many below about 200 runs. Deterministic. ValueError if there is no run.
  """
  data = _Data.of(observations, space)
  group = np.arange(space.dim) if ard else space.block
  typical = np.array([_typical_distance(len(axis.coordinates)) for axis in space.axes])
  lengths = typical[space.block] if ard else typical
  medians = np.log([*lengths, AMPLITUDE, NOISE])
  spreads = np.array([LENGTH_SPREAD] * len(lengths) + [AMPLITUDE_SPREAD, NOISE_SPREAD])

  def objective(z):
    value, gradient = _negative_log_posterior(z, medians, spreads, group, *data.arrays)
    if not (np.isfinite(value) and np.isfinite(gradient).all()):
      return 1e25, np.zeros_like(z)
    return float(value), np.asarray(gradient)

  best = None
  with _exact():
    for length, noise in STARTS:
      start = np.array([length] * len(lengths) + [0.0, noise])
      found = scipy.optimize.minimize(
        objective, start, jac=True, method="L-BFGS-B", bounds=[(-REACH, REACH)] * len(start)
      )
      if best is None or found.fun < best.fun:
        best = found
  *lengths, amplitude, noise = np.exp(medians + spreads * best.x).tolist()
  return condition(observations, space, Hyperparameters(tuple(lengths), amplitude, noise))


def condition(observations: Observations, space: Space, hyper: Hyperparameters) -> Surrogate:
  """The process with given hyper-parameters. ValueError if there is no run."""
  data = _Data.of(observations, space)
  per_axis = len(hyper.lengths) == len(space.axes)
  lengths = np.asarray(hyper.lengths)[space.block] if per_axis else np.asarray(hyper.lengths)
  if lengths.shape != (space.dim,):
    raise ValueError(f"{len(hyper.lengths)} length-scales for {len(space.axes)} axes")
  with _exact():
    process, weights, log_marginal = _condition(lengths, hyper.amplitude, hyper.noise, *data.arrays)
  residuals = data.residuals[: len(observations)]
  return Surrogate(
    space,
    hyper,
    process,
    residuals,
    np.asarray(weights),
    float(log_marginal),
    data.center,
    data.scale,
  )


@contextlib.contextmanager
def _exact():
  """Float64, and linear algebra on one thread.

  The matrices are small; on a busy machine, threads that wait for each other cost 30 times more.
  """
  with jax.enable_x64(True), threadpoolctl.threadpool_limits(1, user_api="blas"):
    yield


@dataclasses.dataclass(frozen=True, eq=False)
class _Data:
  """Runs as the compiled programs take them: standardised and filled up to a few fixed sizes."""

  points: Points
  residuals: np.ndarray
  variance: np.ndarray  # stated noise, standardised
  center: float
  scale: float

  @classmethod
  def of(cls, observations: Observations, space: Space) -> "_Data":
    count = len(observations)
    if not count:
      raise ValueError("a surrogate needs at least one finished run")
    # 16, 32, 64, then steps of 64: a growing study meets few shapes, so few compilations.
    size = max(16, 1 << (count - 1).bit_length()) if count <= 64 else -(-count // 64) * 64
    points = _fill(_features(space, observations.mixtures), size)
    # Dividing by the largest first keeps scores of any magnitude from overflowing.
    largest = float(np.abs(observations.scores).max()) or 1.0
    shares = observations.scores / largest
    spread = shares.std()
    spread = spread if spread > 1e-12 else 1.0
    residuals = np.zeros(size)
    residuals[:count] = (shares - shares.mean()) / spread
    variance = np.zeros(size)
    if observations.stderr is not None:
      # A run a million times noisier than the spread says nothing; more would only overflow.
      with np.errstate(over="ignore"):
        variance[:count] = np.minimum(observations.stderr / largest / spread, 1e6) ** 2
    return cls(points, residuals, variance, float(shares.mean() * largest), float(spread * largest))

  @property
  def arrays(self):
    return self.points, self.residuals, self.variance


def _features(space: Space, points) -> Float[np.ndarray, "n d"]:
  return np.sqrt(space.check(points))


def _fill(features: np.ndarray, size: int) -> Points:
  filled = np.zeros((size, features.shape[1]))
  filled[: len(features)] = features
  return Points(filled, (np.arange(size) < len(features)).astype(np.float64))


def _typical_distance(size: int) -> float:
  """Root mean square distance of two features drawn at random from a simplex of `size` weights."""
  mean_root = scipy.special.gamma(1.5) * np.exp(
    scipy.special.gammaln(size) - scipy.special.gammaln(size + 0.5)
  )
  # An axis of one coordinate has no distances; its length-scale is without effect.
  return float(np.sqrt(2 * max(1 - size * mean_root**2, 0.01)))


def _process(lengths, amplitude, noise, points: Points, variance) -> tinygp.GaussianProcess:
  # Rows that are not real have no covariance; a variance of 1 makes them inert in every solve.
  diagonal = jnp.where(points.real > 0, variance + noise**2 + JITTER, 1.0)
  kernel = Matern52(jnp.asarray(lengths), jnp.asarray(amplitude))
  return tinygp.GaussianProcess(kernel, points, diag=diagonal, solver=DirectSolver)


def _log_marginal(process: tinygp.GaussianProcess, residuals: Array) -> Array:
  unreal = jnp.sum(1 - process.X.real)
  return process.log_probability(residuals) + 0.5 * jnp.log(2 * jnp.pi) * unreal


@jax.jit
@jax.value_and_grad
def _negative_log_posterior(z, medians, spreads, group, points, residuals, variance):
  """In z, the log-sds from the prior medians, the prior is a standard normal."""
  values = jnp.exp(medians + spreads * z)
  process = _process(values[:-2][group], values[-2], values[-1], points, variance)
  return 0.5 * jnp.sum(z**2) - _log_marginal(process, residuals)


@jax.jit
def _condition(lengths, amplitude, noise, points, residuals, variance):
  process = _process(lengths, amplitude, noise, points, variance)
  whitened = process.solver.solve_triangular(residuals)
  weights = process.solver.solve_triangular(whitened, transpose=True)
  return process, weights, _log_marginal(process, residuals)


@jax.jit
def _predict(process, points, weights):
  cross = process.kernel(points, process.X)
  whitened = process.solver.solve_triangular(cross.T)
  return cross @ weights, process.kernel(points) - jnp.sum(whitened**2, axis=0)


@jax.jit
def _covariance(process, points, other):
  other = Points(other, jnp.ones(1))
  to_points, to_other = (
    process.solver.solve_triangular(process.kernel(process.X, p)) for p in (points, other)
  )
  return ((process.kernel(points, other) - to_points.T @ to_other)[:, 0],)
