"""Which weights move which benchmarks, from the runs of a search (paper, sections 3.4 and 6).

Weights sum to 1, and an adaptive search visits good mixtures more often: correlations over such
runs are confounded. Read them as a picture of the runs, not as causes.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

# Strengths of the ridge penalty tried, relative to the number of runs.
PENALTIES = np.logspace(-4, 2, 25)


@dataclasses.dataclass(frozen=True, eq=False)
class Correlations:
  """Spearman's rho of each weight with each benchmark, against a permutation null.

  `p` is two-sided for one entry alone; `p_map` is the chance that pure noise shows so large a value
  anywhere in the map, which is the one to use when picking entries by eye.
  """

  coordinates: tuple[str, ...]
  benchmarks: tuple[str, ...]
  rho: Float[np.ndarray, "d b"]
  p: Float[np.ndarray, "d b"]
  p_map: Float[np.ndarray, "d b"]


@dataclasses.dataclass(frozen=True, eq=False)
class Quadratic:
  """f(h) = intercept + sum_j marginals_j z_j + sum_j<k interactions_jk z_j z_k, z = h - center.

  Scores per unit of weight, at `center`, the mean mixture. `interactions` is symmetric with a zero
  diagonal (squares add nothing on a simplex). `skill: float[b]` is 1 - the leave-one-out squared
  error over that of the mean: near 0, the coefficients say nothing.
  """

  coordinates: tuple[str, ...]
  benchmarks: tuple[str, ...]
  center: Float[np.ndarray, " d"]
  intercept: Float[np.ndarray, " b"]
  marginals: Float[np.ndarray, "d b"]
  interactions: Float[np.ndarray, "d d b"]
  skill: Float[np.ndarray, " b"]

  def predict(self, weights: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n b"]:
    offset = np.asarray(weights) - self.center
    pairs = 0.5 * np.einsum("nj,nk,jkb->nb", offset, offset, self.interactions)
    return self.intercept + offset @ self.marginals + pairs


@dataclasses.dataclass(frozen=True)
class RankAgreement:
  """Spearman's rho of two scorings of the same n mixtures, with a bootstrap interval."""

  rho: float
  low: float
  high: float
  n: int


def correlate(
  weights: Float[np.ndarray, "n d"],
  scores: Float[np.ndarray, "n b"],
  coordinates: Sequence[str],
  benchmarks: Sequence[str],
  *,
  permutations: int = 2000,
  seed: int = 0,
) -> Correlations:
  """The paper's sensitivity map. A weight or score that never varies gets rho 0 and p 1.

  ValueError for fewer than three runs, shapes that disagree with the names, or numbers not finite.
  """
  weights, scores = _check(weights, scores, coordinates, benchmarks)
  ranks, marks = _unit_ranks(weights), _unit_ranks(scores)
  rho = ranks.T @ marks
  rng = np.random.default_rng(seed)
  alone, anywhere = np.zeros(rho.shape), np.zeros(rho.shape)
  # A hair of slack, so that a permutation which ties with the data counts as at least as large.
  threshold = np.abs(rho) - 1e-12
  for _ in range(permutations):
    null = np.abs(ranks.T @ marks[rng.permutation(len(marks))])
    alone += null >= threshold
    anywhere += null.max() >= threshold
  p, p_map = ((1 + count) / (1 + permutations) for count in (alone, anywhere))
  return Correlations(tuple(coordinates), tuple(benchmarks), rho, p, p_map)


def quadratic(
  weights: Float[np.ndarray, "n d"],
  scores: Float[np.ndarray, "n b"],
  coordinates: Sequence[str],
  benchmarks: Sequence[str],
) -> Quadratic:
  """The paper's second-order regression, shrunk by the ridge with the least leave-one-out error.

  The weights sum to 1, so plain least squares has no unique solution; the ridge picks the smallest,
  and marginals are then relative to the average weight. Each benchmark has its own penalty.
  ValueError as for `correlate`.
  """
  weights, scores = _check(weights, scores, coordinates, benchmarks)
  count, d = weights.shape
  center, intercept = weights.mean(axis=0), scores.mean(axis=0)
  offset = weights - center
  first, second = np.triu_indices(d, k=1)
  terms = np.concatenate([offset, offset[:, first] * offset[:, second]], axis=1)
  middle, spread = terms.mean(axis=0), terms.std(axis=0)
  # Columns that hardly move are dropped rather than blown up to unit size.
  scale = np.where(spread > 1e-9, spread, np.inf)
  u, s, vt = np.linalg.svd((terms - middle) / scale, full_matrices=False)
  projected = u.T @ (scores - intercept)
  shrinkage = s**2 / (s**2 + count * PENALTIES[:, None])
  fitted = np.einsum("nr,pr,rb->pnb", u, shrinkage, projected)
  leverage = 1 / count + np.einsum("nr,pr->pn", u**2, shrinkage)
  errors = (scores - intercept - fitted) / np.maximum(1 - leverage, 1e-9)[..., None]
  loss = np.sum(errors**2, axis=1)
  best = np.argmin(loss, axis=0)
  total = np.sum((scores - intercept) ** 2, axis=0) * (count / (count - 1)) ** 2
  skill = 1 - loss[best, np.arange(scores.shape[1])] / np.where(total > 0, total, np.inf)
  gain = s / (s**2 + count * PENALTIES[best][:, None])
  coefficients = (vt.T @ (gain.T * projected)) / scale[:, None]
  interactions = np.zeros((d, d, scores.shape[1]))
  interactions[first, second] = interactions[second, first] = coefficients[d:]
  return Quadratic(
    tuple(coordinates),
    tuple(benchmarks),
    center,
    intercept - middle @ coefficients,
    coefficients[:d],
    interactions,
    np.where(total > 0, skill, 0.0),
  )


def rank_agreement(
  proxy: Float[np.ndarray, " n"],
  target: Float[np.ndarray, " n"],
  *,
  resamples: int = 2000,
  level: float = 0.95,
  seed: int = 0,
) -> RankAgreement:
  """Do small models rank mixtures as the large one does? The interval resamples mixtures.

  Resamples in which one side does not vary say nothing about rank and are left out; if all are, the
  interval is [-1, 1]. ValueError as for `correlate`.
  """
  columns = _check(np.asarray(proxy)[:, None], np.asarray(target)[:, None], ["proxy"], ["target"])
  proxy, target = (column[:, 0] for column in columns)
  rng = np.random.default_rng(seed)
  draws = rng.integers(len(proxy), size=(resamples, len(proxy))).T
  x, y = _unit_ranks(proxy[draws]), _unit_ranks(target[draws])
  values = np.sum(x * y, axis=0)[x.any(axis=0) & y.any(axis=0)]
  tails = [(1 - level) / 2, (1 + level) / 2]
  low, high = np.quantile(values, tails) if len(values) else (-1.0, 1.0)
  rho = (_unit_ranks(proxy[:, None]).T @ _unit_ranks(target[:, None])).item()
  return RankAgreement(rho, float(low), float(high), len(proxy))


def _unit_ranks(columns: np.ndarray) -> np.ndarray:
  """Ranks of each column (ties averaged), centred, of unit length; zeros for a constant column."""
  ranks = rankdata(columns, axis=0)
  ranks -= ranks.mean(axis=0)
  length = np.linalg.norm(ranks, axis=0)
  return ranks / np.where(length > 0, length, np.inf)


def _check(weights, scores, coordinates, benchmarks) -> tuple[np.ndarray, np.ndarray]:
  weights, scores = np.asarray(weights, np.float64), np.asarray(scores, np.float64)
  wanted = [(len(weights), len(coordinates)), (len(weights), len(benchmarks))]
  if [weights.shape, scores.shape] != wanted:
    raise ValueError(
      f"weights {weights.shape} and scores {scores.shape} do not fit "
      f"{len(coordinates)} coordinates and {len(benchmarks)} benchmarks"
    )
  if len(weights) < 3:
    raise ValueError(f"{len(weights)} runs say nothing about rank: three are the least")
  if not (np.isfinite(weights).all() and np.isfinite(scores).all()):
    raise ValueError("weights and scores must be finite: leave failed runs out")
  return weights, scores
