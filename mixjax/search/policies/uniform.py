"""The uniform mixture: every weight alike."""

import dataclasses

import numpy as np
from jaxtyping import Float

from mixjax.search.observations import Observations
from mixjax.search.policies import Recommendation
from mixjax.search.space import Key, Space


@dataclasses.dataclass(frozen=True)
class Uniform:
  """The baseline of every table (paper, section 4.1). Its runs are replicates."""

  space: Space

  def ask(self, observations: Observations, count: int, key: Key) -> Float[np.ndarray, "count d"]:
    return np.tile(self.space.uniform(), (count, 1))

  def recommend(self, observations: Observations) -> Recommendation:
    return Recommendation.from_runs(self.space.uniform(), observations.at_target())
