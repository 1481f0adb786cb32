"""The mixture that a config names, what a run makes of it, and what is said of that."""

import json
from collections.abc import Callable, Mapping

from etils import epath

from mixjax.data import mixture
from mixjax.data.stages import Stage, Stages
from mixjax.data.supply import Plan
from mixjax.progress import Reporter
from mixjax.recipes import recipe as recipe_lib

STAGES = "stages.json"
_SHOWN = 4  # cells of a stage that are said

Weights = dict[str, float]


def named_mixture(name: str, rows: Mapping[str, int]) -> Weights:
  """`name` is uniform, natural, or a file: a recipe, a trial's mixture.json, `{cell: weight}`."""
  if name in ("uniform", "natural"):
    return getattr(mixture, name)(rows)
  content = _read(name)
  if "stages" in content:
    raise ValueError(f"mixture {name} lists stages, and this takes one mixture: name one of them")
  if "format" in content:
    content = recipe_lib.load(name)["weights"]
  return mixture.check(content.get("mixture", content), rows)


def named_stages(name: str, rows: Mapping[str, int]) -> dict[int, Weights] | Stages:
  """Mixtures by the step at which each begins; as stages by sample where a file says samples.

  `name` is what `named_mixture` takes, for the whole run, or a file of one of

      {"stages": [{"step": 0, "mixture": "early.json"}, {"step": 2000, "mixture": {cell: weight}}]}

  and of what a run writes as its own stages.json. A mixture in a file is one by name, files counted
  from that file's folder, or the weights themselves. Raises ValueError for a file that says
  something else, naming it and the stage.
  """
  if name in ("uniform", "natural") or "stages" not in _read(name):
    return {0: named_mixture(name, rows)}
  listed = _read(name)["stages"]
  if not isinstance(listed, list) or not all(isinstance(stage, dict) for stage in listed):
    raise ValueError(f"mixture {name}: its stages are no list of objects")
  if listed and all("start" in stage for stage in listed):
    stages = Stages.load(name)
    return Stages(tuple(Stage(one.start, _of_stage(name, one, rows)) for one in stages))
  found: dict[int, Weights] = {}
  for stage in listed:
    step = stage.get("step")
    if type(step) is not int or step in found or step < max(found, default=0):
      raise ValueError(
        f"mixture {name}: a stage has the step {step!r}; steps are whole numbers, each after the "
        "one before"
      )
    if "mixture" not in stage:
      raise ValueError(f"mixture {name}: the stage of step {step} has no mixture")
    found[step] = _of_stage(name, stage, rows)
  if 0 not in found:
    raise ValueError(f"mixture {name}: no stage begins at step 0: say what holds from there on")
  return found


def _of_stage(name: str, stage: Mapping | Stage, rows: Mapping[str, int]) -> Weights:
  """The weights of one stage of a file; what is wrong with them is said with the stage."""
  of = stage.weights if isinstance(stage, Stage) else stage["mixture"]
  begins = f"sample {stage.start}" if isinstance(stage, Stage) else f"step {stage['step']}"
  try:
    if isinstance(of, str):
      beside = epath.Path(name).parent / of
      return named_mixture(of if of in ("uniform", "natural") else str(beside), rows)
    return mixture.check(of, rows)
  except (ValueError, OSError) as error:
    raise ValueError(f"mixture {name}, from {begins} on: {error}") from error


def _read(name: str) -> dict:
  path = epath.Path(name)
  if not path.exists():
    raise FileNotFoundError(f"mixture {name!r} is neither uniform, natural nor a file")
  try:
    content = json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(f"mixture {name} is no JSON: {error}") from error
  if not isinstance(content, dict):
    raise ValueError(f"mixture {name} is no JSON object of {{cell: weight}}")
  return content


def check_kept(folder: epath.Path, stages: Stages) -> None:
  """Raises ValueError where a run that began in this folder had other stages."""
  path = folder / STAGES
  if path.exists() and Stages.load(path) != stages:
    raise ValueError(
      f"{path} is of a run of other stages: its mixture's file or its cells have changed since it "
      "began. Put them back, or use another --workdir"
    )


def keep(folder: epath.Path, stages: Stages) -> None:
  """Writes the stages into the run's folder, from which a run can be given them again."""
  folder.mkdir(parents=True, exist_ok=True)
  stages.save(folder / STAGES)


def describe(plan: Plan, step_of: Callable[[int], int | None]) -> dict:
  """What result.json holds: where stages begin, and the cells that run out.

  `step_of` finds the step of a sample, None for one after the run.
  """
  return {
    "stages": [{"start": one.start, "step": step_of(one.start)} for one in plan.stages],
    "run_out": {
      cell: {"sample": sample, "step": step_of(sample)} for cell, sample in plan.run_out.items()
    },
  }


def say(reporter: Reporter, plan: Plan, described: Mapping, exhausted: str) -> None:
  """The same in words, before the run begins; nothing of a run of one stage that none leaves."""
  if len(plan.stages) > 1:
    reporter.say(f"{len(plan.stages)} stages:")
    for stage, where in zip(plan.stages, described["stages"], strict=True):
      most = sorted(stage.weights.items(), key=lambda item: -item[1])
      shown = ", ".join(f"{100 * share:.1f}% {cell}" for cell, share in most[:_SHOWN] if share)
      more = sum(1 for _, share in most[_SHOWN:] if share)
      reporter.say(f"  from {_where(where, 'start')}: {shown}" + (f", {more} more" * bool(more)))
  what = "is read on" if exhausted == "repeat" else "gives its weight to the others"
  for cell, where in described["run_out"].items():
    reporter.say(f"  {cell} runs out at {_where(where, 'sample')} and {what}")


def _where(of: Mapping, sample: str) -> str:
  step = "after the run" if of["step"] is None else f"step {of['step']}"
  return f"sample {of[sample]} ({step})"
