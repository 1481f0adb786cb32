"""Which mixtures are best at something: Pareto fronts over benchmarks, observed and believed."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from mixjax.search.benchmarks import Benchmarks, Forecast
from mixjax.search.constrained import LEVEL, Choice, recommend
from mixjax.search.objective import Objective
from mixjax.search.space import Key

# A mixture that is beaten everywhere even if each prediction is off by this many sds, to its favour
# and to the other's harm, is taken to be on no front.
SURE = 3.0


def front(scores: Float[np.ndarray, "n b"]) -> Bool[np.ndarray, " n"]:
  """Which rows no other row beats: none is as high everywhere and higher somewhere.

  Equal rows are on the front together. ValueError if a score is NaN.
  """
  scores = np.asarray(scores, np.float64)
  if np.isnan(scores).any():
    row, column = np.argwhere(np.isnan(scores))[0]
    raise ValueError(f"score {column} of row {row} is NaN: leave failed runs out")
  on_front = np.zeros(len(scores), bool)
  # In descending order of the columns, taken like letters, nothing is beaten by what comes after.
  left = np.lexsort(-scores.T[::-1])
  while len(left):
    head = scores[left[0]]
    on_front[left[(scores[left] == head).all(axis=1)]] = True
    left = left[(scores[left] > head).any(axis=1)]
  return on_front


def hypervolume(scores: Float[np.ndarray, "n b"], reference: Float[np.ndarray, " b"]) -> float:
  """Volume of what is above `reference` and at or below some row: how much a front covers.

  Exact, by slices along the last benchmark; for 2 or 3, as each adds a factor n to the time.
  ValueError if shapes disagree.
  """
  scores, reference = np.asarray(scores, np.float64), np.asarray(reference, np.float64)
  if scores.ndim != 2 or reference.shape != scores.shape[1:]:
    raise ValueError(f"scores of shape {scores.shape} but a reference of {reference.shape}")
  above = np.maximum(scores - reference, 0)
  return _volume(above[(above > 0).all(axis=1)])


def _volume(sides: Float[np.ndarray, "n b"]) -> float:
  if not len(sides):
    return 0.0
  if sides.shape[1] == 1:
    return float(sides.max())
  sides = sides[np.argsort(-sides[:, -1])]
  heights = -np.diff(np.append(sides[:, -1], 0.0))
  slices = [h * _volume(sides[: i + 1, :-1]) for i, h in enumerate(heights) if h > 0]
  return float(sum(slices))


@dataclasses.dataclass(frozen=True, eq=False)
class Front:
  """m mixtures and where they stand on b benchmarks, in the benchmarks' own units.

  `on_front` says which are on the front of the posterior means; `probability` how likely each is on
  the true one among these m.
  """

  names: tuple[str, ...]
  mixtures: Float[np.ndarray, "m d"]
  mean: Float[np.ndarray, "m b"]
  sd: Float[np.ndarray, "m b"]
  on_front: Bool[np.ndarray, " m"]
  probability: Float[np.ndarray, " m"]


def front_of(
  benchmarks: Benchmarks,
  points: Float[np.ndarray, "m d"] | None = None,
  *,
  names: Sequence[str] | None = None,
  minimize: bool = False,
  draws: int = 256,
  key: Key = 0,
) -> Front:
  """The front that `benchmarks` believe in at `points`, by default their pool and observed runs.

  `names` are the benchmarks that count (on many, hardly any mixture is beaten on all);
  `probability` comes from `draws` of the posterior, the same for the same `key`. The time grows
  with the cube of the mixtures that may be on it: seconds for some hundred. ValueError for an
  unknown benchmark.
  """
  benchmarks = benchmarks if names is None else benchmarks.only(names)
  forecast = benchmarks.forecast(points)
  sign = -1 if minimize else 1
  mean = sign * forecast.mean
  hopes, fears = mean + SURE * forecast.sd, mean - SURE * forecast.sd
  best_fears = fears[front(fears)]
  open_ = ~np.array([(best_fears > hope).all(axis=1).any() for hope in hopes])
  drawn = sign * benchmarks.draw(forecast.mixtures[open_], draws, key)
  probability = np.zeros(len(mean))
  probability[open_] = np.mean([front(draw) for draw in drawn], axis=0)
  return Front(
    forecast.names, forecast.mixtures, forecast.mean, forecast.sd, front(mean), probability
  )


def trade_off(
  benchmarks: Benchmarks,
  start: Objective,
  end: Objective,
  steps: int = 11,
  *,
  forecast: Forecast | None = None,
  level: float = LEVEL,
) -> tuple[Choice, ...]:
  """The best mixtures as the weights move from `start` to `end` in `steps` equal steps.

  The floors of both hold all the way. Nothing is fitted, and predictions are made once. ValueError
  with fewer than two steps or if one objective minimizes and the other does not.
  """
  if steps < 2:
    raise ValueError(f"from start to end there are at least 2 steps, not {steps}")
  if start.minimize != end.minimize:
    raise ValueError("one objective minimizes and the other does not: scores have one direction")
  forecast = benchmarks.forecast() if forecast is None else forecast
  floors = start.keeping(end.floors).floors
  first, last = (start.sign * one.over(benchmarks.names) for one in (start, end))
  path = []
  for share in np.linspace(0, 1, steps):
    weights = dict(zip(benchmarks.names, (1 - share) * first + share * last, strict=True))
    objective = Objective(weights, floors, start.minimize)
    path.append(recommend(benchmarks, objective, forecast=forecast, level=level))
  return tuple(path)
