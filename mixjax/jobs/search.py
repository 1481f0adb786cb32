"""The main job: a corpus in, a recipe out, checked on the target model.

    atlas ─► baselines and policies ask, the pool runs proxies, the study keeps every score
          ─► recommendations, replicated ─► recipe ─► target runs on recipe and baselines ─► report

Each proposal is a function of the finished trials and the seed, so a killed job goes on where it
was and ends with the same recipe, bit for bit.
"""

import dataclasses
import json

import numpy as np
from etils import epath

from mixjax.corpus.gallery.matched import matched_weights
from mixjax.data import mixture
from mixjax.evals import benchmarks
from mixjax.jobs import transfer
from mixjax.jobs.atlas import AtlasConfig
from mixjax.jobs.atlas import run as build_atlas
from mixjax.jobs.pool import LocalPool
from mixjax.jobs.runner import Ask, Runner
from mixjax.jobs.trial import Budget, Corpus
from mixjax.jobs.workdir import claim, write_whole
from mixjax.progress import Reporter
from mixjax.recipes import recipe as recipe_lib
from mixjax.recipes import report
from mixjax.search import surrogate
from mixjax.search.policies import Observations, Recommendation
from mixjax.search.policies.best_of_random import BestOfRandom
from mixjax.search.policies.mixatlas import MixAtlas
from mixjax.search.policies.regmix import RegMix
from mixjax.search.space import Space, candidates

SPACES = {"task": Space.task_axis, "concept": Space.concept_axis, "product": Space.product}


@dataclasses.dataclass(frozen=True)
class AxisBudget:
  """Proxies on one axis: `seeds` at random, then UCB up to `runs`, replicates included."""

  seeds: int
  runs: int
  replicates: int = 4


@dataclasses.dataclass(frozen=True)
class SearchConfig:
  """Everything the main job needs. The recipe comes from the axis `headline`."""

  atlas: AtlasConfig
  proxy: Budget
  target: Budget
  axes: dict[str, AxisBudget]
  headline: str = "product"
  pool: int = 2000
  batch: int = 4
  uniform_seeds: int = 4
  target_seeds: int = 1
  correlation_mixtures: int = 0  # mixtures run on the target beyond the recipes, to compare ranks
  top: int = 16
  floor: float = 0.1
  seed: int = 0
  workers: int | None = None


def parse(config: dict) -> SearchConfig:
  """ConfigDict's plain dict -> dataclasses; ConfigDict ends here."""
  fields = {k: v for k, v in config.items() if k != "job"}
  return SearchConfig(
    **fields
    | dict(
      atlas=AtlasConfig(**config["atlas"]),
      proxy=Budget(**config["proxy"]),
      target=Budget(**config["target"]),
      axes={name: AxisBudget(**budget) for name, budget in config["axes"].items()},
    )
  )


def main(config: dict, workdir: str) -> None:
  """The job as the front door calls it."""
  parsed = parse(config)
  folder = claim(workdir, config)
  reporter = Reporter()
  try:
    run(parsed, folder, reporter)
  finally:
    reporter.close()


def run(config: SearchConfig, workdir: epath.Path, reporter: Reporter) -> None:
  """The whole job, or the rest of it: study/, recipe.json, targets.json, report.html."""
  atlas_folder = build_atlas(config.atlas, workdir, reporter)
  corpus = Corpus(str(atlas_folder), str(config.atlas.checkpoint_folder / "tokenizer"))
  manifest = json.loads((atlas_folder / "cells" / "manifest.json").read_text())
  rows = {cell: entry["rows"] for cell, entry in manifest["cells"].items()}
  with LocalPool(corpus, str(workdir / "cache"), config.workers) as pool:
    runner = Runner(workdir / "study", pool, config.proxy, config.seed, reporter)
    known = _baselines(config, atlas_folder, rows)
    found = search(config, runner, rows, known, reporter)
    write_whole(workdir / "search.json", json.dumps(found, indent=1))
    made = recipe_lib.make(found, config.headline, workdir)
    write_whole(workdir / "recipe.json", json.dumps(made, indent=1))
    reporter.say(recipe_lib.describe(made))
    transfer.run(config, workdir, pool, found, known, reporter)
  reporter.stage("report")
  path = report.write(workdir)
  reporter.say(f"report: {path}")


def _baselines(config: SearchConfig, atlas_folder: epath.Path, rows) -> dict[str, dict[str, float]]:
  """Mixtures that need no search; `matched` only where the true domains are known."""
  known = {"uniform": mixture.uniform(rows), "natural": mixture.natural(rows)}
  card = json.loads((atlas_folder / "card.json").read_text())
  if card["domains"]:
    asked = benchmarks.read(atlas_folder / "questions" / "validation.json")
    filled = [cell for cell, n in rows.items() if n]
    found = matched_weights(asked, card["domains"], filled, card.get("mislabelled", {}))
    known["matched"] = dict.fromkeys(rows, 0.0) | found
  return known


def spaces(config: SearchConfig, rows: dict[str, int]) -> dict[str, Space]:
  """The searched axes, each with its pool of candidates."""
  concepts = list(dict.fromkeys(cell.split("/")[0] for cell in rows))
  tasks = list(dict.fromkeys(cell.split("/")[1] for cell in rows))
  empty = {cell for cell, n in rows.items() if not n}
  found = {}
  for i, name in enumerate(config.axes):
    space = SPACES[name](concepts, tasks, empty=empty)
    found[name] = space.with_pool(candidates(space, config.pool, (config.seed, i)))
  return found


def search(config: SearchConfig, runner: Runner, rows, known, reporter: Reporter) -> dict:
  """All proxies: baselines, then each axis. Returns what search.json holds."""
  axes = spaces(config, rows)
  total = config.uniform_seeds + len(known) - 1
  total += sum(2 * budget.runs for budget in config.axes.values())  # MixAtlas, and at random
  reporter.stage("proxies", total)
  noise_asks = [
    Ask("uniform", "none", known["uniform"], {}, replicate=i) for i in range(config.uniform_seeds)
  ]
  others = [Ask(name, "none", weights, {}) for name, weights in known.items() if name != "uniform"]
  results = runner.run(noise_asks + others)
  uniform = np.array([r.score for r in results[: len(noise_asks)]])
  noise = float(uniform.std(ddof=1)) if len(uniform) > 1 else 0.0
  reporter.say(
    f"uniform: {uniform.mean():.2f} +- {noise:.2f} over {len(uniform)} seeds (the noise bar)"
  )
  found = {
    "benchmarks": list(benchmarks.BENCHMARKS),
    "noise": {"uniform": uniform.tolist(), "sd": noise},
    "baselines": {
      name: {"weights": known[name], "score": r.score}
      for name, r in zip(
        [a.purpose for a in noise_asks[:1] + others], results[len(noise_asks) - 1 :], strict=True
      )
    },
    "axes": {},
  }
  found["baselines"]["uniform"]["score"] = float(uniform.mean())
  for name, space in axes.items():
    found["axes"][name] = _search_axis(config, name, space, runner, uniform, reporter)
  return found


def _search_axis(
  config, name: str, space: Space, runner: Runner, uniform, reporter: Reporter
) -> dict:
  """MixAtlas in batches; the random design that best-of-random and RegMix share; replicates."""
  budget = config.axes[name]
  key = (config.seed, 100, list(SPACES).index(name))
  mixatlas = MixAtlas(space, seeds=budget.seeds, top=config.top, floor=config.floor)
  at_uniform = (np.repeat(space.uniform()[None], len(uniform), axis=0), uniform)
  history: list[dict] = []
  points, scores, vectors = [], [], []

  def observed() -> Observations:
    # The uniform runs cost every method the same and tell the surrogate the noise.
    return Observations(
      np.concatenate([at_uniform[0], np.array(points).reshape(-1, space.dim)]),
      np.concatenate([at_uniform[1], scores]),
    )

  def run(asked: np.ndarray, purpose: str, replicate: int = 0) -> list[float]:
    asks = [
      Ask(purpose, name, space.cells(point), space.as_dict(point), replicate) for point in asked
    ]
    results = runner.run(asks)
    for point, result in zip(asked, results, strict=True):
      history.append(
        {
          "purpose": purpose,
          "trial": result.trial,
          "score": result.score,
          "point": space.as_dict(point),
        }
      )
    return [r.score for r in results], [r.vector for r in results]

  def tell(asked, purpose, replicate=0):
    got, rows_ = run(asked, purpose, replicate)
    points.extend(asked)
    scores.extend(got)
    vectors.extend(rows_)

  first = mixatlas.ask(Observations.none(space), budget.seeds, key)
  tell(first, "seed")
  searched = budget.runs - budget.replicates
  while len(scores) < searched:
    tell(mixatlas.ask(observed(), min(config.batch, searched - len(scores)), key), "mixatlas")
  for replicate in range(1, budget.replicates + 1):
    # Fresh seeds for the leaders, one at a time over the best three by posterior mean.
    leaders = _leaders(surrogate.fit(observed(), space), np.array(points), 3)
    tell(leaders[(replicate - 1) % 3][None], "replicate", replicate)
  best = mixatlas.recommend(observed())
  fitted = surrogate.fit(observed(), space)
  left_out = fitted.leave_one_out()

  design = BestOfRandom(space).ask(Observations.none(space), budget.runs, key)
  random_scores, random_vectors = run(design, "random")
  random_observations = Observations(
    np.concatenate([at_uniform[0], design]), np.concatenate([at_uniform[1], random_scores])
  )
  regmix = RegMix(space)
  recommended = {
    "mixatlas": best,
    "mixatlas-observed": MixAtlas(space, recommend_by="observed").recommend(observed()),
    "random": BestOfRandom(space).recommend(Observations(design, np.array(random_scores))),
    "regmix": regmix.recommend(random_observations),
  }
  for policy, r in recommended.items():
    said = f"{r.mean:.2f}" + (f" +- {r.sd:.2f}" if r.sd else "") if r.mean is not None else "?"
    reporter.say(f"  {name:8} {policy:18} expects {said}")
  return {
    "coordinates": list(space.names),
    "blocks": [axis.name for axis in space.axes],
    "history": history,
    "leave_one_out": {
      "observed": observed().scores.tolist(), "mean": left_out.mean.tolist(), "sd":
      left_out.sd.tolist(),
    },
    "recommended": {policy: _as_json(space, r) for policy, r in recommended.items()},
    "uniform_posterior": [float(v[0]) for v in fitted.predict(space.uniform()[None])],
    "sensitivity_runs": {
      "points": [*np.array(points).tolist(), *design.tolist()],
      "vectors": [*vectors, *random_vectors],
    },
  }  # fmt: skip


def _leaders(fitted: surrogate.Surrogate, points: np.ndarray, count: int) -> np.ndarray:
  """The evaluated mixtures of highest posterior mean, each once."""
  distinct = np.unique(points, axis=0)
  mean, _ = fitted.predict(distinct)
  return distinct[np.argsort(-mean, kind="stable")[:count]]


def _as_json(space: Space, r: Recommendation) -> dict:
  return {
    "point": space.as_dict(r.mixture), "weights": space.cells(r.mixture),
    "mean": r.mean, "sd": r.sd, "observed": r.observed,
  }  # fmt: skip
