"""Olmix: a log-linear law of the loss, minimised near a prior and within the data supply.

2602.12237; what it shares with the other laws (mixing_laws.py, bimix.py) is here too.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import numpy as np
import scipy.optimize
from jaxtyping import Float, Int
from scipy.special import rel_entr

from mixjax.search.observations import SAME, Observations
from mixjax.search.policies import Recommendation, pool_of, random_unseen
from mixjax.search.space import Key, Space, candidates

# Where the space has no pool, random designs are drawn from this many candidates.
DESIGN = 2000

# Of all starts, those with the lowest loss are followed to their minimum.
POLISHED = 12
# Weight of the slopes' variance. It decides only what the runs leave open: a slope without evidence
# is the mean slope, so a single run gives a constant law.
RIDGE = 1e-8
# Bounds of floor and slopes; losses are in standard deviations. A loss can fall e-fold for a third
# of a percent of a domain, but none is believed to rise 20 standard deviations above the floor.
FLOOR_BOUNDS = (-10.0, 10.0)
SLOPE_BOUNDS = (-300.0, 3.0)

# The least pull: enough to make the answer unique, too little to change what it is worth.
LEAST_PULL = 1e-6


@dataclasses.dataclass(frozen=True, eq=False)
class LogLinear:
  """The law loss(p) = floor + exp(slope'p), where loss = (center - score) / scale."""

  floor: float
  slope: Float[np.ndarray, " d"]
  center: float
  scale: float

  def __call__(self, points: Float[np.ndarray, "m d"]) -> Float[np.ndarray, " m"]:
    """Scores, in their own units, higher is better."""
    return self.center - self.scale * self.loss(points)

  def loss(self, points: Float[np.ndarray, "m d"]) -> Float[np.ndarray, " m"]:
    """Lower is better, in standard deviations of the scores."""
    return self.floor + np.exp(points @ self.slope)


def fit_log_linear(observations: Observations, *, huber: float = 0.05) -> LogLinear:
  """Olmix's law of one score as a function `float[m, d] -> float[m]`. ValueError without a run.

  Published: exp(a) + exp(A'p) for each task, Huber loss, L-BFGS from 300 starts. Scores here have
  no natural zero and any scale. So the law describes minus the standardised score, its floor may
  have either sign, and `huber` is in standard deviations of the scores: the published 0.02 is in
  nats, which on RegMix's losses is 0.02 to 0.06.
  """
  loss, _, _ = standardise(observations)
  rng = np.random.default_rng(0)
  floors = loss.min() - np.geomspace(0.01, 10, 10)
  shapes = rng.normal(size=(30, observations.mixtures.shape[1]))
  starts = [[floor, *np.log(loss.mean() - floor) + shape] for floor in floors for shape in shapes]
  return fit_from(np.array(starts), observations, huber)


def fit_from(
  starts: Float[np.ndarray, "s 1+d"], observations: Observations, huber: float
) -> LogLinear:
  """The law of least Huber loss reached from `starts`: in each row the floor, then the slopes."""
  loss, center, scale = standardise(observations)
  mixtures = observations.mixtures
  bounds = [FLOOR_BOUNDS] + [SLOPE_BOUNDS] * mixtures.shape[1]
  # The first start is the constant law.
  flat = [[-1.0] + [0.0] * mixtures.shape[1]]
  starts = np.clip(np.concatenate([flat, starts]), *np.transpose(bounds))

  def objective(law):
    excess = np.exp(mixtures @ law[1:])
    error = law[0] + excess - loss
    slack = np.maximum(np.abs(error) - huber, 0)
    pull = np.clip(error, -huber, huber) / len(loss)
    spread = law[1:] - law[1:].mean()
    value = np.sum(error**2 - slack**2) / 2 / len(loss) + RIDGE * spread @ spread
    return value, np.append(pull.sum(), (pull * excess) @ mixtures + 2 * RIDGE * spread)

  first = np.array([objective(start)[0] for start in starts])
  best = None
  for start in starts[np.argsort(first, kind="stable")[:POLISHED]]:
    options = {"maxiter": 1000, "ftol": 1e-11, "gtol": 1e-8}
    found = scipy.optimize.minimize(
      objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options
    )
    if best is None or found.fun < best.fun:
      best = found
  return LogLinear(float(best.x[0]), best.x[1:], center, scale)


def standardise(observations: Observations) -> tuple[Float[np.ndarray, " n"], float, float]:
  """Losses (center - score) / scale of mean 0 and variance 1, center and scale.

  Of equal scores (or one) the losses and the scale are 0, so that every law is constant.
  """
  scores = observations.scores
  if not len(scores):
    raise ValueError("no finished run to fit")
  center, scale = float(scores.mean()), float(scores.std())
  if scale <= 1e-12 * np.abs(scores).max():
    return np.zeros(len(scores)), center, 0.0
  return (center - scores) / scale, center, scale


@dataclasses.dataclass(frozen=True)
class Olmix:
  """A random design, then the mixture of least predicted loss + `pull` KL(mixture || prior).

  `pull` is in standard deviations of the scores (published: 0.05 in bits a byte). `prior` is
  `{coordinate: weight}`, uniform if None; Olmix uses the natural one. `caps` are the largest
  weights the data can supply, `{coordinate: weight}`: repetitions allowed x rows there are / rows
  of the run. `over` says where the answer is sought: the space's pool or, by an exact solver, the
  whole simplex; None is the pool if there is one. Published: at least 3 (d + 1) runs, one law a
  task; here the objective is one score, and so has one law.
  """

  space: Space
  prior: Mapping[str, float] | None = None
  pull: float = 0.05
  caps: Mapping[str, float] | None = None
  over: Literal["pool", "simplex"] | None = None

  def __post_init__(self):
    check_over(self.over)
    if not self.pull >= 0:
      raise ValueError(f"pull is not negative, not {self.pull}")
    supported = self._prior() > 0
    if (self.space.lower[~supported] > 0).any():
      name = self.space.names[int(np.argmax(~supported & (self.space.lower > 0)))]
      raise ValueError(f"the prior of {name!r} is 0 but its lower bound is not: give it a prior")
    check_room(self.space, supported * limits(self.space, self.caps), "prior and caps")

  def ask(self, observations: Observations, count: int, key: Key) -> Float[np.ndarray, "count d"]:
    known = observations.at_target().known()
    return random_design(self.space, known, count, key, limits(self.space, self.caps))

  def recommend(self, observations: Observations) -> Recommendation:
    runs = observations.at_target()
    law = fit_log_linear(runs)
    prior, upper = self._prior(), limits(self.space, self.caps)
    if in_pool(self.space, self.over):
      pool = within(pool_of(self.space), upper)
      cost = law.loss(pool) + self.pull * rel_entr(pool, prior).sum(axis=1)
      if not np.isfinite(cost).any():
        raise ValueError("every candidate has weight where the prior has none")
      mixture = pool[np.argmin(cost)]
    else:
      mixture = least_loss(law, self.space, prior, self.pull, upper)
    return advise(mixture, law, runs)

  def _prior(self) -> Float[np.ndarray, " d"]:
    return self.space.uniform() if self.prior is None else self.space.from_dict(self.prior)


def least_loss(
  law: LogLinear,
  space: Space,
  prior: Float[np.ndarray, " d"],
  pull: float,
  upper: Float[np.ndarray, " d"],
) -> Float[np.ndarray, " d"]:
  """argmin exp(slope'p) + pull KL(p || prior) within the bounds: Olmix's exact proposer.

  exp(s) is the largest of its tangents, u s - u log u + u at u = exp(s). At a given u the best p is
  the prior tilted by exp(-u slope / pull); u itself is where u = exp(slope'p), a monotone equation.
  """
  pull = max(pull, LEAST_PULL)
  with np.errstate(divide="ignore"):
    log_prior = np.log(prior)

  def tilted(log_u: float) -> np.ndarray:
    tilt = log_prior - np.exp(log_u) * law.slope / pull
    return fill(tilt, np.ones(space.dim), space.lower, upper, space.block)

  extremes = [law.slope[space.block == b] for b in range(len(space.axes))]
  low, high = (sum(end(slope) for slope in extremes) for end in (np.min, np.max))
  if high - low < 1e-12:
    return tilted(low)
  margin = 1e-9 * (1 + abs(low) + abs(high))
  root = scipy.optimize.brentq(
    lambda log_u: log_u - law.slope @ tilted(log_u), low - margin, high + margin, xtol=1e-13
  )
  return tilted(root)


def fill(
  levels: Float[np.ndarray, " d"],
  rates: Float[np.ndarray, " d"],
  lower: Float[np.ndarray, " d"],
  upper: Float[np.ndarray, " d"],
  block: Int[np.ndarray, " d"],
) -> Float[np.ndarray, " d"]:
  """Weights exp((levels - nu) / rates), clipped to bounds, with nu such that each axis sums to 1.

  That is the form of every minimum of a separable convex loss here. A level of -inf is no weight.
  """
  weights = np.zeros(len(levels))
  for axis in range(block.max() + 1):
    here = np.flatnonzero((block == axis) & (levels > -np.inf))
    level, rate, low, high = (x[here] for x in (levels, rates, lower, upper))

    def at(nu, level=level, rate=rate, low=low, high=high):
      # Beyond exp(0) every weight is at its upper bound anyway.
      return np.clip(np.exp(np.minimum((level - nu) / rate, 0)), low, high)

    least = np.min(level - rate * np.log(np.maximum(high, 1e-18)))
    most = np.max(level - rate * np.log(np.maximum(low, 1e-18)))
    if at(least).sum() > 1:
      root = scipy.optimize.brentq(lambda nu, at=at: at(nu).sum() - 1, least - 1, most + 1)
      share = at(root)
    else:
      share = at(least)
    # What rounding left over goes where there is room.
    missing = 1 - share.sum()
    room = high - share if missing > 0 else share - low
    weights[here] = share + missing * room / max(room.sum(), np.finfo(float).tiny)
  return weights


def limits(space: Space, caps: Mapping[str, float] | None) -> Float[np.ndarray, " d"]:
  """The upper bound of every weight. ValueError names a cap that nothing can obey."""
  upper = np.ones(space.dim)
  for name, cap in (caps or {}).items():
    if name not in space.names:
      raise ValueError(f"cap on {name!r}, no coordinate of the {space.name} axis {space.names}")
    place = space.names.index(name)
    if not cap >= space.lower[place]:
      raise ValueError(f"the cap {cap} of {name!r} is under its bound {space.lower[place]:.3g}")
    upper[place] = min(cap, 1.0)
  check_room(space, upper, "caps")
  return upper


def check_room(space: Space, upper: Float[np.ndarray, " d"], what: str) -> None:
  for number, axis in enumerate(space.axes):
    if (room := upper[space.block == number].sum()) < 1 - SAME:
      raise ValueError(
        f"the {what} of the {axis.name} axis leave room for {room:.3g} of the weight, not for all "
        "of it: raise a cap or train on fewer samples"
      )


def check_over(over: str | None) -> None:
  if over not in ("pool", "simplex", None):
    raise ValueError(f"over is 'pool', 'simplex' or None, not {over!r}")


def in_pool(space: Space, over: str | None) -> bool:
  return space.pool is not None if over is None else over == "pool"


def within(
  pool: Float[np.ndarray, "n d"], upper: Float[np.ndarray, " d"]
) -> Float[np.ndarray, "m d"]:
  """The candidates that keep to the caps; ValueError if none does."""
  kept = pool[(pool <= upper + SAME).all(axis=1)]
  if not len(kept):
    raise ValueError(f"none of {len(pool)} candidates keeps to the caps: widen pool or caps")
  return kept


def random_design(
  space: Space,
  known: Float[np.ndarray, "n d"],
  count: int,
  key: Key,
  upper: Float[np.ndarray, " d"] | None = None,
) -> Float[np.ndarray, "count d"]:
  """`random_unseen`, within caps and also where the space has no pool."""
  pool = candidates(space, DESIGN, key) if space.pool is None else space.pool
  pool = pool if upper is None else within(pool, upper)
  return random_unseen(dataclasses.replace(space, pool=pool), known, count, key)


def advise(mixture: Float[np.ndarray, " d"], predict, runs: Observations) -> Recommendation:
  """A recommendation judged by a law, which states no uncertainty."""
  (mean,) = predict(mixture[None])
  return Recommendation(mixture, float(mean), None, observed=runs.mean_at(mixture)[0])
