"""MixAtlas: a Gaussian process and upper confidence bounds over a pool (paper, Algorithm 1)."""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Float

from mixjax.search import fidelities
from mixjax.search.acquire import KAPPA, Acquisition, check_acquisition, choose_batch
from mixjax.search.constraints import Constraints
from mixjax.search.fidelities import Linked
from mixjax.search.maximize import maximize
from mixjax.search.observations import Observations, matches
from mixjax.search.policies import Recommendation, check_enough, pool_of, random_unseen
from mixjax.search.policies.within import narrowed, runs_allowed
from mixjax.search.space import Key, Space
from mixjax.search.surrogate import Surrogate
from mixjax.search.total import Total


@dataclasses.dataclass(frozen=True)
class MixAtlas:
  """Algorithm 1, in batches. Needs a space with a pool.

  `seeds` runs are drawn at random from the pool, the rest by mu + kappa sigma over what is left of
  it; None is two a weight (the paper leaves T0 open). `recommend_by="observed"` returns the best
  observed mixture, as the paper does. The default, "posterior", averages the `top` mixtures of
  highest posterior mean over pool and observed, so that a lucky run does not win and the recipe is
  flatter, which the step to a larger model forgives. Either way each weight is then raised to
  `floor` times the uniform one. `mean` and `sd` are the posterior's at the mixture that comes out.

  `acquisition` replaces the bound (`acquire.choose_batch`), which alone uses `kappa`. `continuous`
  looks for the proposals, and for the highest posterior mean, on the whole space (`maximize`); the
  pool then gives the random design, and all but the first of the `top`.

  `constraints` hold for all that is proposed or recommended, before `floor` does; the pool needs
  candidates within (`design.pool`). Runs that are not within are learnt from all the same.

  Runs of lower fidelities teach what they are found to know of the highest (`fidelities.fit`);
  `seeds` counts only those of the highest, which are alone proposed and recommended. What is
  infeasible counts as the worst run did (`Observations.as_worst`), and is never recommended.
  """

  space: Space
  seeds: int | None = None
  kappa: float = KAPPA
  recommend_by: Literal["posterior", "observed"] = "posterior"
  top: int = 1
  floor: float = 0.0
  acquisition: Acquisition = "ucb"
  continuous: bool = False
  constraints: Constraints | None = None

  def __post_init__(self):
    if self.recommend_by not in ("posterior", "observed"):
      raise ValueError(f"recommend_by is 'posterior' or 'observed', not {self.recommend_by!r}")
    if self.top < 1 or not 0 <= self.floor <= 1:
      raise ValueError(f"top is at least 1, floor within [0, 1], not {self.top} and {self.floor}")
    check_acquisition(self.acquisition)
    if self.continuous and self.acquisition == "thompson":
      raise ValueError("thompson chooses from a pool: with it, leave continuous False")
    if self.constraints is not None:
      object.__setattr__(self, "space", narrowed(self.space, self.constraints))

  def ask(self, observations: Observations, count: int, key: Key) -> Float[np.ndarray, "count d"]:
    runs = observations.at_target()
    known = runs.known()
    pool = pool_of(self.space)
    check_enough(count if self.continuous else np.sum(~matches(pool, known)), count)
    seeds = 2 * self.space.dim if self.seeds is None else self.seeds
    # Without a finished run there is nothing to learn from: the whole batch is random.
    random = min(max(seeds - len(known), 0), count) if len(runs) else count
    design = random_unseen(self.space, known, random, key) if random else known[:0]
    if random == count:
      return design
    waiting = design if runs.pending is None else np.concatenate([runs.pending, design])
    fitted = self._fit(observations)
    options = dict(acquisition=self.acquisition, kappa=self.kappa, pending=waiting, key=key)
    if self.continuous:
      return np.concatenate([design, self._maximize(fitted, count - random, **options)])
    unseen = pool[~matches(pool, np.concatenate([known, design]))]
    observed = self._allowed(runs).mixtures
    chosen = choose_batch(fitted, unseen, count - random, observed=observed, **options)
    return np.concatenate([design, unseen[chosen]])

  def recommend(self, observations: Observations) -> Recommendation:
    runs = observations.at_target()
    fitted = self._fit(observations)
    if self.recommend_by == "posterior":
      mixture = self._best_posterior(fitted, runs)
    else:
      mixture = self._allowed(runs).best(self.space)
    lower = np.maximum(self.space.lower, self.floor * self.space.uniform())
    (mixture,) = self.space.raise_to_floor(mixture[None], lower)
    if self.constraints is not None:
      (mixture,) = self.constraints.project(mixture[None])
    (mean,), (sd,) = fitted.predict(mixture[None])
    return Recommendation(mixture, float(mean), float(sd), observed=runs.mean_at(mixture)[0])

  def _fit(self, observations: Observations) -> Surrogate | Total | Linked:
    return fidelities.fit(observations.as_worst(), self.space)

  def _best_posterior(
    self, fitted: Surrogate | Total | Linked, runs: Observations
  ) -> Float[np.ndarray, " d"]:
    pool = pool_of(self.space)
    # Replicates count once, or they would fill the average.
    observed = np.unique(runs.mixtures[~matches(runs.mixtures, pool)], axis=0)
    options = self.space.raise_to_floor(np.concatenate([pool, observed]))
    if self.constraints is not None:
      options = options[self.constraints.within(options)]
    if runs.infeasible is not None:
      bad = matches(options, runs.infeasible)
      options = options[~bad | bad.all()]
    if self.continuous:
      options = np.concatenate([self._maximize(fitted, 1, kappa=0.0, repeat=True), options])
    order = np.argsort(-fitted.predict(options)[0], kind="stable")
    return options[order[: self.top]].mean(axis=0)

  def _allowed(self, runs: Observations) -> Observations:
    return runs if self.constraints is None else runs_allowed(runs, self.constraints)

  def _maximize(
    self, fitted: Surrogate | Total | Linked, count: int, **options
  ) -> Float[np.ndarray, "count d"]:
    several = isinstance(fitted, Total)
    processes = fitted.processes if several else [fitted]
    correlation = fitted.correlation if several else None
    options |= dict(correlation=correlation, constraints=self.constraints)
    return maximize(processes, count, **options)
