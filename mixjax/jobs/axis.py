"""One axis of the search: MixAtlas in batches, replicates, and the baselines' random design."""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from mixjax.jobs.runner import Ask, Diverged, Runner, Scored
from mixjax.jobs.search_config import AxisBudget, SearchConfig
from mixjax.search import total
from mixjax.search.constraints import Constraints
from mixjax.search.objective import observed
from mixjax.search.observations import Observations
from mixjax.search.policies import Policy, Recommendation
from mixjax.search.policies.best_of_random import BestOfRandom
from mixjax.search.policies.mixatlas import MixAtlas
from mixjax.search.policies.regmix import RegMix
from mixjax.search.policies.within import Within
from mixjax.search.space import Key, Space

LEADERS = 3  # mixtures of highest posterior mean that share the replicates

RANDOM = "random"  # the purpose of the design that only the baselines see


class AxisSearch:
  """Runs of one axis and what follows from them.

  `uniform: float[n, b]` are the benchmark scores of the uniform mixture under n seeds: every method
  gets them, since they cost each the same, and they tell the surrogate the noise. What diverged is
  in `diverged` and infeasible: it counts as a run spent, but is not proposed again.
  """

  def __init__(self, space: Space, runner: Runner, uniform: Float[np.ndarray, "n b"]):
    self.space = space
    self.history: list[dict] = []
    self.diverged: list[dict] = []
    self._runner = runner
    self._benchmarks = uniform.shape[1]
    at_uniform = np.repeat(space.uniform()[None], len(uniform), axis=0)
    self._at_uniform = observed(at_uniform, uniform, runner.weights)

  def run(self, points: Float[np.ndarray, "n d"], purpose: str, replicate: int = 0) -> Observations:
    """The runs on `points` that have scores; each is entered in the history."""
    space = self.space
    asks = [Ask(purpose, space.name, space.cells(p), space.as_dict(p), replicate) for p in points]
    results = self._runner.run(asks)
    for ask, result in zip(asks, results, strict=True):
      if isinstance(result, Diverged):
        self.diverged.append({"purpose": purpose, "trial": result.trial, "point": ask.point})
        continue
      self.history.append(
        {
          "purpose": purpose,
          "trial": result.trial,
          "score": result.score,
          "vector": result.vector,
          "point": ask.point,
        }
      )
    kept = np.array([isinstance(result, Scored) for result in results])
    vectors = [result.vector for result in results if isinstance(result, Scored)]
    vectors = np.reshape(vectors, (len(vectors), self._benchmarks))
    return observed(points[kept], vectors, self._runner.weights)

  def lost(self, *, random: bool) -> list[dict]:
    """What diverged of the random design, or else of the search: neither sees the other's."""
    return [one for one in self.diverged if (one["purpose"] == RANDOM) == random]

  def with_uniform(self, runs: Observations, *, random: bool = False) -> Observations:
    """What a policy sees: the uniform seeds, then these runs, and what of its own diverged as
    infeasible."""
    seen = Observations.concatenate([self._at_uniform, runs])
    if not (lost := self.lost(random=random)):
      return seen
    infeasible = np.array([self.space.from_dict(one["point"]) for one in lost])
    return dataclasses.replace(seen, infeasible=infeasible)

  def mixatlas(self, policy: MixAtlas, runs: int, replicates: int, batch: int, key) -> Observations:
    """Algorithm 1 in batches: seeds, GP-UCB, then fresh seeds for the leaders; `runs` in all."""
    done = self.run(policy.ask(Observations.none(self.space), policy.seeds, key), "seed")
    while (spent := len(done) + len(self.lost(random=False))) < runs - replicates:
      count = min(batch, runs - replicates - spent)
      asked = policy.ask(self.with_uniform(done), count, key)
      done = Observations.concatenate([done, self.run(asked, "mixatlas")])
    self.check_any(done)
    for replicate in range(1, replicates + 1):
      leaders = self._leaders(done)
      again = leaders[(replicate - 1) % len(leaders)][None]
      done = Observations.concatenate([done, self.run(again, "replicate", replicate)])
    return self.with_uniform(done)

  def _leaders(self, runs: Observations) -> Float[np.ndarray, "k d"]:
    """The evaluated mixtures of highest posterior mean, each once."""
    distinct = np.unique(runs.mixtures, axis=0)
    mean, _ = total.fit(self.with_uniform(runs).as_worst(), self.space).predict(distinct)
    return distinct[np.argsort(-mean, kind="stable")[:LEADERS]]

  def check_any(self, runs: Observations, *, random: bool = False) -> None:
    """ValueError if no run of the search is left, or of the random design."""
    if not len(runs):
      method, first = RANDOM if random else "mixatlas", self.lost(random=random)[0]["trial"]
      raise ValueError(
        f"every proxy of {method} on the {self.space.name} axis diverged, first trial {first}: "
        "lower the learning rate of the proxy"
      )


def search_axis(
  space: Space,
  constraints: Constraints | None,
  budget: AxisBudget,
  config: SearchConfig,
  runner: Runner,
  uniform: Float[np.ndarray, "n b"],
  key: Key,
) -> dict:
  """All runs of one axis; returns its part of search.json.

  `constraints` hold for what every method proposes and recommends. ValueError if all proxies of
  one diverged.
  """

  def within(make: Callable[[Space], Policy]) -> Policy:
    return make(space) if constraints is None else Within(space, constraints, make)

  search = AxisSearch(space, runner, uniform)
  options = config.search
  policy = MixAtlas(
    space,
    seeds=budget.seeds,
    kappa=options.kappa,
    top=config.top,
    floor=config.floor,
    acquisition=options.acquisition,
    continuous=options.continuous,
    constraints=constraints,
  )
  by_observed = MixAtlas(space, recommend_by="observed", constraints=constraints)
  random = within(BestOfRandom)
  searched = search.mixatlas(policy, budget.runs, budget.replicates, config.batch, key)
  design = random.ask(Observations.none(space), budget.runs, key)
  drawn = search.run(design, RANDOM)
  search.check_any(drawn, random=True)
  recommended = {
    "mixatlas": policy.recommend(searched),
    "mixatlas-observed": by_observed.recommend(searched),
    "random": random.recommend(drawn),
    "regmix": within(RegMix).recommend(search.with_uniform(drawn, random=True)),
  }
  # What diverged counts as the worst run did, as in the search, but is none to be judged by.
  fitted = total.fit(searched.as_worst(), space)
  left_out = fitted.leave_one_out()
  diverged = {"diverged": search.diverged} if search.diverged else {}
  return {
    "coordinates": list(space.names),
    "blocks": [axis.name for axis in space.axes],
    "history": search.history,
    "leave_one_out": {
      "observed": searched.scores.tolist(),
      "mean": left_out.mean[: len(searched)].tolist(),
      "sd": left_out.sd[: len(searched)].tolist(),
    },
    "recommended": {name: _as_json(space, r) for name, r in recommended.items()},
    "uniform_posterior": [float(v[0]) for v in fitted.predict(space.uniform()[None])],
    **diverged,
  }


def _as_json(space: Space, r: Recommendation) -> dict:
  return {
    "point": space.as_dict(r.mixture),
    "weights": space.cells(r.mixture),
    "mean": r.mean,
    "sd": r.sd,
    "observed": r.observed,
  }
