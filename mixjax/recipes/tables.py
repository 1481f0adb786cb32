"""The numbers of the target runs: which recipe is ahead, by how much, how soon, and does it see.

`targets` is everywhere the content of targets.json (mixjax/jobs/transfer.py).
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from scipy.stats import t as student

from mixjax.evals.benchmarks import AVERAGE

BASELINES = ("uniform", "natural", "random", "regmix")
RECIPE = "mixatlas"
RECIPES = (*BASELINES, RECIPE)
LABELS = {
  "uniform": "uniform", "natural": "natural", "random": "best of random", "regmix": "RegMix",
  "mixatlas": "MixAtlas", "matched": "matched by hand", "mixatlas-task": "MixAtlas, tasks only",
  "mixatlas-concept": "MixAtlas, concepts only", "mixatlas-product": "MixAtlas, product",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A mean over `n` seeds. With two or more, `low` to `high` is the 95% t-interval over seeds; with
  one, the mean plus and minus `stderr`, which is then the standard error over questions."""

  mean: float
  stderr: float
  low: float
  high: float
  n: int

  @property
  def half(self) -> float:
    return (self.high - self.low) / 2


def estimate(values: Sequence[float], question_stderr: float) -> Estimate:
  mean, n = float(np.mean(values)), len(values)
  if n == 1:
    return Estimate(mean, question_stderr, mean - question_stderr, mean + question_stderr, 1)
  stderr = float(np.std(values, ddof=1)) / n**0.5
  half = float(student.ppf(0.975, n - 1)) * stderr
  return Estimate(mean, stderr, mean - half, mean + half, n)


def runs_of(targets: dict, name: str, group: str = "target") -> list[dict]:
  """The runs of one mixture, by seed."""
  mine = [r for r in targets["runs"] if (r["group"], r["name"]) == (group, name)]
  return sorted(mine, key=lambda r: r["seed"])


def names_of(targets: dict) -> list[str]:
  """The table's recipes in reading order, then what is set apart from them."""
  there = list(dict.fromkeys(r["name"] for r in targets["runs"] if r["group"] == "target"))
  return [n for n in RECIPES if n in there] + [n for n in there if n not in RECIPES]


def averages(run: dict, split: str = "benchmark") -> tuple[float, float]:
  """(mean over benchmarks of their own metric, its standard error over questions), 0-100."""
  entries = run["scores"][split].values()
  stderr = np.sqrt(np.sum([e["metric_stderr"] ** 2 for e in entries])) / len(entries)
  return float(np.mean([e["metric"] for e in entries])), float(stderr)


def score_on(
  targets: dict, name: str, benchmark: str, group="target", split="benchmark"
) -> Estimate:
  """A mixture's metric on one benchmark, or on all of them for `AVERAGE`."""
  runs = runs_of(targets, name, group)
  if benchmark == AVERAGE:
    pairs = [averages(run, split) for run in runs]
  else:
    entries = [run["scores"][split][benchmark] for run in runs]
    pairs = [(entry["metric"], entry["metric_stderr"]) for entry in entries]
  values, errors = zip(*pairs, strict=True)
  return estimate(values, errors[0])


@dataclasses.dataclass(frozen=True)
class ScoreRow:
  """One benchmark; `best` is the recipe that leads by more than the lead's standard error."""

  benchmark: str
  metric: str
  scores: dict[str, Estimate]
  best: str | None


def score_rows(targets: dict, metrics: Mapping[str, str]) -> list[ScoreRow]:
  """The benchmarks, then their average (the paper's table 1); `metrics` say how each is scored."""
  first = runs_of(targets, names_of(targets)[0])[0]
  rows = []
  for name in [*first["scores"]["benchmark"], AVERAGE]:
    scores = {column: score_on(targets, column, name) for column in names_of(targets)}
    metric = "mean of the metrics" if name == AVERAGE else metrics.get(name, "")
    rows.append(ScoreRow(name, metric, scores, _leader(scores)))
  return rows


def _leader(scores: dict[str, Estimate]) -> str | None:
  ranked = sorted((n for n in RECIPES if n in scores), key=lambda n: -scores[n].mean)
  if len(ranked) < 2:
    return None
  first, second = (scores[n] for n in ranked[:2])
  return ranked[0] if first.mean - second.mean > np.hypot(first.stderr, second.stderr) else None


@dataclasses.dataclass(frozen=True)
class Curve:
  """Loss in nats an answer token on the validation questions, mean over seeds."""

  steps: Float[np.ndarray, " p"]
  loss: Float[np.ndarray, " p"]

  def reaches(self, level: float) -> float | None:
    """Step at which the loss first is down to `level`, linear between points; None if never."""
    below = np.flatnonzero(self.loss <= level)
    if not len(below):
      return None
    i = below[0]
    if i == 0:
      return float(self.steps[0])
    share = (self.loss[i - 1] - level) / (self.loss[i - 1] - self.loss[i])
    return float(self.steps[i - 1] + share * (self.steps[i] - self.steps[i - 1]))


def curves(targets: dict) -> dict[str, Curve]:
  """Recipe -> curve; empty where the runs kept none."""
  found = {}
  for name in names_of(targets):
    runs = [run["curve"] for run in runs_of(targets, name)]
    if all(runs):
      steps = np.array([point["step"] for point in runs[0]], float)
      losses = np.mean([[point["validation_nll"] for point in run] for run in runs], axis=0)
      found[name] = Curve(steps, losses)
  return found


@dataclasses.dataclass(frozen=True)
class Reached:
  """Steps the recipe needs to a baseline's final loss; None: it never gets there."""

  baseline: str
  loss: float
  total: float
  steps: float | None

  @property
  def saved(self) -> float | None:
    """Share of the baseline's steps that are not needed."""
    return None if self.steps is None else 1 - self.steps / self.total


def reached(targets: dict) -> list[Reached]:
  """One line a baseline; empty where there are no curves."""
  all_curves = curves(targets)
  if RECIPE not in all_curves:
    return []
  mine = all_curves[RECIPE]
  finals = {b: all_curves[b] for b in BASELINES if b in all_curves}
  return [
    Reached(b, float(c.loss[-1]), float(c.steps[-1]), mine.reaches(float(c.loss[-1])))
    for b, c in finals.items()
  ]


@dataclasses.dataclass(frozen=True)
class Headline:
  """The recipe against the baseline that did best on the target, whichever that is."""

  recipe: Estimate
  baseline: str
  other: Estimate
  difference: Estimate
  reached: Reached | None

  @property
  def relative(self) -> float:
    return self.difference.mean / self.other.mean

  @property
  def verdict(self) -> str:
    if self.difference.low > 0:
      return "ahead"
    return "behind" if self.difference.high < 0 else "level"


def headline(targets: dict) -> Headline:
  """Seeds are paired: under one seed mixtures read the rows of a cell in the same order."""
  overall = {b: score_on(targets, b, AVERAGE) for b in BASELINES if runs_of(targets, b)}
  best = max(overall, key=lambda b: overall[b].mean)
  mine = {run["seed"]: averages(run) for run in runs_of(targets, RECIPE)}
  theirs = {run["seed"]: averages(run) for run in runs_of(targets, best)}
  shared = sorted(mine.keys() & theirs.keys())
  gaps = [mine[s][0] - theirs[s][0] for s in shared]
  difference = estimate(gaps, float(np.hypot(mine[shared[0]][1], theirs[shared[0]][1])))
  steps = {line.baseline: line for line in reached(targets)}
  recipe = score_on(targets, RECIPE, AVERAGE)
  return Headline(recipe, best, overall[best], difference, steps.get(best))


SIGHTS = (
  ("sighted", "", "benchmark"),
  ("blind", "", "benchmark_blind"),
  ("trained blind", "-blind", "benchmark"),
)


def seeing(targets: dict, model: str) -> dict[str, dict[str, float]]:
  """Sight -> benchmark -> metric of `model` ("proxy" or "target") on the uniform mixture.

  Blind: the same model with the image features zeroed; trained blind: zeroed in training too.
  """
  found = {}
  for sight, suffix, split in SIGHTS:
    if runs := runs_of(targets, "uniform", model + suffix):
      names = [*runs[0]["scores"][split], AVERAGE]
      scores = {b: score_on(targets, "uniform", b, model + suffix, split).mean for b in names}
      found[sight] = scores
  return found
