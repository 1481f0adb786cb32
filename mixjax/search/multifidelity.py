"""One Gaussian process over mixtures and budgets, from cheap proxies up to the target.

The process of ADMIRE-BayesOpt (arXiv 2508.11551): f(x, s) of a mixture x and a budget s, the run's
cost as a share of the target's, has the linear truncated kernel
k0(x, x') + (1 - s) (1 - s') (1 + s s')^q k1(x, x'), both parts Matern-5/2 with a length-scale for
each weight. k0 is the target itself, k1 the bias of smaller budgets, gone at s = 1. Float64.
"""

import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
import tinygp
from jaxtyping import Array, Float

from mixjax.search import laplace, posterior
from mixjax.search import process as process_lib
from mixjax.search.observations import Observations
from mixjax.search.process import CHUNK, JITTER, Data, Matern52, Points
from mixjax.search.space import Space

Coordinates = Literal["raw", "sqrt"]

# Medians and log-sds of the log-normal priors, in standardised scores, alike for target and bias: a
# bias thought smoother or smaller finds correlated fidelities that are not.
LENGTH_SPREAD = 1.0
AMPLITUDE, AMPLITUDE_SPREAD = 1.0, 1.0
POWER, POWER_SPREAD = 1.0, 0.5
NOISE, NOISE_SPREAD = 0.1, 1.5
# The search for hyper-parameters stays within this many log-sds of the medians.
REACH = 4.0
# Starts of the search, in log-sds: (length-scales, amplitude of the bias, noise).
STARTS = ((0.0, 0.0, 0.0), (-1.0, -1.0, -1.0), (0.0, 1.0, 1.0), (0.0, -1.0, -1.0))

# Mixtures over which a correlation is taken: two fidelities of them fill one compiled program.
JOINT = CHUNK // 2


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
  """Length-scales, one a coordinate, and sds of target, bias and noise; `power` is q."""

  lengths: tuple[float, ...]
  bias_lengths: tuple[float, ...]
  amplitude: float
  bias_amplitude: float
  power: float
  noise: float


class LinearTruncated(tinygp.kernels.Kernel):
  """The kernel on rows [coordinates, s].

  Each part has an amplitude of its own: with one for both, s = 0 and s = 1 could never correlate
  less than 1 / sqrt(2), however little a cheap run has to say.
  """

  target: Matern52
  bias: Matern52
  power: Float[Array, ""]

  def evaluate(self, a: Points, b: Points) -> Float[Array, ""]:
    return self(*(Points(p.features[None], p.real[None]) for p in (a, b)))[0, 0]

  def __call__(self, a: Points, b: Points | None = None) -> Array:
    x, s = _split(a)
    if b is None:
      return self.target(x) + (1 - s) ** 2 * (1 + s**2) ** self.power * self.bias(x)
    y, t = _split(b)
    fading = (1 - s)[:, None] * (1 - t) * (1 + s[:, None] * t) ** self.power
    return self.target(x, y) + fading * self.bias(x, y)


@dataclasses.dataclass(frozen=True, eq=False)
class MultiFidelity:
  """The process conditioned on runs; scores go in and come out in their own units.

  `fidelity` arguments are one share for all points or one for each. `hyper` and `log_marginal` are
  in standardised scores, (score - center) / scale, all fidelities standardised together.
  """

  space: Space
  coordinates: Coordinates
  hyper: Hyperparameters
  process: tinygp.GaussianProcess
  weights: Float[np.ndarray, " filled"]  # (K + noise)^-1 residuals
  log_marginal: float
  center: float
  scale: float

  @property
  def noise_sd(self) -> float:
    """The fitted noise of one run, in score units, over and above its stated standard error."""
    return self.scale * float(np.hypot(self.hyper.noise, JITTER**0.5))

  def predict(self, points, fidelity) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Posterior mean and sd of the noise-free score at `points: float[m, d]`."""
    rows = _rows(self.space, self.coordinates, points, fidelity)
    mean, variance = self._in_chunks(posterior.predict, rows, self.weights)
    return self.center + self.scale * mean, self.scale * np.sqrt(np.maximum(variance, 0))

  def covariance(self, points, fidelity, other, other_fidelity: float) -> Float[np.ndarray, " m"]:
    """Posterior covariance of the scores at `points: float[m, d]` and at `other: float[d]`."""
    rows = _rows(self.space, self.coordinates, points, fidelity)
    other = _rows(self.space, self.coordinates, np.asarray(other)[None], other_fidelity)
    (covariance,) = self._in_chunks(posterior.between, rows, _points(other, 1))
    return self.scale**2 * covariance

  def covariance_with_target(self, points, fidelity) -> Float[np.ndarray, " m"]:
    """Posterior covariance of the scores of each of `points: float[m, d]` at its s and at 1."""
    rows = _rows(self.space, self.coordinates, points, fidelity)
    (covariance,) = self._in_chunks(_covariance_with_target, rows)
    return self.scale**2 * covariance

  def joint(self, points, fidelity) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, "m m"]]:
    """Posterior mean and covariance of the scores at up to 1024 `points: float[m, d]`."""
    rows = _rows(self.space, self.coordinates, points, fidelity)
    if len(rows) > CHUNK:
      raise ValueError(f"{len(rows)} points have too large a covariance: pass at most {CHUNK}")
    with process_lib.exact():
      mean, covariance = posterior.joint(self.process, _points(rows, CHUNK), self.weights)
    mean, covariance = np.asarray(mean)[: len(rows)], np.asarray(covariance)
    covariance = covariance[: len(rows), : len(rows)]
    return self.center + self.scale * mean, self.scale**2 * covariance

  def fidelity_correlation(self, fidelity: float, points=None) -> float:
    """How far scores at `fidelity` go along with those of the target over the pool, -1 to 1.

    The covariance of f(., s) and f(., 1) over the mixtures `float[m, d]` (the pool if None; at most
    512 of them, evenly spaced), divided by both spreads, each expected given the runs. 0 if a
    spread is 0. Few runs leave it near the prior, which is optimistic: between unrelated toys of
    three weights, 10 runs of each gave 0.1 to 0.5 on the same mixtures and 0.6 to 1 on different
    ones, 20 runs -0.3 to 0.3. So run some mixtures at both before trusting a cheap fidelity.
    """
    points = self.space.pool if points is None else self.space.check(points)
    if points is None or len(points) < 2:
      raise ValueError(f"a correlation needs a pool or at least two points on {self.space.name}")
    points = points[:: -(-len(points) // JOINT)]
    count = len(points)
    shares = np.repeat([float(fidelity), 1.0], count)
    mean, covariance = self.joint(np.concatenate([points, points]), shares)
    mean = mean.reshape(2, count)
    blocks = covariance.reshape(2, count, 2, count)
    uncertain = np.einsum("aibi->ab", blocks) / count - blocks.mean(axis=(1, 3))
    spread = np.cov(mean, bias=True) + uncertain
    scale = np.sqrt(spread[0, 0] * spread[1, 1])
    return float(np.clip(spread[0, 1] / scale, -1, 1)) if scale > 0 else 0.0

  def _in_chunks(self, program, rows, *arguments) -> list[np.ndarray]:
    """`program` over all rows, a fixed number at a time so that it is compiled once."""
    outputs = []
    with process_lib.exact():
      for start in range(0, max(len(rows), 1), CHUNK):
        part = rows[start : start + CHUNK]
        answer = program(self.process, _points(part, CHUNK), *arguments)
        outputs.append([np.asarray(a)[: len(part)] for a in answer])
    return [np.concatenate(parts) for parts in zip(*outputs, strict=True)]


def fit(
  observations: Observations, space: Space, *, coordinates: Coordinates = "raw"
) -> MultiFidelity:
  """The process with the most probable hyper-parameters given the runs.

  `coordinates` are what distances are measured in: "raw" weights as published, or their square
  roots. Runs without a fidelity are the target's. Deterministic. ValueError if there is no run or
  if a fidelity is no share of the target's.
  """
  points, data = _data(observations, space, coordinates)
  lengths = _typical_lengths(space, coordinates)
  medians = np.log([*lengths, *lengths, AMPLITUDE, AMPLITUDE, POWER, NOISE])
  amplitudes = [AMPLITUDE_SPREAD] * 2
  spreads = [LENGTH_SPREAD] * (2 * space.dim) + [*amplitudes, POWER_SPREAD, NOISE_SPREAD]
  spreads = np.array(spreads)

  @laplace.finite
  def objective(z):
    return _negative_log_posterior(z, medians, spreads, points, data.residuals, data.variance)

  starts = [[length] * (2 * space.dim) + [0.0, bias, 0.0, noise] for length, bias, noise in STARTS]
  with process_lib.exact():
    best = laplace.lowest(objective, np.array(starts), reach=REACH)
  values = np.exp(medians + spreads * best.x).tolist()
  lengths, bias_lengths = values[: space.dim], values[space.dim : 2 * space.dim]
  hyper = Hyperparameters(tuple(lengths), tuple(bias_lengths), *values[2 * space.dim :])
  return condition(observations, space, hyper, coordinates=coordinates)


def condition(
  observations: Observations,
  space: Space,
  hyper: Hyperparameters,
  *,
  coordinates: Coordinates = "raw",
) -> MultiFidelity:
  """The process with given hyper-parameters. ValueError as for `fit`."""
  points, data = _data(observations, space, coordinates)
  for lengths in (hyper.lengths, hyper.bias_lengths):
    if len(lengths) != space.dim:
      raise ValueError(f"{len(lengths)} length-scales for {space.dim} coordinates")
  values = [*hyper.lengths, *hyper.bias_lengths, hyper.amplitude, hyper.bias_amplitude]
  values = np.array([*values, hyper.power, hyper.noise])
  with process_lib.exact():
    process, weights, log_marginal = _condition(values, points, data.residuals, data.variance)
  weights = np.asarray(weights)
  return MultiFidelity(
    space, coordinates, hyper, process, weights, float(log_marginal), data.center, data.scale
  )


def shares_of(observations: Observations) -> Float[np.ndarray, " n"]:
  """Each run's cost as a share of the target's; runs without a fidelity are the target's."""
  if observations.fidelity is None:
    return np.ones(len(observations))
  return observations.fidelity


def _data(
  observations: Observations, space: Space, coordinates: Coordinates
) -> tuple[Points, Data]:
  data = Data.of(observations, space)
  rows = _rows(space, coordinates, observations.mixtures, shares_of(observations))
  return _points(rows, len(data.residuals)), data


def _points(rows: Float[np.ndarray, "n d+1"], size: int) -> Points:
  return Points(process_lib.fill(rows, size), process_lib.fill(np.ones(len(rows)), size))


def _rows(space: Space, coordinates: Coordinates, points, fidelity) -> Float[np.ndarray, "n d+1"]:
  if coordinates not in get_args(Coordinates):
    raise ValueError(f"coordinates are 'raw' or 'sqrt', not {coordinates!r}")
  points = space.check(points)
  shares = np.broadcast_to(np.asarray(fidelity, np.float64), len(points))
  if (bad := ~((shares >= 0) & (shares <= 1))).any():
    raise ValueError(
      f"fidelity {shares[np.argmax(bad)]} is no share of the target's cost: "
      "divide every budget by that of the target"
    )
  features = np.sqrt(points) if coordinates == "sqrt" else points
  return np.concatenate([features, shares[:, None]], axis=1)


def _typical_lengths(space: Space, coordinates: Coordinates) -> Float[np.ndarray, " d"]:
  """For each coordinate, the root mean square distance of two random points on its axis."""
  sizes = np.array([len(axis.coordinates) for axis in space.axes], np.float64)
  if coordinates == "sqrt":
    logs = scipy.special.gammaln(sizes) - scipy.special.gammaln(sizes + 0.5)
    squared = 2 - 2 * sizes * (scipy.special.gamma(1.5) * np.exp(logs)) ** 2
  else:
    squared = 2 * (sizes - 1) / (sizes * (sizes + 1))
  # An axis of one coordinate has no distances; its length-scale is without effect.
  return np.sqrt(np.maximum(squared, 0.01))[space.block]


def _split(points: Points) -> tuple[Points, Array]:
  return Points(points.features[:, :-1], points.real), points.features[:, -1]


def _process(values, points: Points, variance) -> tinygp.GaussianProcess:
  dim = points.features.shape[1] - 1
  amplitude, bias_amplitude, power, noise = jnp.asarray(values)[2 * dim :]
  target = Matern52(jnp.asarray(values)[:dim], amplitude)
  bias = Matern52(jnp.asarray(values)[dim : 2 * dim], bias_amplitude)
  kernel = LinearTruncated(target, bias, power)
  return process_lib.gaussian_process(kernel, points, noise, variance)


@jax.jit
@jax.value_and_grad
def _negative_log_posterior(z, medians, spreads, points, residuals, variance):
  """In z, the log-sds from the prior medians, the prior is a standard normal."""
  process = _process(jnp.exp(medians + spreads * z), points, variance)
  return 0.5 * jnp.sum(z**2) - process_lib.log_marginal(process, residuals)


@jax.jit
def _condition(values, points, residuals, variance):
  process = _process(values, points, variance)
  weights = posterior.weights(process, residuals)
  return process, weights, process_lib.log_marginal(process, residuals)


@jax.jit
def _covariance_with_target(process, points):
  at_target = Points(points.features.at[:, -1].set(1.0), points.real)
  here, there = (
    process.solver.solve_triangular(process.kernel(process.X, p)) for p in (points, at_target)
  )
  # At s = 1 the bias is gone, so the prior covariance is the target's own variance.
  return (process.kernel(at_target) - jnp.sum(here * there, axis=0),)
