"""The main job: a corpus in, a recipe out, checked on the target model.

    atlas ─► baselines and policies ask, the pool runs proxies, the study keeps every score
          ─► recommendations, replicated ─► recipe ─► target runs on recipe and baselines ─► report

Each proposal is a function of the finished trials and the seed, so a killed job goes on where it
was and ends with the same recipe, bit for bit.
"""

import dataclasses
import json
import math

import numpy as np
from etils import epath
from jaxtyping import Float

from mixjax.corpus.gallery.matched import matched_weights
from mixjax.data import mixture
from mixjax.evals import benchmarks
from mixjax.jobs import transfer
from mixjax.jobs.atlas import AtlasConfig
from mixjax.jobs.atlas import run as build_atlas
from mixjax.jobs.axis import search_axis
from mixjax.jobs.pool import local_pool
from mixjax.jobs.runner import Ask, Diverged, Runner
from mixjax.jobs.trial import Budget, Corpus
from mixjax.jobs.workdir import claim, write_whole
from mixjax.progress import Reporter
from mixjax.recipes import recipe as recipe_lib
from mixjax.recipes import report
from mixjax.search import design
from mixjax.search.acquire import KAPPA, Acquisition, check_acquisition
from mixjax.search.constraints import Constraints, supply_caps
from mixjax.search.objective import Objective
from mixjax.search.space import Space, candidates

# The place of an axis is part of its key: new ones go to the end.
SPACES = {
  "task": Space.task_axis,
  "concept": Space.concept_axis,
  "product": Space.product,
  "joint": Space.joint,
}


@dataclasses.dataclass(frozen=True)
class AxisBudget:
  """Proxies on one axis: `seeds` at random, then UCB up to `runs`, replicates included."""

  seeds: int
  runs: int
  replicates: int = 4


@dataclasses.dataclass(frozen=True)
class SearchOptions:
  """How MixAtlas proposes (see `policies.mixatlas`), and how much data there is to propose.

  With a `repetition` above 0 no method proposes or recommends a mixture that shows the target a
  row more often than that; 0 sets no limit. ValueError names an option that cannot be.
  """

  acquisition: Acquisition = "ucb"
  kappa: float = KAPPA
  continuous: bool = False
  repetition: float = 0.0

  def __post_init__(self):
    check_acquisition(self.acquisition)
    if self.continuous and self.acquisition == "thompson":
      raise ValueError("search.acquisition thompson needs search.continuous False: it uses a pool")
    for name in ("kappa", "repetition"):
      if not (math.isfinite(value := getattr(self, name)) and value >= 0):
        raise ValueError(f"search.{name} is {value}: it is finite and not negative")


@dataclasses.dataclass(frozen=True)
class SearchConfig:
  """Everything the main job needs. The recipe comes from the axis `headline`.

  `objective` is what each benchmark counts, `{name: weight}`; empty weighs all alike. ValueError
  names an axis or a benchmark that is not known, or weights that cannot be.
  """

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
  search: SearchOptions = SearchOptions()
  objective: dict[str, float] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    if unknown := [name for name in self.axes if name not in SPACES]:
      raise ValueError(f"axes names {unknown}; known are {', '.join(SPACES)}")
    if self.headline not in self.axes:
      raise ValueError(
        f"the recipe is to come from the axis {self.headline!r}, which is not searched: "
        f"make headline one of {', '.join(self.axes)}, or give it a budget in axes"
      )
    if unknown := [name for name in self.objective if name not in benchmarks.BENCHMARKS]:
      raise ValueError(
        f"objective weighs {unknown}, which are no benchmarks; "
        f"known are {', '.join(benchmarks.BENCHMARKS)}"
      )
    _ = self.weights

  @property
  def weights(self) -> Float[np.ndarray, " b"] | None:
    """What each benchmark counts, summing to 1; None where the score is their plain mean."""
    if not self.objective:
      return None
    return Objective(self.objective).over(tuple(benchmarks.BENCHMARKS))


def parse(config: dict) -> SearchConfig:
  """ConfigDict's plain dict -> dataclasses; ConfigDict ends here."""
  fields = {k: v for k, v in config.items() if k != "job"}
  options = config.get("search", {})
  known = [field.name for field in dataclasses.fields(SearchOptions)]
  if unknown := [name for name in options if name not in known]:
    raise ValueError(f"search has no option {unknown}; known are {', '.join(known)}")
  return SearchConfig(
    **fields
    | dict(
      atlas=AtlasConfig(**config["atlas"]),
      proxy=Budget(**config["proxy"]),
      target=Budget(**config["target"]),
      axes={name: AxisBudget(**budget) for name, budget in config["axes"].items()},
      search=SearchOptions(**options),
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
  """Mixtures that need no search; `matched` only where the true domains are known."""
  known = {"uniform": mixture.uniform(rows), "natural": mixture.natural(rows)}
  card = json.loads((atlas_folder / "card.json").read_text())
  if card["domains"]:
    asked = benchmarks.read(atlas_folder / "questions" / "validation.json")
    filled = [cell for cell, n in rows.items() if n]
    found = matched_weights(asked, card["domains"], filled, card.get("mislabelled", {}))
    known["matched"] = dict.fromkeys(rows, 0.0) | found
  return known


def spaces(
  config: SearchConfig, rows: dict[str, int]
) -> dict[str, tuple[Space, Constraints | None]]:
  """The searched axes, each with its pool of candidates and what the rows there are allow.

  ValueError if they allow nothing, or if a pool is too small for its axis.
  """
  concepts = list(dict.fromkeys(cell.split("/")[0] for cell in rows))
  tasks = list(dict.fromkeys(cell.split("/")[1] for cell in rows))
  empty = {cell for cell, n in rows.items() if not n}
  found = {}
  for i, name in enumerate(config.axes):
    space, limits = SPACES[name](concepts, tasks, empty=empty), None
    if config.search.repetition:
      limits = _supply(space, config, rows)
      pool = design.pool(space, config.pool, (config.seed, i), limits)
    else:
      pool = candidates(space, config.pool, (config.seed, i))
    if len(pool) < config.axes[name].runs:
      raise ValueError(
        f"the {name} axis has a pool of {len(pool)} candidates for {config.axes[name].runs} runs: "
        "enlarge pool, raise search.repetition, or lower the runs of the axis"
      )
    found[name] = space.with_pool(pool), limits
  return found


def _supply(space: Space, config: SearchConfig, rows: dict[str, int]) -> Constraints:
  """No row is seen more often than `repetition` times by a target run."""
  samples, repetition = config.target.samples, config.search.repetition
  try:
    return Constraints(space, caps=supply_caps(space, rows, samples, repetition))
  except ValueError as error:
    raise ValueError(
      f"no mixture on the {space.name} axis shows each row at most {repetition} times in "
      f"{samples} target samples: raise search.repetition or lower target.samples ({error})"
    ) from error


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
  found = {
    "benchmarks": list(benchmarks.BENCHMARKS),
    "noise": {"uniform": uniform.tolist(), "sd": noise},
    "baselines": {name: {"weights": known[name], "score": s} for name, s in baselines.items()},
    "axes": {},
  }
  # What is as it always was goes without saying.
  if config.objective:
    shares = zip(benchmarks.BENCHMARKS, config.weights.tolist(), strict=True)
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
