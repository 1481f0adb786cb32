"""CLIMB: rounds of runs, each drawn from what the last round's trees rank highest (2504.13161)."""

import dataclasses

import numpy as np
from jaxtyping import Float

from mixjax.search.observations import Observations, matches
from mixjax.search.policies import Recommendation, check_enough, pool_of, random_unseen
from mixjax.search.policies.regmix import RegMix, fit_trees
from mixjax.search.space import Key, Space, generator


@dataclasses.dataclass(frozen=True)
class Climb:
  """Needs a space with a pool.

  `budget` runs are split over the rounds in the proportions of `shares`: 112 make the published
  64, 32 and 16. The first round is random. A round of M runs is drawn at random from the
  `spread` x M best predictions of the unseen pool (the paper names no number); past the budget the
  last round goes on. The trees are fitted to all runs finished when asked, so asking for a round
  at once is the published loop, and asking in parts learns earlier. The answer is the best
  prediction in the pool.
  """

  space: Space
  budget: int = 112
  shares: tuple[int, ...] = (4, 2, 1)
  spread: int = 4

  def __post_init__(self):
    if self.budget < 1 or self.spread < 1:
      raise ValueError(f"budget and spread are at least 1, not {self.budget} and {self.spread}")
    if not self.shares or min(self.shares) < 1:
      raise ValueError(f"shares are positive, one a round, not {self.shares}")

  def rounds(self) -> tuple[int, ...]:
    """How many runs each round has, at least one in the first."""
    ends = np.round(self.budget * np.cumsum(self.shares) / sum(self.shares)).astype(int)
    ends = np.maximum(ends, 1)
    return tuple(np.diff(ends, prepend=0).tolist())

  def ask(self, observations: Observations, count: int, key: Key) -> Float[np.ndarray, "count d"]:
    runs = observations.at_target()
    known = runs.known()
    pool = pool_of(self.space)
    check_enough(np.sum(~matches(pool, known)), count)
    sizes = self.rounds()
    # Without a finished run there is nothing to learn from: the whole batch is random.
    random = min(max(sizes[0] - len(known), 0), count) if len(runs) else count
    asked = random_unseen(self.space, known, random, key) if random else known[:0]
    if random == count:
      return asked
    ranked = np.argsort(-fit_trees(runs)(pool), kind="stable")
    order = generator(key).permutation(len(pool))
    ends = np.cumsum(sizes)
    while len(asked) < count:
      taken = len(known) + len(asked)
      current = min(int(np.searchsorted(ends, taken, side="right")), len(sizes) - 1)
      left = count - len(asked)
      if current < len(sizes) - 1:
        left = min(left, int(ends[current]) - taken)
      fresh = ~matches(pool, np.concatenate([known, asked]))
      window = ranked[fresh[ranked]][: max(self.spread * sizes[current], left)]
      drawn = order[np.isin(order, window)][:left]
      asked = np.concatenate([asked, pool[drawn]])
    return asked

  def recommend(self, observations: Observations) -> Recommendation:
    return RegMix(self.space).recommend(observations)
