"""The train job: one model on one mixture, resumable, scored at the end."""

import json

from clu import parameter_overview
from etils import epath
from flax import nnx

from mixjax.data import supply
from mixjax.data.stages import Stages
from mixjax.jobs import mixtures
from mixjax.jobs.atlas import STANDINS, refuse_grown
from mixjax.jobs.trial import Budget, Corpus, TrialSpec, World
from mixjax.jobs.workdir import claim, write_whole
from mixjax.progress import Reporter


def main(config: dict, workdir: str) -> None:
  """The job as the front door calls it.

  Leaves stages.json, checkpoints/, metrics.jsonl and result.json.
  """
  atlas = epath.Path(config["atlas"])
  if not (atlas / "cells" / "manifest.json").exists():
    raise FileNotFoundError(
      f"no cells in {atlas}: build them with configs/atlas.py or configs/search.py"
    )
  refuse_grown(atlas / "cells")
  world = World(Corpus(str(atlas), config["tokenizer"] or str(STANDINS / "tokenizer")))
  weights = mixtures.named_stages(config["mixture"], world.cells.rows)
  budget = Budget(**config["budget"])
  if budget.steps < 1:
    raise ValueError(f"samples={budget.samples} are no batch of {budget.batch_size}: give more")
  if not isinstance(weights, Stages):
    weights = Stages.at_steps(weights, budget.batch_size)
  plan = supply.plan(
    weights,
    world.cells.rows,
    budget.steps * budget.batch_size,
    config["repetition"],
    config["exhausted"],
  )
  mixtures.check_kept(epath.Path(workdir), plan.stages)
  folder = claim(workdir, config)  # a config that cannot run has claimed nothing
  mixtures.keep(folder, plan.stages)
  reporter = Reporter()
  planned = mixtures.describe(plan, lambda sample: _step(sample, budget))
  mixtures.say(reporter, plan, planned, config["exhausted"])
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

  spec = TrialSpec(str(folder), plan.stages, config["seed"], budget, full=config["full"])
  result = world.run(spec, on_step, {"planned": planned})
  write_whole(folder / "scores.json", json.dumps(result["scores"], indent=1))
  reporter.close()
  reporter.say(f"scores: {folder / 'scores.json'}")


def _step(sample: int, budget: Budget) -> int | None:
  step = sample // budget.batch_size
  return step if step < budget.steps else None
