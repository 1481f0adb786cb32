"""A space, and trials on it, for the tests of studies."""

import dataclasses

from mixjax.search.space import Space, candidates
from mixjax.search.trial import Trial

SPACE = Space.task_axis(("maps", "charts"), ("caption", "ocr", "vqa"))
SPACE = SPACE.with_pool(candidates(SPACE, 50, 0))
CONFIG = {"proxy": {"steps": 100, "lr": 0.1}, "tasks": ("caption", "ocr")}
SCORES = {"ocr": {"score": 0.5, "stderr": 0.01, "n": 60}, "vqa": {"score": -1.25, "n": 3}}


def make_trial(row=3, **changes):
  point = SPACE.pool[row]
  command = "python -m mixjax.main --config=configs/train.py"
  trial = Trial(None, "seed", "task", SPACE.cells(point), SPACE.as_dict(point), 1, 100.0, command)
  return dataclasses.replace(trial, **changes)
