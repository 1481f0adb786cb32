"""One axis of the search: MixAtlas in batches, replicates, and the baselines' random design."""

import numpy as np
from jaxtyping import Float

from mixjax.jobs.runner import Ask, Runner
from mixjax.search import surrogate
from mixjax.search.policies import Observations, Recommendation
from mixjax.search.policies.best_of_random import BestOfRandom
from mixjax.search.policies.mixatlas import MixAtlas
from mixjax.search.policies.regmix import RegMix
from mixjax.search.space import Space

LEADERS = 3  # mixtures of highest posterior mean that share the replicates


class AxisSearch:
  """Runs of one axis and what follows from them.

  `uniform: float[n]` are scores of the uniform mixture under n seeds: every method gets them, since
  they cost each the same, and they tell the surrogate the noise.
  """

  def __init__(self, space: Space, runner: Runner, uniform: Float[np.ndarray, " n"]):
    self.space = space
    self.history: list[dict] = []
    self._runner = runner
    self._at_uniform = Observations(np.repeat(space.uniform()[None], len(uniform), axis=0), uniform)

  def run(
    self, points: Float[np.ndarray, "n d"], purpose: str, replicate: int = 0
  ) -> Float[np.ndarray, " n"]:
    """Scores of `points`; each run is entered in the history."""
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
    return np.array([result.score for result in results])

  def with_uniform(self, points, scores) -> Observations:
    """What a policy sees: the uniform seeds, then these runs."""
    return Observations(
      np.concatenate([self._at_uniform.mixtures, np.reshape(points, (-1, self.space.dim))]),
      np.concatenate([self._at_uniform.scores, scores]),
    )

  def mixatlas(self, policy: MixAtlas, runs: int, replicates: int, batch: int, key) -> Observations:
    """Algorithm 1 in batches: seeds, GP-UCB, then fresh seeds for the leaders; `runs` in all."""
    points = policy.ask(Observations.none(self.space), policy.seeds, key)
    scores = self.run(points, "seed")

    def tell(asked: np.ndarray, purpose: str, replicate: int = 0) -> None:
      nonlocal points, scores
      scores = np.concatenate([scores, self.run(asked, purpose, replicate)])
      points = np.concatenate([points, asked])

    while len(scores) < runs - replicates:
      count = min(batch, runs - replicates - len(scores))
      tell(policy.ask(self.with_uniform(points, scores), count, key), "mixatlas")
    for replicate in range(1, replicates + 1):
      leaders = self._leaders(points, scores)
      tell(leaders[(replicate - 1) % len(leaders)][None], "replicate", replicate)
    return self.with_uniform(points, scores)

  def _leaders(self, points, scores) -> Float[np.ndarray, "k d"]:
    """The evaluated mixtures of highest posterior mean, each once."""
    distinct = np.unique(points, axis=0)
    mean, _ = surrogate.fit(self.with_uniform(points, scores), self.space).predict(distinct)
    return distinct[np.argsort(-mean, kind="stable")[:LEADERS]]


def search_axis(space: Space, budget, config, runner: Runner, uniform, key) -> dict:
  """All runs of one axis; returns its part of search.json.

  `budget` is a `search.AxisBudget` and `config` a `search.SearchConfig`.
  """
  search = AxisSearch(space, runner, uniform)
  policy = MixAtlas(space, seeds=budget.seeds, top=config.top, floor=config.floor)
  observed = search.mixatlas(policy, budget.runs, budget.replicates, config.batch, key)
  design = BestOfRandom(space).ask(Observations.none(space), budget.runs, key)
  scores = search.run(design, "random")
  recommended = {
    "mixatlas": policy.recommend(observed),
    "mixatlas-observed": MixAtlas(space, recommend_by="observed").recommend(observed),
    "random": BestOfRandom(space).recommend(Observations(design, scores)),
    "regmix": RegMix(space).recommend(search.with_uniform(design, scores)),
  }
  fitted = surrogate.fit(observed, space)
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
