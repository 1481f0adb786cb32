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
from mixjax.data.loader import INDEX
from mixjax.evals import benchmarks
from mixjax.jobs import transfer
from mixjax.jobs.atlas import run as build_atlas
from mixjax.jobs.axis import search_axis
from mixjax.jobs.pool import local_pool
from mixjax.jobs.runner import Ask, Diverged, Runner
from mixjax.jobs.search_config import SPACES, SearchConfig, SearchOptions, parse, spaces
from mixjax.jobs.trial import Corpus
from mixjax.jobs.workdir import claim, write_whole
from mixjax.progress import Reporter
from mixjax.recipes import recipe as recipe_lib
from mixjax.recipes import report


def main(config: dict, workdir: str) -> None:
  """The job as the front door calls it."""
  parsed = parse(config)
  _ = parsed.weights  # says what is no benchmark, before the workdir is this config's
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
  # Of cells as proxies read them: one without a row that they can use takes no weight.
  encoded = json.loads((atlas_folder / "encoded" / INDEX).read_text())
  rows = {cell: entry["rows"] for cell, entry in encoded["cells"].items()}
  with local_pool(corpus, str(workdir / "cache"), config.workers) as pool:
    runner = Runner(workdir / "study", pool, config.proxy, config.seed, reporter, config.weights)
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
  """Mixtures that need no search; `matched` only for the gallery, whose makers say what it asks."""
  known = {"uniform": mixture.uniform(rows), "natural": mixture.natural(rows)}
  if config.atlas.corpus == "gallery":
    card = json.loads((atlas_folder / "card.json").read_text())
    # The card has the names that the concepts were given, cells those that they have by now.
    names = json.loads((atlas_folder / "atlas.json").read_text())["names"]
    domains = dict(zip(names, card["domains"].values(), strict=True))
    asked = benchmarks.read(atlas_folder / "questions" / "validation.json")
    filled = [cell for cell, n in rows.items() if n]
    found = matched_weights(asked, domains, filled, card.get("mislabelled", {}))
    known["matched"] = dict.fromkeys(rows, 0.0) | found
  return known


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
  for ask, result in zip(noise_asks + others, results, strict=True):
    if isinstance(result, Diverged):
      raise ValueError(
        f"the baseline {ask.purpose!r}, which every method is compared with, diverged (trial "
        f"{result.trial}: {result.why}); lower proxy.learning_rate, now "
        f"{config.proxy.learning_rate}, and use another --workdir"
      )
  at_uniform = results[: len(noise_asks)]
  uniform = np.array([r.score for r in at_uniform])
  noise = float(uniform.std(ddof=1)) if len(uniform) > 1 else 0.0
  reporter.say(
    f"uniform: {uniform.mean():.2f} +- {noise:.2f} over {len(uniform)} seeds (the noise bar)"
  )
  baselines = {"uniform": float(uniform.mean())}
  for ask, result in zip(others, results[len(noise_asks) :], strict=True):
    baselines[ask.purpose] = result.score
  names = config.benchmarks
  found = {
    "benchmarks": list(names),
    "noise": {"uniform": uniform.tolist(), "sd": noise},
    "baselines": {name: {"weights": known[name], "score": s} for name, s in baselines.items()},
    "axes": {},
  }
  # What is as it always was goes without saying.
  if config.objective:
    shares = zip(names, config.weights.tolist(), strict=True)
    found["objective"] = {name: share for name, share in shares if share}
  if config.search != SearchOptions():
    found["search"] = dataclasses.asdict(config.search)
  vectors = np.array([r.vector for r in at_uniform])
  for name, (space, limits) in axes.items():
    key = (config.seed, 100, list(SPACES).index(name))
    side = search_axis(space, limits, config.axes[name], config, runner, vectors, key)
    found["axes"][name] = side
    for policy, r in side["recommended"].items():
      sd = f" +- {r['sd']:.2f}" if r["sd"] else ""
      reporter.say(f"  {name:8} {policy:18} expects {r['mean']:.2f}{sd}")
  return found
