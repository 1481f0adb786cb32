"""What the early part of a run's learning curve says of its final score, learnt per benchmark.

The score at a checkpoint is a weighted sum of the run's earlier ones plus a process over mixtures
(Kennedy and O'Hagan, 2000, with a slope for each earlier checkpoint). As a run can only lack its
last checkpoints, the likelihood falls into one regression a checkpoint, each learnt from all runs
that got there, and stopping runs by their curves so far biases none of them (Anderson, 1957).
Forecasts from processes fitted apart were half an sd of the scores too high where only the better
half of 36 runs went on, at a correlation of 0.99: those that finish are those that began well.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from mixjax.search.benchmarks import Benchmarks, fit_benchmarks
from mixjax.search.curves import Curves
from mixjax.search.objective import Objective, ScoreVectors
from mixjax.search.observations import Observations
from mixjax.search.slopes import fit_linear, slopes_on
from mixjax.search.space import Space
from mixjax.search.surrogate import Surrogate

# The score that stands for a stopped run lies as far off as if the run took off this share of the
# prior variance of its final score, where it takes off less: several sds off it would spoil the
# scale that scores have for a search.
LEAST_INFORMATION = 0.2

# Standard error, in sds of a part, of one that a stopped run does not know.
UNKNOWN = 1e3


@dataclasses.dataclass(frozen=True, eq=False)
class Link:
  """The scores at one checkpoint given those at the k before it, for each of b benchmarks.

  `innovations` are the processes of what the `slopes` times the earlier scores leave; `error` is
  the covariance of the slopes. `expected` tells, for each benchmark with slopes, the earlier scores
  that the runs around a mixture had: it is from there that a slope measures.
  """

  slopes: Float[np.ndarray, "k b"]
  error: Float[np.ndarray, "b k k"]
  innovations: Benchmarks
  expected: tuple[tuple[Surrogate, ...], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Finals:
  """Final scores of m runs as they would be measured (noise included), forecast from curves."""

  names: tuple[str, ...]
  mean: Float[np.ndarray, "m b"]
  covariance: Float[np.ndarray, "m b b"]

  @property
  def sd(self) -> Float[np.ndarray, "m b"]:
    return np.sqrt(np.diagonal(self.covariance, axis1=1, axis2=2))

  def of(self, objective: Objective) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Mean and sd of the objective, higher is better."""
    weights = objective.over(self.names)
    variance = np.einsum("b,mbc,c->m", weights, self.covariance, weights)
    return self.mean @ weights, np.sqrt(np.maximum(variance, 0))


@dataclasses.dataclass(frozen=True, eq=False)
class Chain:
  """One link a checkpoint; the first has no slopes."""

  curves: Curves
  links: tuple[Link, ...]

  @property
  def space(self) -> Space:
    return self.links[0].innovations.space

  def slopes(self) -> Float[np.ndarray, "b t t"]:
    """Row k has what the scores at checkpoint k owe to each earlier one."""
    size = len(self.links)
    slopes = np.zeros((len(self.curves.names), size, size))
    for place, link in enumerate(self.links):
      slopes[:, place, :place] = link.slopes.T
    return slopes

  def reliance(self, reached: int) -> Float[np.ndarray, "reached b"]:
    """What the expected final score owes to each of the first `reached` scores (not yet all).

    All 0 where the runs do not show that this part of a curve says anything.
    """
    slopes, size = self.slopes(), len(self.links)
    later = np.eye(size - reached) - slopes[:, reached:, reached:]
    return np.linalg.solve(later, slopes[:, reached:, :reached])[:, -1].T

  def effects(self) -> Float[np.ndarray, "t b"]:
    """How much of each checkpoint's innovation is in the final score; 1 at the last."""
    slopes, size = self.slopes(), len(self.links)
    last = np.broadcast_to(np.eye(size)[:, -1:], (len(slopes), size, 1))
    return np.linalg.solve(np.eye(size) - slopes.transpose(0, 2, 1), last)[:, :, 0].T

  def final(self, running: Curves) -> Finals:
    """The final scores of `running` (any prefix, none at all included) given all that is known.

    The errors of the slopes count too, so a prefix far from those of similar runs leaves more
    doubt. Finished runs keep their scores. ValueError if names or steps are others.
    """
    if running.names != self.curves.names or not np.array_equal(running.steps, self.curves.steps):
      raise ValueError(
        f"curves of {list(running.names)} at steps {running.steps.tolist()} are not such as were "
        f"learnt from, of {list(self.curves.names)} at steps {self.curves.steps.tolist()}"
      )
    mixtures = self.space.check(running.mixtures)
    scores, sd = running.scores.copy(), np.zeros(running.scores.shape)
    count, size, benchmarks = scores.shape
    doubt = np.zeros((count, benchmarks, size, size))
    for k, link in enumerate(self.links):
      unknown = running.reached <= k
      for b, process in enumerate(link.innovations.processes):
        slopes, error = link.slopes[:, b], link.error[b]
        mean, latent = process.predict(mixtures)
        # The mean and the slopes were fitted too.
        runs = process.count
        fitted = runs / max(runs - 1 - np.count_nonzero(slopes), 1)
        variance = fitted * (latent**2 + process.noise_sd**2)
        if slopes.any():
          around = np.stack([one.predict(mixtures)[0] for one in link.expected[b]], axis=1)
          apart = scores[:, :k, b] - around
          mean = mean + scores[:, :k, b] @ slopes
          variance = variance + np.einsum("ni,ij,nj->n", apart, error, apart)
          variance = variance + np.einsum("nij,ij->n", doubt[:, b, :k, :k], error)
        scores[unknown, k, b] = mean[unknown]
        sd[unknown, k, b] = np.sqrt(variance[unknown])
        inherited = doubt[unknown, b, :k, :k] @ slopes
        doubt[unknown, b, k, :k] = doubt[unknown, b, :k, k] = inherited
        doubt[unknown, b, k, k] = inherited @ slopes + variance[unknown]
    shares = sd * self.effects()
    covariance = np.einsum("ntb,tbc,ntc->nbc", shares, self._correlations, shares)
    return Finals(running.names, scores[:, -1], covariance)

  def predict(
    self, points: Float[np.ndarray, "m d"], objective: Objective
  ) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Posterior mean and sd of the noise-free final objective at mixtures, from all curves."""
    effects = self.effects() * objective.over(self.curves.names)
    processes = [link.innovations.processes for link in self.links]
    found = np.array([[one.predict(points) for one in row] for row in processes])
    mean, sd = found.transpose(2, 3, 0, 1)
    return np.sum(mean * effects, axis=(1, 2)), np.sqrt(self._variance(sd * effects))

  def observations(self, objective: Objective) -> Observations:
    """All runs for a search at the final checkpoint, the stopped ones by what they do know.

    The final score is the sum of the checkpoints' innovations times their `effects`, independent
    processes that a search fits as `parts`. A stopped run states the parts it has, the others with
    a huge error: what the search then believes is the joint posterior of curves and final scores.

    A forecast must not be passed off as a score: it holds the process at its mixture already. So
    for a search that sees no parts, `scores` and `stderr` of a stopped run are the observation that
    takes its belief without this run, N(m, s^2), to the one with it, N(f, v): with information
    r = 1 - v / s^2, the score m + (f - m) / r with variance v / r (r at least 0.2 in the first).
    Errors of such observations count as independent, though stopped runs on similar mixtures lack
    the same thing. Runs that say nothing are left out, and pending.
    """
    curves, effects = self.curves, self.effects() * objective.over(self.curves.names)
    mean, latent, noise = self._left_out()
    known = (curves.reached[:, None] > np.arange(len(self.links)))[:, :, None]
    told = mean.copy()
    for k, link in enumerate(self.links):
      told[curves.reached > k, k] = link.innovations.runs.scores
    total = np.maximum(latent + noise**2, np.finfo(float).tiny)
    gain = np.where(known, latent / total, 0)
    before, after = (np.sum(part * effects, axis=(1, 2)) for part in (mean, gain * (told - mean)))
    prior = self._variance(np.sqrt(latent) * effects)
    left = self._variance(np.sqrt(latent * (1 - gain)) * effects)
    information = 1 - np.divide(left, prior, out=np.ones(len(left)), where=prior > 0)
    safe = np.maximum(information, LEAST_INFORMATION)
    parts = told * effects
    # What is missing to the score goes to the parts that the run does not know.
    share = np.where(known, 0, effects**2 * np.maximum(latent, np.finfo(float).tiny))
    share = share / np.maximum(share.sum(axis=(1, 2), keepdims=True), np.finfo(float).tiny)
    missing = before + after / safe - parts.sum(axis=(1, 2))
    parts = parts + share * missing[:, None, None]
    scales = [[one.data.scale for one in link.innovations.processes] for link in self.links]
    errors = np.where(known, 0, UNKNOWN * np.abs(effects) * scales)
    left = left / np.maximum(information, np.finfo(float).eps)
    stderr = np.sqrt(np.where(curves.finished, self._variance(noise * effects), left))
    kept = curves.finished | (information > 0)
    parts, errors = (array[kept][:, effects != 0] for array in (parts, errors))
    return Observations(
      curves.mixtures[kept],
      parts.sum(axis=1),
      stderr[kept],
      pending=curves.mixtures[~kept],
      parts=parts,
      part_stderr=errors,
    )

  @property
  def _correlations(self) -> Float[np.ndarray, "t b b"]:
    return np.stack([link.innovations.correlation for link in self.links])

  def _variance(self, shares: Float[np.ndarray, "*n t b"]) -> Float[np.ndarray, "*n"]:
    """Of the sum of all innovations with these sds."""
    return np.einsum("...tb,tbc,...tc->...", shares, self._correlations, shares)

  def _left_out(self):
    """Mean and variance `float[n, t, b]` of each run's noise-free innovations given the other runs,
    and the noise sd `float[t, b]`."""
    mean, latent = np.zeros((2, *self.curves.scores.shape))
    noise = np.zeros(mean.shape[1:])
    for k, link in enumerate(self.links):
      there = self.curves.reached > k
      for b, process in enumerate(link.innovations.processes):
        noise[k, b] = process.noise_sd
        others = process.leave_one_out()
        mean[there, k, b] = others.mean
        latent[there, k, b] = np.maximum(others.sd**2 - noise[k, b] ** 2, 0)
        if not there.all():
          mean[~there, k, b], sd = process.predict(self.curves.mixtures[~there])
          latent[~there, k, b] = sd**2
    return mean, latent, noise


def fit_curves(curves: Curves, space: Space) -> Chain:
  """The chain that all `curves` make probable, stopped and running ones included.

  Three fits of a process a checkpoint and benchmark: 0.2 s for 36 runs on one core, once compiled.
  ValueError if no run is finished.
  """
  if not curves.finished.any():
    raise ValueError(
      f"none of {len(curves)} runs reached the final checkpoint, step {curves.steps[-1]:g}: what "
      "curves say of final scores is learnt from some that finish"
    )
  curves = dataclasses.replace(curves, mixtures=space.check(curves.mixtures))
  return Chain(curves, tuple(_link(curves, place, space) for place in range(len(curves.steps))))


def _link(curves: Curves, place: int, space: Space) -> Link:
  there = curves.reached > place
  mixtures, scores = curves.mixtures[there], curves.scores[there]
  earlier = scores[:, :place]
  found = [
    slopes_on(mixtures, early.T, late, space)
    for early, late in zip(earlier.transpose(2, 0, 1), scores[:, place].T, strict=True)
  ]
  slopes, errors, expected = zip(*found, strict=True)
  slopes = np.stack(slopes, axis=1)
  left = scores[:, place] - np.einsum("nkb,kb->nb", earlier, slopes)
  innovations = fit_benchmarks(ScoreVectors(curves.names, mixtures, left), space, fit_linear)
  return Link(slopes, np.stack(errors), innovations, expected)
