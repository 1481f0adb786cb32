"""The natural mixture: weights given by the corpus itself."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from mixjax.search.observations import Observations
from mixjax.search.policies import Recommendation
from mixjax.search.space import Key, Space


@dataclasses.dataclass(frozen=True)
class Natural:
  """A fixed mixture, `{coordinate: weight}`, as a rule each one's share of the corpus's rows."""

  space: Space
  weights: Mapping[str, float]

  def ask(self, observations: Observations, count: int, key: Key) -> Float[np.ndarray, "count d"]:
    return np.tile(self.space.from_dict(self.weights), (count, 1))

  def recommend(self, observations: Observations) -> Recommendation:
    return Recommendation.from_runs(self.space.from_dict(self.weights), observations.at_target())
