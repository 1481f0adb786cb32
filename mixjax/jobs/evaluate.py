"""The evaluate job: scores of one checkpoint on both held-out splits, sighted and blind."""

import json

from etils import epath

from mixjax.jobs.atlas import STANDINS
from mixjax.jobs.trial import Corpus, World
from mixjax.jobs.workdir import claim, write_whole
from mixjax.progress import Reporter
from mixjax.training.checkpoint import Checkpointer
from mixjax.training.optimizer import OptimizerConfig, make_optimizer
from mixjax.training.step import init_state


def main(config: dict, workdir: str) -> None:
  """The job as the front door calls it: leaves scores.json."""
  folder = claim(workdir, config)
  world = World(Corpus(config["atlas"], config["tokenizer"] or str(STANDINS / "tokenizer")))
  graphdef, params = world.start(config["model"])
  if config["run"]:
    checkpoints = epath.Path(config["run"]) / "checkpoints"
    like = init_state(params, make_optimizer(OptimizerConfig(), steps=1))
    restored = Checkpointer(checkpoints).restore(like) if checkpoints.exists() else None
    if restored is None:
      raise FileNotFoundError(
        f"no checkpoint in {checkpoints}: give run=DIR of a configs/train.py run"
      )
    params = restored[1].params
  reporter = Reporter()
  reporter.stage("evaluate")
  scores = {}
  for split in ("validation", "benchmark"):
    suite = world.suite(split)
    scores[split] = suite.full(graphdef, params)
    scores[f"{split}_blind"] = suite.full(graphdef, params, blind=True)
  write_whole(folder / "scores.json", json.dumps(scores, indent=1))
  for name, entry in scores["benchmark"].items():
    blind = scores["benchmark_blind"][name]["metric"]
    reporter.say(
      f"  {name:12} {entry['metric']:6.2f} +- {entry['metric_stderr']:.2f}   blind {blind:6.2f}"
    )
  reporter.close()
