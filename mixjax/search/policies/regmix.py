"""RegMix: random runs, boosted trees, the best prediction (paper, section 4.1; 2407.01492)."""

import dataclasses
from typing import Literal

import lightgbm
import numpy as np
from jaxtyping import Float

from mixjax.search.observations import Observations
from mixjax.search.policies import Recommendation, pool_of, random_unseen
from mixjax.search.space import Key, Space


@dataclasses.dataclass(frozen=True)
class RegMix:
  """Needs a space with a pool.

  `recommend_by="argmax"` takes the best prediction in the pool, as MixAtlas runs this baseline;
  "top" averages the `top` best predictions, as RegMix itself does. Trees state no uncertainty.
  """

  space: Space
  recommend_by: Literal["argmax", "top"] = "argmax"
  top: int = 128

  def __post_init__(self):
    if self.recommend_by not in ("argmax", "top"):
      raise ValueError(f"recommend_by is 'argmax' or 'top', not {self.recommend_by!r}")
    if self.top < 1:
      raise ValueError(f"top is at least 1, not {self.top}")

  def ask(self, observations: Observations, count: int, key: Key) -> Float[np.ndarray, "count d"]:
    return random_unseen(self.space, observations.at_target().known(), count, key)

  def recommend(self, observations: Observations) -> Recommendation:
    runs = observations.at_target()
    pool = pool_of(self.space)
    predict = fit_trees(runs)
    order = np.argsort(-predict(pool), kind="stable")
    mixture = pool[order[: 1 if self.recommend_by == "argmax" else self.top]].mean(axis=0)
    mixture = self.space.raise_to_floor(mixture[None])[0]
    (mean,) = predict(mixture[None])
    return Recommendation(mixture, float(mean), None, observed=runs.mean_at(mixture)[0])


def fit_trees(observations: Observations, *, leaf: int | None = None):
  """RegMix's regressor as a function `float[m, d] -> float[m]`. ValueError if there is no run.

  Published settings: 1000 trees, learning rate 0.01, seed 42. Two departures: no early stopping
  (the published one looks at the test set, and stopping at all is a little worse), and, unless
  `leaf` says how many runs a leaf holds at least, smaller leaves below 100 runs: with the published
  20, the fit to 32 runs is a constant.
  """
  count = len(observations)
  if not count:
    raise ValueError("no finished run to fit")
  settings = {
    "objective": "regression",
    "learning_rate": 0.01,
    "min_child_samples": leaf or (20 if count >= 100 else max(1, min(5, count // 4))),
    "seed": 42,
    "num_threads": 1,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
  }
  # Standardised, so that thresholds inside the library mean the same for scores of any magnitude.
  center, scale = observations.scores.mean(), observations.scores.std() or 1.0
  data = lightgbm.Dataset(observations.mixtures, (observations.scores - center) / scale)
  model = lightgbm.train(settings, data, num_boost_round=1000)
  return lambda points: center + scale * model.predict(points, num_threads=1)
