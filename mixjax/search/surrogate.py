"""A Gaussian process from mixtures to scores (paper, section 3.4; kernel and priors are ours).

The paper names no kernel. Ours is Matern-5/2 with a length-scale for each weight, in coordinates
and on a scale of scores that are learnt with it (`coordinates.py`, `warp.py`). With few runs in
many dimensions the most probable hyper-parameters are too sure of themselves, so predictions
average over draws from their posterior.
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, Int

from mixjax.search import coordinates as coordinates_lib
from mixjax.search import laplace, posterior, process
from mixjax.search import warp as warp_lib
from mixjax.search.coordinates import Coordinates
from mixjax.search.flat import FLAT
from mixjax.search.observations import Observations
from mixjax.search.process import JITTER, Data, Form, Points
from mixjax.search.space import Space

# Median and log-sd of the prior of an offset in coordinates.
OFFSET, OFFSET_SPREAD = 3e-3, 1.5
# The exponent of learnt coordinates lies between those of logarithm and square root; its logit is
# normal.
LARGEST_EXPONENT, EXPONENT_LOGIT, EXPONENT_SPREAD = 0.5, -1.0, 2.0
# Starts of the search, in prior sds: (length-scales, noise). The posterior can have several optima.
STARTS = ((0.0, 0.0), (-0.7, -1.0))

# Draws of the hyper-parameters, in mirrored pairs about the mode. From MANY runs on the data have
# settled them, and the mode alone predicts as well.
DRAWS, MANY = 16, 256
# From more runs, the search starts where MANY of them, evenly spaced, lead, and ends once a step
# gains less than this share: half the time with 512 of RegMix's runs, and the same error.
NEAR = 1e-6

# Fewer different scores cannot tell at which end they are uneven: their scale is not bent.
FEW = 8


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
  """`lengths` has one length-scale a weight, in sds of its coordinate over the space; `amplitude`
  and `noise` are sds, in sds of the scores. Other forms of kernel may have several amplitudes, and
  lengths of what they see instead of weights. `warp` bends the scale of the scores."""

  lengths: tuple[float, ...]
  amplitude: float | tuple[float, ...]
  noise: float
  coordinates: Coordinates = coordinates_lib.SQRT
  warp: float = 0.0


class Draw(eqx.Module):
  """One process conditioned on runs; stacked along a first axis for several."""

  lengths: Float[Array, " columns"]
  amplitude: Float[Array, "*terms"]
  noise: Float[Array, ""]
  exponent: Float[Array, ""]
  offset: Float[Array, ""]
  warp: Float[Array, ""]
  factor: Float[Array, "n n"]  # Cholesky factor of K + noise
  weights: Float[Array, " n"]  # (K + noise)^-1 warped residuals


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
  standardised scores; `draws` are stacked along their first axis. `evidence` is the log probability
  of those scores whatever the hyper-parameters (Laplace's approximation: 0.3 to 1.4 nats low on 16
  runs of two weights), None where there was no search for them or the mode alone was asked for.
  """

  space: Space
  hyper: Hyperparameters
  log_marginal: float
  draws: Draw
  data: Data
  count: int
  evidence: float | None = None
  form: Form = FLAT

  @property
  def noise_sd(self) -> float:
    """The fitted noise of one run with a mean score, over and above its stated standard error."""
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
    residuals, real = self.data.residuals[: self.count], np.ones(self.count)
    with process.exact():
      for draw in _each(self.draws):
        factor = draw.factor[: self.count, : self.count]
        inverse = scipy.linalg.solve_triangular(factor, np.eye(self.count), lower=True)
        variance = 1 / np.sum(inverse**2, axis=0)
        warped, _ = warp_lib.apply(residuals, real, draw.warp)
        warped_mean = warped - draw.weights[: self.count] * variance
        mean = warp_lib.mean(warped_mean, variance, draw.warp)
        means.append(np.asarray(mean))
        variances.append(np.asarray(warp_lib.covariance(variance, mean, mean, draw.warp)))
    mean, sd = np.mean(means, 0), np.sqrt(np.mean(variances, 0) + np.var(means, 0))
    inside = np.abs(residuals - mean) <= 1.96 * sd
    return LeaveOneOut(
      self.data.center + self.data.scale * mean, self.data.scale * sd, float(np.mean(inside))
    )

  def _run(self, program, points, size: int) -> list[np.ndarray]:
    with process.exact():
      reference = coordinates_lib.reference(self.space)
      filled = process.fill(points, size)
      answer = program(
        self.draws, self.data.rows, self.data.real, reference, filled, form=self.form
      )
      return [np.asarray(a)[: len(points)] for a in answer]


def fit(
  observations: Observations,
  space: Space,
  *,
  coordinates: Coordinates | None = None,
  warp: float | None = None,
  draws: int | None = None,
  form: Form = FLAT,
) -> Surrogate:
  """The processes that the runs make probable. Deterministic. ValueError if there is no run.

  `coordinates` and, from 8 different scores on, `warp` are learnt unless given. `draws` of the
  hyper-parameters are made around their mode (Laplace's approximation), an even number, or 1 for
  the mode alone; None is 16, and 1 from 256 runs on.
  """
  data = Data.of(observations, space)
  if draws is None:
    draws = DRAWS if len(observations) < MANY else 1
  if draws != 1 and (draws < 2 or draws % 2):
    raise ValueError(f"draws come in pairs, or there is one: not {draws}")
  reference = coordinates_lib.reference(space)
  if warp is None and len(np.unique(observations.scores)) < FEW:
    warp = 0.0
  learnt = (coordinates is None, warp is None)
  lengths_end, noise_end = form.size(space.dim)
  size = noise_end + 2 * learnt[0] + learnt[1]
  fixed = np.array([*dataclasses.astuple(coordinates or coordinates_lib.SQRT), warp or 0.0])

  def objective_of(data):
    arrays = (fixed, learnt, reference, *_arrays(data))
    return laplace.finite(lambda z: _negative_log_posterior(z, *arrays, form=form))

  starts = np.zeros((len(STARTS), size))
  starts[:, :lengths_end] = np.array(STARTS)[:, :1]
  starts[:, noise_end - 1] = np.array(STARTS)[:, 1]
  with process.exact():
    if len(observations) > MANY:
      some = Data.of(observations.only(_spaced(len(observations))), space)
      starts = laplace.lowest(objective_of(some), starts).x[None]
    objective = objective_of(data)
    best = laplace.lowest(objective, starts, ftol=NEAR if len(observations) > MANY else None)
    points, evidence = best.x[None], None
    if draws > 1:
      values, vectors = laplace.curvature(best.x, objective)
      points = np.concatenate([points, laplace.around(best.x, values, vectors, draws)])
      evidence = float(-best.fun - 0.5 * np.sum(np.log(values)))
    thetas = jax.vmap(lambda z: _unpack(z, fixed, learnt, data.residuals, data.real, form))(points)
    fitted = _conditioned(observations, space, data, thetas, form)
    return dataclasses.replace(fitted, evidence=evidence)


def condition(
  observations: Observations, space: Space, hyper: Hyperparameters, form: Form = FLAT
) -> Surrogate:
  """The process with given hyper-parameters. ValueError if there is no run."""
  data = Data.of(observations, space)
  columns = form.columns(data.rows).shape[1]
  if len(hyper.lengths) != columns:
    raise ValueError(f"{len(hyper.lengths)} length-scales for {columns} weights")
  given = (*dataclasses.astuple(hyper.coordinates), hyper.warp)
  with process.exact():
    thetas = tuple(np.array(v)[None] for v in (hyper.lengths, hyper.amplitude, hyper.noise, *given))
    return _conditioned(observations, space, data, thetas, form)


def _conditioned(observations, space: Space, data: Data, thetas, form: Form) -> Surrogate:
  """`thetas` are hyper-parameters: the mode, then the draws; the mode alone is its own draw."""
  reference = coordinates_lib.reference(space)
  draws, log_marginals = _condition(thetas, reference, *_arrays(data), form=form)
  if len(log_marginals) > 1:
    draws = jax.tree.map(lambda leaf: leaf[1:], draws)
  lengths, amplitude, noise, exponent, offset, bend = (np.asarray(v[0]).tolist() for v in thetas)
  amplitude = tuple(amplitude) if isinstance(amplitude, list) else amplitude
  hyper = Hyperparameters(tuple(lengths), amplitude, noise, Coordinates(exponent, offset), bend)
  log_marginal = float(log_marginals[0])
  return Surrogate(space, hyper, log_marginal, draws, data, len(observations), form=form)


def _spaced(count: int) -> Int[np.ndarray, " many"]:
  return np.linspace(0, count - 1, MANY).round().astype(int)


def _each(draws: Draw) -> list[Draw]:
  """Draws that are stacked, one by one."""
  leaves, tree = jax.tree.flatten(draws)
  return [tree.unflatten(row) for row in zip(*map(np.asarray, leaves), strict=True)]


def _arrays(data: Data):
  return data.rows, data.real, data.residuals, data.variance


def _unpack(z, fixed, learnt: tuple[bool, bool], residuals, real, form: Form):
  """Lengths, amplitude, noise, exponent, offset and warp from prior sds."""
  coordinates_learnt, warp_learnt = learnt
  exponent, offset, bend = map(jnp.asarray, fixed)
  if warp_learnt:
    z, last = z[:-1], z[-1]
    bend = warp_lib.from_normal(last, residuals, real)
  if coordinates_learnt:
    z, (first, second) = z[:-2], z[-2:]
    exponent = LARGEST_EXPONENT * jax.nn.sigmoid(EXPONENT_LOGIT + EXPONENT_SPREAD * first)
    offset = OFFSET * jnp.exp(OFFSET_SPREAD * second)
  return *form.unpack(z), exponent, offset, bend


def _features(theta, reference, rows, form: Form) -> Array:
  *_, exponent, offset, _ = theta
  mean, sd = coordinates_lib.spread(form.columns(reference), exponent, offset)
  return (coordinates_lib.transform(form.columns(rows), exponent, offset) - mean) / sd


def _process(theta, reference, rows, real, residuals, variance, form: Form):
  """The process, the residuals on its scale, and the log of the scale's slopes, summed."""
  lengths, amplitude, noise, *_, bend = theta
  points = Points(_features(theta, reference, rows, form), real)
  warped, slope = warp_lib.apply(residuals, real, bend)
  kernel = form.kernel(lengths, amplitude)
  found = process.gaussian_process(kernel, points, noise, variance * slope**2)
  return found, warped, jnp.sum(jnp.log(slope))


@jax.jit(static_argnames=("learnt", "form"))
@jax.value_and_grad
def _negative_log_posterior(
  z, fixed, learnt, reference, rows, real, residuals, variance, form=FLAT
):
  """In z, the prior sds from the medians, the prior is a standard normal."""
  theta = _unpack(z, fixed, learnt, residuals, real, form)
  found, warped, slopes = _process(theta, reference, rows, real, residuals, variance, form)
  return 0.5 * jnp.sum(z**2) - process.log_marginal(found, warped) - slopes


@jax.jit(static_argnames="form")
def _condition(thetas, reference, rows, real, residuals, variance, form):
  def one(theta):
    found, warped, slopes = _process(theta, reference, rows, real, residuals, variance, form)
    draw = Draw(*theta, found.solver.scale_tril, posterior.weights(found, warped))
    return draw, process.log_marginal(found, warped) + slopes

  return jax.lax.map(one, thetas)


def _cross(draw: Draw, rows, real, reference, points, form: Form):
  """Kernel, the points as it sees them, and their covariance with the runs: plain and whitened."""
  theta = (draw.lengths, draw.amplitude, draw.noise, draw.exponent, draw.offset, draw.warp)
  kernel = form.kernel(draw.lengths, draw.amplitude)
  seen = Points(_features(theta, reference, points, form), jnp.ones(len(points)))
  cross = kernel(seen, Points(_features(theta, reference, rows, form), real))
  return kernel, seen, cross, solve_triangular(draw.factor, cross.T, lower=True)


@jax.jit(static_argnames="form")
def _predict(draws, rows, real, reference, points, form):
  def one(draw):
    kernel, seen, cross, whitened = _cross(draw, rows, real, reference, points, form)
    variance = jnp.maximum(posterior.variance(kernel, seen, whitened), 0)
    mean = warp_lib.mean(cross @ draw.weights, variance, draw.warp)
    return mean, warp_lib.covariance(variance, mean, mean, draw.warp)

  means, variances = jax.lax.map(one, draws)
  return means.mean(0), variances.mean(0) + means.var(0)


@jax.jit(static_argnames="form")
def _joint(draws, rows, real, reference, points, form):
  def one(draw):
    kernel, seen, cross, whitened = _cross(draw, rows, real, reference, points, form)
    covariance = posterior.covariance(kernel, seen, seen, whitened, whitened)
    mean = warp_lib.mean(cross @ draw.weights, jnp.diag(covariance), draw.warp)
    return mean, warp_lib.covariance(covariance, mean[:, None], mean, draw.warp)

  means, covariances = jax.lax.map(one, draws)
  about = means - means.mean(0)
  return means.mean(0), covariances.mean(0) + about.T @ about / len(means)
