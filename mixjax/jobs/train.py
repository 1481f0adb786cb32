"""The train job: one model on one mixture, resumable, scored at the end."""

import json

from clu import parameter_overview
from etils import epath
from flax import nnx

from mixjax.data import mixture
from mixjax.jobs.atlas import STANDINS, refuse_grown
from mixjax.jobs.trial import Budget, Corpus, TrialSpec, World
from mixjax.jobs.workdir import claim, write_whole
from mixjax.progress import Reporter
from mixjax.recipes import recipe as recipe_lib


def named_mixture(name: str, rows: dict[str, int]) -> dict[str, float]:
  """`name` is uniform, natural, or a file: a recipe, a trial's mixture.json, `{cell: weight}`."""
  if name in ("uniform", "natural"):
    return getattr(mixture, name)(rows)
  path = epath.Path(name)
  if not path.exists():
    raise FileNotFoundError(f"mixture {name!r} is neither uniform, natural nor a file")
  try:
    content = json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(f"mixture {name} is no JSON: {error}") from error
  if not isinstance(content, dict):
    raise ValueError(f"mixture {name} is no JSON object of {{cell: weight}}")
  if "format" in content:
    content = recipe_lib.load(path)["weights"]
  return mixture.check(content.get("mixture", content), rows)


def main(config: dict, workdir: str) -> None:
  """The job as the front door calls it: leaves checkpoints/, metrics.jsonl and result.json."""
  atlas = epath.Path(config["atlas"])
  if not (atlas / "cells" / "manifest.json").exists():
    raise FileNotFoundError(
      f"no cells in {atlas}: build them with configs/atlas.py or configs/search.py"
    )
  refuse_grown(atlas / "cells")
  world = World(Corpus(str(atlas), config["tokenizer"] or str(STANDINS / "tokenizer")))
  weights = named_mixture(config["mixture"], world.cells.rows)
  budget = Budget(**config["budget"])
  if budget.steps < 1:
    raise ValueError(f"samples={budget.samples} are no batch of {budget.batch_size}: give more")
  folder = claim(workdir, config)  # a config that cannot run has claimed nothing
  reporter = Reporter()
  _, params = world.start(budget.model)
  overview = parameter_overview.get_parameter_overview(
    nnx.to_pure_dict(params), include_stats=False
  )
  write_whole(folder / "parameters.txt", overview)
  reporter.stage("train", budget.steps)
  seen = 0

  def on_step(step: int, loss: float) -> None:
    nonlocal seen
    reporter.advance(step - seen, note=f"loss={loss:.3f}")
    seen = step

  spec = TrialSpec(str(folder), weights, config["seed"], budget, full=config["full"])
  result = world.run(spec, on_step)
  write_whole(folder / "scores.json", json.dumps(result["scores"], indent=1))
  reporter.close()
  reporter.say(f"scores: {folder / 'scores.json'}")
