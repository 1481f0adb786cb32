"""MoDoMoDo: a quadratic surrogate, and three heuristics on pilot runs (2505.24871)."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures

from mixjax.search.observations import Observations, matches
from mixjax.search.policies import Recommendation, check_enough, pool_of
from mixjax.search.policies.olmix import advise, random_design, standardise
from mixjax.search.space import Key, Space

Law = Callable[[Float[np.ndarray, "m d"]], Float[np.ndarray, " m"]]

# Variance added to every weight where a Gaussian is fitted to mixtures, so that one run suffices.
JITTER = 1e-6


def fit_quadratic(observations: Observations, *, ridge: float = 1e-2) -> Law:
  """a + b'w + w'Cw of the score as a function `float[m, d] -> float[m]`, fitted to all runs.

  The published fit (`fit_best_split`) keeps the luckiest of five splits and leaves out a fifth of
  a few dozen runs; on the simplex its features are collinear too. `ridge`, the weight of the
  squared coefficients of standardised scores, cures both. ValueError without a run.
  """
  loss, center, scale = standardise(observations)
  model = _quadratic(Ridge(ridge)).fit(observations.mixtures, loss)
  return lambda points: center - scale * model.predict(points)


def fit_best_split(observations: Observations, *, splits: int = 5, seed: int = 0) -> Law:
  """Algorithm 4 as published: least squares on 80% of the runs, for each of `splits` random splits.

  The fit with the highest R2 on its other 20% (two runs at least) wins, which selects on noise.
  ValueError below 4 runs.
  """
  count = len(observations)
  if count < 4:
    raise ValueError(f"{count} runs cannot be split into two and two: use ridge, or run more")
  loss, center, scale = standardise(observations)
  rng = np.random.default_rng(seed)
  tested = max(2, round(count / 5))
  best, best_fit = None, -np.inf
  for _ in range(splits):
    test, train = np.split(rng.permutation(count), [tested])
    model = _quadratic(LinearRegression()).fit(observations.mixtures[train], loss[train])
    error = np.sum((model.predict(observations.mixtures[test]) - loss[test]) ** 2)
    # The floor keeps the R2 of equal scores a number.
    fit = 1 - error / max(np.sum((loss[test] - loss[test].mean()) ** 2), 1e-12)
    if fit > best_fit:
      best, best_fit = model, fit
  return lambda points: center - scale * best.predict(points)


def _quadratic(regressor):
  return make_pipeline(PolynomialFeatures(2, include_bias=False), regressor)


def pilots(space: Space) -> tuple[Float[np.ndarray, "n d"], Bool[np.ndarray, "n d"]]:
  """The pilot mixtures, and which coordinates each one uses: d singles, d leave-one-outs, all.

  In a pool they are those nearest to it (in Hellinger distance, each a different one); otherwise
  they are raised to the space's bounds. ValueError for several axes or below 3 coordinates.
  """
  if len(space.axes) != 1 or space.dim < 3:
    raise ValueError(
      f"pilots weigh one axis of at least 3 coordinates, and {space.name} has {len(space.axes)} "
      f"with {space.dim}: recommend by 'quadratic'"
    )
  one = np.eye(space.dim, dtype=bool)
  members = np.concatenate([one, ~one, np.ones((1, space.dim), bool)])
  mixtures = members / members.sum(axis=1, keepdims=True)
  if space.pool is None:
    return space.raise_to_floor(mixtures), members
  if len(space.pool) < len(mixtures):
    raise ValueError(f"a pool of {len(space.pool)} cannot hold {len(mixtures)} pilots: enlarge it")
  _, nearest = linear_sum_assignment(cdist(np.sqrt(mixtures), np.sqrt(space.pool)) ** 2)
  return space.pool[nearest], members


def alpha(
  members: Bool[np.ndarray, "n d"], scores: Float[np.ndarray, " n"], balance: float = 1.0
) -> Float[np.ndarray, " d"]:
  """Algorithm 1: weights balance x in + (1 - balance) x out, each scaled to [0, 1].

  `in` sums the scores of the pilots that use a domain, `out` those of the pilots that do not. On
  the full pilot design the two mirror each other, so a balance of 0.5 is the uniform mixture and 0
  favours the domains that help least.
  """
  with_it, without = members.T @ scores, (~members).T @ scores
  return _normalised(balance * _rescaled(with_it) + (1 - balance) * _rescaled(without))


def coli(
  members: Bool[np.ndarray, "n d"], scores: Float[np.ndarray, " n"], ridge: float = 1e-3
) -> Float[np.ndarray, " d"]:
  """Algorithm 2: ridge coefficients over their variance inflation, clipped at 0.

  Without an intercept, so the zero of the scores matters: it should mean that nothing was learnt.
  """
  design = members.astype(np.float64)
  inverse = np.linalg.inv(design.T @ design + ridge * np.eye(design.shape[1]))
  return _normalised(np.maximum(inverse @ design.T @ scores / np.diag(inverse), 0))


def norm(leave_one_out: Float[np.ndarray, " d"]) -> Float[np.ndarray, " d"]:
  """Algorithm 3: weights from 0.2 (worst score without the domain) down to 0.1 (best), normalised.

  The published headline mixture is this one.
  """
  return _normalised(0.2 - 0.1 * _rescaled(leave_one_out))


def _rescaled(values: np.ndarray) -> np.ndarray:
  """To [0, 1]; equal values are all 0."""
  span = np.ptp(values)
  return (values - values.min()) / (span if span > 1e-12 * np.abs(values).max() else np.inf)


def _normalised(weights: np.ndarray) -> np.ndarray:
  """To a sum of 1; no weight at all is the uniform mixture."""
  total = weights.sum()
  return weights / total if total > 0 else np.full(len(weights), 1 / len(weights))


@dataclasses.dataclass(frozen=True)
class MoDoMoDo:
  """`recommend_by="quadratic"`: a random design, then the mixture of highest prediction.

  It is sought, as `over` says, in the pool, among `draws` from a Gaussian fitted to the observed
  mixtures (those outside the bounds are dropped; Algorithm 4), or (None) in both. With many
  domains of zero weight hardly a draw survives, and without a pool the observed mixtures stand in.
  `fit` is "ridge" or the published "best split". The heuristics "alpha", "coli" and "norm" first
  ask for the pilots and answer from them alone; with over="pool" the answer is the nearest
  candidate. They see pilot scores scaled to [0, 1], as the zero of a score means nothing here.
  """

  space: Space
  recommend_by: Literal["quadratic", "alpha", "coli", "norm"] = "quadratic"
  fit: Literal["ridge", "best split"] = "ridge"
  balance: float = 1.0
  draws: int = 10_000
  over: Literal["pool", "gaussian"] | None = None

  def __post_init__(self):
    if self.recommend_by not in ("quadratic", "alpha", "coli", "norm"):
      raise ValueError(f"recommend_by is quadratic, alpha, coli or norm, not {self.recommend_by!r}")
    if self.fit not in ("ridge", "best split"):
      raise ValueError(f"fit is 'ridge' or 'best split', not {self.fit!r}")
    if self.over not in ("pool", "gaussian", None):
      raise ValueError(f"over is 'pool', 'gaussian' or None, not {self.over!r}")
    if not 0 <= self.balance <= 1 or self.draws < 1:
      raise ValueError(f"balance within [0, 1], draws at least 1: {self.balance}, {self.draws}")

  def ask(self, observations: Observations, count: int, key: Key) -> Float[np.ndarray, "count d"]:
    known = observations.at_target().known()
    if self.recommend_by == "quadratic":
      return random_design(self.space, known, count, key)
    check_enough(left=count, count=count)
    design, _ = pilots(self.space)
    design = design[~matches(design, known)][:count]
    if len(design) == count:
      return design
    known = np.concatenate([known, design])
    return np.concatenate([design, random_design(self.space, known, count - len(design), key)])

  def recommend(self, observations: Observations) -> Recommendation:
    runs = observations.at_target()
    if self.recommend_by != "quadratic":
      return Recommendation.from_runs(self._by_pilots(runs), runs)
    predict = fit_quadratic(runs) if self.fit == "ridge" else fit_best_split(runs)
    options = self._options(runs)
    return advise(options[np.argmax(predict(options))], predict, runs)

  def _by_pilots(self, runs: Observations) -> Float[np.ndarray, " d"]:
    mixtures, members = pilots(self.space)
    means = [runs.mean_at(mixture)[0] for mixture in mixtures]
    if None in means:
      missing = np.flatnonzero(members[means.index(None)])
      names = [self.space.names[place] for place in missing]
      raise ValueError(
        f"{means.count(None)} of {len(means)} pilots are no finished run, the first is the one "
        f"with {names} alone: run them, or recommend by 'quadratic'"
      )
    scores = _rescaled(np.array(means))
    if self.recommend_by == "alpha":
      weights = alpha(members, scores, self.balance)
    elif self.recommend_by == "coli":
      weights = coli(members, scores)
    else:
      weights = norm(scores[self.space.dim : 2 * self.space.dim])
    if self.over == "pool":
      pool = pool_of(self.space)
      return pool[np.argmin(cdist(np.sqrt(weights[None]), np.sqrt(pool))[0])]
    return self.space.raise_to_floor(weights[None])[0]

  def _options(self, runs: Observations) -> Float[np.ndarray, "m d"]:
    if self.over == "pool" or (self.over is None and self.space.pool is not None):
      options = [pool_of(self.space)]
    else:
      options = [self.space.raise_to_floor(runs.mixtures)]
    if self.over != "pool":
      options.append(self._gaussian(runs.mixtures))
    return np.concatenate(options)

  def _gaussian(self, mixtures: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "m d"]:
    spread = np.cov(mixtures.T, bias=True) + JITTER * np.eye(self.space.dim)
    rng = np.random.default_rng(0)
    drawn = rng.multivariate_normal(mixtures.mean(axis=0), spread, self.draws, method="cholesky")
    drawn = drawn[(drawn >= 0).all(axis=1)]
    block = self.space.block
    sums = np.stack([drawn[:, block == b].sum(axis=1) for b in range(block.max() + 1)], axis=1)
    drawn = drawn / sums[:, block]
    return drawn[(drawn >= self.space.lower).all(axis=1)]
