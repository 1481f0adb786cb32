"""Random candidates, the best observed one wins: what any search has to beat at the same budget."""

import dataclasses

import numpy as np
from jaxtyping import Float

from mixjax.search.observations import Observations
from mixjax.search.policies import Recommendation, random_unseen
from mixjax.search.space import Key, Space


@dataclasses.dataclass(frozen=True)
class BestOfRandom:
  """Needs a space with a pool.

  Its `mean` is the winner's own score, which is optimistic: the winner is partly the luckiest. No
  model corrects it; only fresh runs of the same mixture do.
  """

  space: Space

  def ask(self, observations: Observations, count: int, key: Key) -> Float[np.ndarray, "count d"]:
    return random_unseen(self.space, observations.at_target().known(), count, key)

  def recommend(self, observations: Observations) -> Recommendation:
    runs = observations.at_target()
    return Recommendation.from_runs(runs.best(self.space), runs)
