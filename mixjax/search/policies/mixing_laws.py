"""Data Mixing Laws: an exponential law of the loss, minimised over halvings of the supply."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Literal

import numpy as np
from jaxtyping import Float

from mixjax.search.observations import SAME, Observations
from mixjax.search.policies import Recommendation, pool_of
from mixjax.search.policies.olmix import (
  LogLinear,
  advise,
  check_over,
  fit_from,
  in_pool,
  limits,
  random_design,
  standardise,
  within,
)
from mixjax.search.space import Key, Space

# A domain gets its cap, or that halved up to four times, or nothing.
SHARES = (1.0, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 0.0)

# Different sums of shares the search keeps apart; more means caps without a common measure.
MOST_SUMS = 20_000


def fit_mixing_law(observations: Observations, *, huber: float = 0.12) -> LogLinear:
  """L(r) = c + k exp(t'r) of one score (2403.16952) as a function `float[m, d] -> float[m]`.

  As weights sum to 1, k is a constant added to every slope: the law is Olmix's, and so are its
  units and its optimiser. What differs are the wider grid of starts (floor x k x random slopes, of
  which one, the published law's own domain, is negative; a score names none, so it is drawn) and
  the Huber threshold: the published 0.05 nats, on RegMix's losses 0.05 to 0.16 standard deviations.
  Not here: the laws over steps and sizes, and the published pipeline's last stage, an ensemble of
  networks chosen by its training error. ValueError without a run.
  """
  loss, _, _ = standardise(observations)
  dim = observations.mixtures.shape[1]
  rng = np.random.default_rng(0)
  slopes = rng.uniform(0, 0.1, (30, dim))
  own = rng.integers(dim, size=30)
  slopes[np.arange(30), own] = -rng.uniform(0, 1, 30)
  floors = loss.min() - np.geomspace(0.01, 10, 10)
  grid = itertools.product(floors, np.linspace(-10, 1, 20), slopes)
  return fit_from(
    np.array([[c, *(log_k + slope)] for c, log_k, slope in grid]), observations, huber
  )


@dataclasses.dataclass(frozen=True)
class MixingLaws:
  """A random design, then the mixture of least predicted loss.

  `over` says where it is sought: the space's pool, or the published grid on the simplex, where
  weights are `caps` (the largest that the data can supply, `{coordinate: weight}`, 1 if not named)
  halved up to four times; None is the pool if there is one. The law has no term that keeps a
  mixture near anything: where no cap or bound binds, the answer on the simplex is one-hot.
  """

  space: Space
  caps: Mapping[str, float] | None = None
  over: Literal["pool", "simplex"] | None = None

  def __post_init__(self):
    check_over(self.over)
    limits(self.space, self.caps)

  def ask(self, observations: Observations, count: int, key: Key) -> Float[np.ndarray, "count d"]:
    known = observations.at_target().known()
    return random_design(self.space, known, count, key, limits(self.space, self.caps))

  def recommend(self, observations: Observations) -> Recommendation:
    runs = observations.at_target()
    law = fit_mixing_law(runs)
    upper = limits(self.space, self.caps)
    if in_pool(self.space, self.over):
      pool = within(pool_of(self.space), upper)
      return advise(pool[np.argmin(law.loss(pool))], law, runs)
    mixture = np.zeros(self.space.dim)
    for axis in range(len(self.space.axes)):
      here = self.space.block == axis
      mixture[here] = halving_search(law.slope[here], upper[here])
    (mixture,) = self.space.raise_to_floor(mixture[None])
    return advise(mixture, law, runs)


def halving_search(
  slope: Float[np.ndarray, " m"], caps: Float[np.ndarray, " m"]
) -> Float[np.ndarray, " m"]:
  """The p of least slope'p whose weights are 0 or caps / 2^s, s = 0..4, but for one.

  That one, the domain of the largest cap, takes the rest and so has room for it if the caps have
  (published: the last domain, which can be too small). Exact at any m: of all choices for some
  domains that sum to the same, only the best can be part of the answer. ValueError if the caps
  make too many different sums.
  """
  rest = int(np.argmax(caps))
  others = np.delete(np.arange(len(caps)), rest)
  best: dict[float, tuple[float, tuple[float, ...]]] = {0.0: (0.0, ())}
  for domain in others:
    longer: dict[float, tuple[float, tuple[float, ...]]] = {}
    for (total, (cost, chosen)), share in itertools.product(best.items(), SHARES):
      weight = caps[domain] * share
      reached = (cost + slope[domain] * weight, (*chosen, weight))
      where = round(total + weight, 9)
      if where <= 1 and (where not in longer or reached < longer[where]):
        longer[where] = reached
    if len(longer) > MOST_SUMS:
      raise ValueError(
        f"caps {np.round(caps, 4).tolist()} make too many sums to search: round them to a common "
        "measure, or search a pool"
      )
    best = longer
  _, chosen, last = min(
    (cost + slope[rest] * (1 - total), chosen, 1 - total)
    for total, (cost, chosen) in best.items()
    if 1 - total <= caps[rest] + SAME
  )
  return np.insert(np.array(chosen), rest, last)
