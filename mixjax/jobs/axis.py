"""One axis of the search: MixAtlas in batches, replicates, and the baselines' random design."""

import numpy as np
from jaxtyping import Float

from mixjax.jobs.runner import Ask, Runner
from mixjax.search import total
from mixjax.search.policies import Observations, Recommendation
from mixjax.search.policies.best_of_random import BestOfRandom
from mixjax.search.policies.mixatlas import MixAtlas
from mixjax.search.policies.regmix import RegMix
from mixjax.search.space import Space

LEADERS = 3  # mixtures of highest posterior mean that share the replicates


class AxisSearch:
  """Runs of one axis and what follows from them.

  `uniform: float[n, b]` are the benchmark scores of the uniform mixture under n seeds: every method
  gets them, since they cost each the same, and they tell the surrogate the noise.
  """

  def __init__(self, space: Space, runner: Runner, uniform: Float[np.ndarray, "n b"]):
    self.space = space
    self.history: list[dict] = []
    self._runner = runner
    self._at_uniform = _observed(np.repeat(space.uniform()[None], len(uniform), axis=0), uniform)

  def run(self, points: Float[np.ndarray, "n d"], purpose: str, replicate: int = 0) -> Observations:
    """The runs on `points`; each is entered in the history."""
    space = self.space
    asks = [Ask(purpose, space.name, space.cells(p), space.as_dict(p), replicate) for p in points]
    results = self._runner.run(asks)
    for ask, result in zip(asks, results, strict=True):
      self.history.append(
        {
          "purpose": purpose,
          "trial": result.trial,
          "score": result.score,
          "vector": result.vector,
          "point": ask.point,
        }
      )
    return _observed(points, np.array([result.vector for result in results]))

  def with_uniform(self, runs: Observations) -> Observations:
    """What a policy sees: the uniform seeds, then these runs."""
    return Observations.concatenate([self._at_uniform, runs])

  def mixatlas(self, policy: MixAtlas, runs: int, replicates: int, batch: int, key) -> Observations:
    """Algorithm 1 in batches: seeds, GP-UCB, then fresh seeds for the leaders; `runs` in all."""
    done = self.run(policy.ask(Observations.none(self.space), policy.seeds, key), "seed")
    while len(done) < runs - replicates:
      count = min(batch, runs - replicates - len(done))
      asked = policy.ask(self.with_uniform(done), count, key)
      done = Observations.concatenate([done, self.run(asked, "mixatlas")])
    for replicate in range(1, replicates + 1):
      leaders = self._leaders(done)
      again = leaders[(replicate - 1) % len(leaders)][None]
      done = Observations.concatenate([done, self.run(again, "replicate", replicate)])
    return self.with_uniform(done)

  def _leaders(self, runs: Observations) -> Float[np.ndarray, "k d"]:
    """The evaluated mixtures of highest posterior mean, each once."""
    distinct = np.unique(runs.mixtures, axis=0)
    mean, _ = total.fit(self.with_uniform(runs), self.space).predict(distinct)
    return distinct[np.argsort(-mean, kind="stable")[:LEADERS]]


def _observed(points: Float[np.ndarray, "n d"], vectors: Float[np.ndarray, "n b"]) -> Observations:
  """A run scores the mean of its benchmarks."""
  return Observations(points, vectors.mean(axis=1), parts=vectors / vectors.shape[1])


def search_axis(space: Space, budget, config, runner: Runner, uniform, key) -> dict:
  """All runs of one axis; returns its part of search.json.

  `budget` is a `search.AxisBudget` and `config` a `search.SearchConfig`.
  """
  search = AxisSearch(space, runner, uniform)
  policy = MixAtlas(space, seeds=budget.seeds, top=config.top, floor=config.floor)
  observed = search.mixatlas(policy, budget.runs, budget.replicates, config.batch, key)
  design = BestOfRandom(space).ask(Observations.none(space), budget.runs, key)
  drawn = search.run(design, "random")
  recommended = {
    "mixatlas": policy.recommend(observed),
    "mixatlas-observed": MixAtlas(space, recommend_by="observed").recommend(observed),
    "random": BestOfRandom(space).recommend(drawn),
    "regmix": RegMix(space).recommend(search.with_uniform(drawn)),
  }
  fitted = total.fit(observed, space)
  left_out = fitted.leave_one_out()
  return {
    "coordinates": list(space.names),
    "blocks": [axis.name for axis in space.axes],
    "history": search.history,
    "leave_one_out": {
      "observed": observed.scores.tolist(),
      "mean": left_out.mean.tolist(),
      "sd": left_out.sd.tolist(),
    },
    "recommended": {name: _as_json(space, r) for name, r in recommended.items()},
    "uniform_posterior": [float(v[0]) for v in fitted.predict(space.uniform()[None])],
  }


def _as_json(space: Space, r: Recommendation) -> dict:
  return {
    "point": space.as_dict(r.mixture),
    "weights": space.cells(r.mixture),
    "mean": r.mean,
    "sd": r.sd,
    "observed": r.observed,
  }
