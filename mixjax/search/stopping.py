"""What another batch of runs is worth, and when to stop."""

import dataclasses

import numpy as np
from jaxtyping import Float
from scipy.linalg import solve_triangular

from mixjax.search.acquire import choose_batch
from mixjax.search.calibration import distinct
from mixjax.search.space import Key, generator
from mixjax.search.surrogate import Surrogate
from mixjax.search.total import Total

# Different mixtures a weight below which a study is too small: d of them pin down a linear law of
# d weights, and as many again tell whether it holds. MixAtlas draws as many at random.
RUNS_PER_WEIGHT = 2

# Draws of how the next runs may come out, and points whose posterior is asked for at a time.
SAMPLES, CHUNK = 2048, 128


@dataclasses.dataclass(frozen=True)
class Gain:
  """What `count` more runs are expected to add to the best posterior mean, now `best` (with `sd`).

  All in score units; `error` is the standard error of the simulation, `noise` the noise of one run.
  `runs` different mixtures of `weights` weights were known.
  """

  count: int
  mean: float
  error: float
  best: float
  sd: float
  noise: float
  runs: int
  weights: int


@dataclasses.dataclass(frozen=True)
class Verdict:
  """Whether to stop, and the numbers that say so."""

  stop: bool
  reason: str


def run_noise(surrogate: Surrogate | Total) -> float:
  """The noise sd of a typical run, in score units: the fitted one and the median stated error."""
  stated = np.median(surrogate.data.variance[: surrogate.count])
  return float(np.hypot(surrogate.noise_sd, surrogate.data.scale * np.sqrt(stated)))


def expected_gain(
  surrogate: Surrogate | Total,
  candidates: Float[np.ndarray, "m d"],
  count: int,
  *,
  pending: Float[np.ndarray, "p d"] | None = None,
  samples: int = SAMPLES,
  key: Key = 0,
) -> Gain:
  """The knowledge gradient of the batch that `choose_batch` takes from `candidates` (not yet run).

  The batch's results are drawn from the joint posterior, `samples` times; each moves the posterior
  mean of every candidate, run and pending mixture, and the gain is how much higher its maximum gets
  (Frazier et al., 2009, for a batch; no short list). With `pending` runs, it is what the batch adds
  to what they will bring. Hyper-parameters stay, so a surprise that would change them is not in it.

  One posterior of 128 points per 120 candidates: 4 s for 2000 candidates, 64 runs and a total of
  ten processes on one core. ValueError as for `choose_batch`.
  """
  space = surrogate.space
  pending = np.zeros((0, space.dim)) if pending is None else space.check(pending)
  chosen = candidates[choose_batch(surrogate, candidates, count, pending=pending)]
  told = np.concatenate([pending, chosen])
  runs = surrogate.data.rows[: surrogate.count]
  options = space.raise_to_floor(np.concatenate([candidates, pending, runs]))
  noise = run_noise(surrogate)
  root = np.linalg.cholesky(surrogate.joint(told)[1] + noise**2 * np.eye(len(told)))
  surprises = generator(key).standard_normal((len(told), samples))
  columns = np.arange(samples)
  # The mean of the leader before the batch, of the same mixture after it, and of the leader then.
  before, there, after = np.full((3, samples), -np.inf)
  best, sd = -np.inf, 0.0
  size = max(CHUNK, 2 * len(told)) - len(told)
  for part in (options[start : start + size] for start in range(0, len(options), size)):
    mean, covariance = surrogate.joint(np.concatenate([part, told]))
    mean, own, shared = mean[: len(part)], np.diag(covariance), covariance[len(part) :, : len(part)]
    if mean.max() > best:
      best, sd = float(mean.max()), float(np.sqrt(max(own[np.argmax(mean)], 0)))
    moves = solve_triangular(root, shared, lower=True).T
    old = mean[:, None] + moves[:, : len(pending)] @ surprises[: len(pending)]
    new = old + moves[:, len(pending) :] @ surprises[len(pending) :]
    leader = np.argmax(old, axis=0)
    leads = old[leader, columns] > before
    before = np.where(leads, old[leader, columns], before)
    there = np.where(leads, new[leader, columns], there)
    after = np.maximum(after, new.max(axis=0))
  # The old leader's own change is zero on average: without it the same mean has less error.
  gains = after - there
  return Gain(
    count,
    float(gains.mean()),
    float(gains.std() / np.sqrt(samples)),
    best,
    sd,
    noise,
    len(distinct(runs)),
    space.dim,
  )


def should_stop(gain: Gain, *, threshold: float | None = None) -> Verdict:
  """Stop once the next batch gains less than `threshold`, in score units.

  None is noise / sqrt(count): the error that the whole batch, spent on one mixture, would still
  leave in its score, so that a smaller gain could not be shown by it. (The noise of one run was
  tried and stops too soon: with a third of an sd of the scores to gain.) Two standard errors of the
  simulation count for going on. With fewer than two different mixtures a weight the surrogate is
  not trusted to say that nothing is left.
  """
  needed = RUNS_PER_WEIGHT * gain.weights
  if gain.runs < needed:
    return Verdict(
      False,
      f"Go on: {gain.runs} different mixtures of {gain.weights} weights are too few to tell what "
      f"is left to gain; {needed} are the least.",
    )
  limit, ground = threshold, "the threshold"
  if limit is None:
    limit, ground = gain.noise / np.sqrt(gain.count), "what as many repeats of one mixture resolve"
  stop = bool(gain.mean + 2 * gain.error < limit)
  return Verdict(
    stop,
    f"{'Stop' if stop else 'Go on'}: {gain.count} more runs are expected to raise the best "
    f"posterior mean, {gain.best:.4g} (sd {gain.sd:.2g}), by {gain.mean:.2g} (simulated to "
    f"{gain.error:.1g}), {'less' if stop else 'not clearly less'} than {limit:.2g}, {ground}.",
  )
