"""The best mixture, and the next ones to run, where some benchmarks must keep a floor."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import norm

from mixjax.search.acquire import rate_candidates
from mixjax.search.benchmarks import CERTAIN, Benchmarks, Forecast
from mixjax.search.objective import Objective
from mixjax.search.policies import Recommendation

# How sure a recommendation is to be of each floor.
LEVEL = 0.8

# Candidates among which a constrained batch is chosen: those that promised most before the first.
SHORTLIST = 128


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Choice(Recommendation):
  """A recommendation under floors.

  `kept` is the probability that each floor holds; `failing` names those where it is below the level
  asked for: empty wherever some candidate keeps all floors so surely.
  """

  kept: Mapping[str, float]
  failing: tuple[str, ...]

  @property
  def feasible(self) -> bool:
    return not self.failing


def recommend(
  benchmarks: Benchmarks,
  objective: Objective,
  *,
  forecast: Forecast | None = None,
  level: float = LEVEL,
) -> Choice:
  """The highest posterior mean of the objective where each floor holds with probability `level`.

  Where no candidate is so sure, the one that is surest of its least sure floor, with `failing`
  saying which ones those are. Another objective costs neither training nor fitting and, given the
  `forecast` (by default `benchmarks.forecast()`), no prediction. ValueError for a level off (0, 1).
  """
  if not 0 < level < 1:
    raise ValueError(f"level is a probability between 0 and 1, not {level}")
  forecast = benchmarks.forecast() if forecast is None else forecast
  mean, sd = forecast.of(objective)
  margins = forecast.margins(objective)
  least = margins.min(axis=1, initial=np.inf)
  feasible = least >= norm.ppf(level)
  # What keeps its floors equally well or badly everywhere leaves the choice to the objective.
  first = np.where(feasible, 0.0, np.inf) if feasible.any() else -least
  best = int(np.lexsort((-mean, first))[0])
  kept = dict(zip(objective.floors, norm.cdf(margins[best]).tolist(), strict=True))
  sure = margins[best] >= norm.ppf(level)
  return Choice(
    forecast.mixtures[best],
    float(mean[best]),
    float(sd[best]),
    observed=benchmarks.runs.observations(objective).mean_at(forecast.mixtures[best])[0],
    kept=kept,
    failing=tuple(name for name, held in zip(kept, sure, strict=True) if not held),
  )


def log_constrained_improvement(
  forecast: Forecast, objective: Objective, best: float | None
) -> Float[np.ndarray, " m"]:
  """Log of the expected improvement over `best` times the probability that all floors hold.

  The product is Gardner et al.'s (2014). Its logarithm still ranks mixtures where it underflows, as
  with many floors it does. Not the upper bound times that probability: a product with a bound
  depends on where scores have their zero. The floors count as independent. `best` None, when
  nothing feasible is known, looks for what is feasible: the probability alone.
  """
  mean, sd = forecast.of(objective)
  held = norm.logcdf(forecast.margins(objective)).sum(axis=1)
  return held if best is None else held + rate_candidates("log_ei", mean, sd, best)


def choose_constrained_batch(
  benchmarks: Benchmarks,
  objective: Objective,
  candidates: Float[np.ndarray, "m d"],
  count: int,
  *,
  pending: Float[np.ndarray, "p d"] | None = None,
  level: float = LEVEL,
) -> Int[np.ndarray, " count"]:
  """Indices of `count` different candidates, best first by `log_constrained_improvement`.

  It is measured against the highest posterior mean among the runs whose floors hold with
  probability `level`. Floors that are broken everywhere for sure choose nothing. As in
  `acquire.choose_batch`, after each choice, and for `pending` ones before the first, every process
  is told that the run came out exactly as predicted. Choices are made among the `SHORTLIST` (at
  least twice `count`) best. ValueError for a count that cannot be.
  """
  if not 1 <= count <= len(candidates):
    raise ValueError(f"cannot choose {count} of {len(candidates)} candidates")
  forecast = benchmarks.forecast(candidates)
  objective = _without_lost(objective, forecast)
  observed = benchmarks.forecast(benchmarks.runs.mixtures)
  safe = observed.margins(objective).min(axis=1, initial=np.inf) >= norm.ppf(level)
  best = float(observed.of(objective)[0][safe].max()) if safe.any() else None
  order = np.argsort(-log_constrained_improvement(forecast, objective, best), kind="stable")
  short = order[: max(SHORTLIST, 2 * count)]

  told = np.zeros((0, candidates.shape[1])) if pending is None else np.asarray(pending)
  points = np.concatenate([candidates[short], told])
  covariances = np.stack([one.joint(points)[1] for one in benchmarks.processes])
  noise = np.array([one.noise_sd**2 for one in benchmarks.processes])
  for place in range(len(short), len(points)):
    covariances = _told(covariances, noise, place)
  chosen: list[int] = []
  while len(chosen) < count:
    variance = np.diagonal(covariances, axis1=1, axis2=2).T[: len(short)]
    now = dataclasses.replace(
      forecast,
      mixtures=candidates[short],
      mean=forecast.mean[short],
      sd=np.sqrt(np.maximum(variance, 0)),
    )
    value = log_constrained_improvement(now, objective, best)
    value[chosen] = -np.inf
    chosen.append(int(np.argmax(value)))
    covariances = _told(covariances, noise, chosen[-1])
  return short[chosen]


def _without_lost(objective: Objective, forecast: Forecast) -> Objective:
  lost = (forecast.margins(objective) == -CERTAIN).all(axis=0)
  kept = {
    n: floor for (n, floor), gone in zip(objective.floors.items(), lost, strict=True) if not gone
  }
  return dataclasses.replace(objective, floors=kept)


def _told(
  covariances: Float[np.ndarray, "b m m"], noise: Float[np.ndarray, " b"], place: int
) -> Float[np.ndarray, "b m m"]:
  """Each process's covariances after a run, with noise of this variance, at one of its points."""
  column = covariances[:, :, place]
  variance = (column[:, place] + noise)[:, None, None]
  return covariances - column[:, :, None] * column[:, None, :] / variance
