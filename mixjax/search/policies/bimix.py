"""BiMix, in the form that Olmix gives it: a power law of every weight on its own."""

import dataclasses
from typing import Literal

import numpy as np
import scipy.optimize
from jaxtyping import Float

from mixjax.search.observations import Observations
from mixjax.search.policies import Recommendation, pool_of
from mixjax.search.policies.olmix import (
  advise,
  check_over,
  fill,
  in_pool,
  random_design,
  standardise,
)
from mixjax.search.space import Key, Space

# Weights below this count as this much; zeros would make infinite losses.
FLOOR = 1e-3

# Exponents the fit starts from, the first is the published one, and the largest it may reach.
EXPONENTS = (1.0, 0.3, 0.1)
STEEPEST = 3.0

# A domain without effect still takes what the others have no use for.
NO_EFFECT = 1e-12


@dataclasses.dataclass(frozen=True, eq=False)
class PowerLaw:
  """loss(p) = offset + sum_i absent_i (max(p_i, FLOOR) / FLOOR)^-exponent_i.

  loss is (center - score) / scale; `absent` is what a domain adds when it is left out, and BiMix's
  factor F_i is absent_i FLOOR^exponent_i.
  """

  offset: float
  absent: Float[np.ndarray, " d"]
  exponent: Float[np.ndarray, " d"]
  center: float
  scale: float

  def __call__(self, points: Float[np.ndarray, "m d"]) -> Float[np.ndarray, " m"]:
    """Scores, in their own units, higher is better."""
    return self.center - self.scale * self.loss(points)

  def loss(self, points: Float[np.ndarray, "m d"]) -> Float[np.ndarray, " m"]:
    """Lower is better, in standard deviations of the scores."""
    return self.offset + _decay(np.asarray(points), self.exponent) @ self.absent


def fit_power_law(observations: Observations) -> PowerLaw:
  """y = sum_i F_i max(p_i, floor)^-a_i by bounded least squares, F, a >= 0, as a function
  `float[m, d] -> float[m]`. ValueError without a run.

  BiMix (2405.14908) has one share for each domain's own loss, Olmix sums them for any other. Its
  floor of 1e-12 lets a zero weight add 1e12; here it is 1e-3. As scores have no natural zero, the
  law describes minus the standardised score and has a constant besides.
  """
  loss, center, scale = standardise(observations)
  mixtures = observations.mixtures
  dim = mixtures.shape[1]
  logs = np.log(np.maximum(mixtures, FLOOR) / FLOOR)

  def residuals(law):
    return law[0] + _decay(mixtures, law[1 + dim :]) @ law[1 : 1 + dim] - loss

  def jacobian(law):
    decay = _decay(mixtures, law[1 + dim :])
    return np.hstack([np.ones((len(loss), 1)), decay, -logs * decay * law[1 : 1 + dim]])

  lower = np.concatenate([[-np.inf], np.zeros(2 * dim)])
  upper = np.concatenate([np.full(1 + dim, np.inf), np.full(dim, STEEPEST)])
  best = None
  for exponent in EXPONENTS:
    # At given exponents the law is linear, so its best factors are known.
    decay = _decay(mixtures, np.full(dim, exponent))
    absent, _ = scipy.optimize.nnls(decay - decay.mean(axis=0), loss - loss.mean())
    start = np.concatenate(
      [[loss.mean() - decay.mean(axis=0) @ absent], absent, np.full(dim, exponent)]
    )
    found = scipy.optimize.least_squares(
      residuals, start, jacobian, (lower, upper), x_scale="jac", max_nfev=200
    )
    if best is None or found.cost < best.cost:
      best = found
  return PowerLaw(float(best.x[0]), best.x[1 : 1 + dim], best.x[1 + dim :], center, scale)


@dataclasses.dataclass(frozen=True)
class BiMix:
  """A random design, then the mixture of least predicted loss.

  `over` says where it is sought: the space's pool or the whole simplex, where every weight is at
  least the law's FLOOR and the minimum is exact; None is the pool if there is one.
  """

  space: Space
  over: Literal["pool", "simplex"] | None = None

  def __post_init__(self):
    check_over(self.over)

  def ask(self, observations: Observations, count: int, key: Key) -> Float[np.ndarray, "count d"]:
    return random_design(self.space, observations.at_target().known(), count, key)

  def recommend(self, observations: Observations) -> Recommendation:
    runs = observations.at_target()
    law = fit_power_law(runs)
    if in_pool(self.space, self.over):
      pool = pool_of(self.space)
      return advise(pool[np.argmin(law.loss(pool))], law, runs)
    return advise(least_loss(law, self.space), law, runs)


def least_loss(law: PowerLaw, space: Space) -> Float[np.ndarray, " d"]:
  """The mixture of least loss whose weights reach FLOOR: the law is convex there and separable.

  With one multiplier nu an axis, p_i^(a_i + 1) = a_i F_i / nu within the bounds.
  """
  gain = np.maximum(law.exponent * law.absent, NO_EFFECT)
  levels = np.log(gain) + law.exponent * np.log(FLOOR)
  lower = np.minimum(np.maximum(space.lower, FLOOR), space.uniform())
  return fill(levels, 1 + law.exponent, lower, np.ones(space.dim), space.block)


def _decay(points: np.ndarray, exponent: np.ndarray) -> np.ndarray:
  return (np.maximum(points, FLOOR) / FLOOR) ** -exponent
