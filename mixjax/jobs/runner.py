"""Between the search and the pool: mixtures to be scored in, scores out, every trial in the
study.
"""

import dataclasses
import itertools
import math
import uuid
from collections.abc import Sequence

import numpy as np
from etils import epath
from jaxtyping import Float

from mixjax.jobs.pool import LocalPool
from mixjax.jobs.trial import Budget, TrialSpec
from mixjax.progress import Reporter
from mixjax.search.study import Study
from mixjax.search.trial import INFEASIBLE, Scores, Trial


@dataclasses.dataclass(frozen=True)
class Ask:
  """One proxy wanted: why, on which axis, its mixture by cell, its coordinates, which replicate."""

  purpose: str
  axis: str
  weights: dict[str, float]
  point: dict[str, float]
  replicate: int = 0


@dataclasses.dataclass(frozen=True)
class Scored:
  """A finished proxy: what the objective makes of its benchmarks, and each one's likelihood."""

  trial: int
  score: float
  vector: list[float]


@dataclasses.dataclass(frozen=True)
class Diverged:
  """A proxy whose loss or scores are not finite: it would go wrong again, and is not retried."""

  trial: int
  why: str


class Runner:
  """Runs asks on the pool. What was run before, for whichever method, is only looked up.

  `weights: float[b]` are what each benchmark counts in a score; None is their mean.
  """

  def __init__(
    self,
    folder: epath.Path,
    pool: LocalPool,
    budget: Budget,
    seed: int,
    reporter: Reporter,
    weights: Float[np.ndarray, " b"] | None = None,
  ):
    config = {"budget": dataclasses.asdict(budget), "seed": seed}
    self._study = Study(folder, config)
    self._folder, self._pool, self._budget = epath.Path(folder), pool, budget
    self._seed, self._reporter = seed, reporter
    self.weights = weights
    known = self._study.trials()
    self._trials = {_key(t.mixture, t.seed): t for t in known}
    self._ids = {t.id for t in known}

  def run(self, asks: Sequence[Ask]) -> list[Scored | Diverged]:
    """Scores in the order of `asks`; a proxy that diverged is infeasible in the study."""
    trials = [self._trial(ask) for ask in asks]
    waiting = {
      self._folder_of(t.id): t for t in trials if t.scores is None and t.state != INFEASIBLE
    }
    self._reporter.advance(len(trials) - len(waiting))

    def on_done(spec: TrialSpec, result: dict) -> None:
      scores = result["scores"]["validation"]
      if not _finite(scores):
        on_diverged(spec, FloatingPointError("a score is not finite: lower the learning rate"))
        return
      trial = self._study.tell(waiting[spec.folder], scores)
      self._trials[_key(trial.mixture, trial.seed)] = trial
      score = self._result(trial).score
      self._reporter.advance(note=f"trial={trial.id} purpose={trial.purpose} score={score:.2f}")

    def on_diverged(spec: TrialSpec, error: FloatingPointError) -> None:
      trial = waiting[spec.folder]
      self._study.mark(trial.id, INFEASIBLE, str(error))
      self._trials[_key(trial.mixture, trial.seed)] = self._study.get(trial.id)
      self._reporter.advance(note=f"trial={trial.id} purpose={trial.purpose} diverged")
      self._reporter.say(f"trial {trial.id} ({trial.purpose}) is infeasible: {error}")

    specs = [TrialSpec(folder, t.mixture, t.seed, self._budget) for folder, t in waiting.items()]
    self._pool.run(specs, on_done, on_diverged)
    return [self._result(self._trials[_key(t.mixture, t.seed)]) for t in trials]

  def _trial(self, ask: Ask) -> Trial:
    seed = 1000 * self._seed + ask.replicate
    key = _key(ask.weights, seed)
    if key not in self._trials:
      # The lowest free number, as the study itself would choose: the command has to name it.
      number = next(i for i in itertools.count() if i not in self._ids)
      self._set_aside(number)
      self._trials[key] = self._study.attach(
        Trial(
          id=number, purpose=ask.purpose, axis=ask.axis, mixture=ask.weights,
          point=ask.point, seed=seed, fidelity=float(self._budget.samples),
          command=_command(number, seed, self._budget),
        )
      )  # fmt: skip
      self._ids.add(number)
    return self._trials[key]

  def _set_aside(self, number: int) -> None:
    """Keeps what a trial with an unreadable mixture left, where no other run takes it as its own:
    nobody knows what its result and its checkpoints are of.
    """
    folder = epath.Path(self._folder_of(number))
    for left in list(folder.iterdir()) if folder.exists() else []:
      if not left.name.startswith((".", "orphan-")):
        left.replace(folder / f"orphan-{uuid.uuid4().hex[:8]}-{left.name}")

  def _folder_of(self, number: int) -> str:
    return str(self._folder / "trials" / f"{number:05d}")

  def _result(self, trial: Trial) -> Scored | Diverged:
    if trial.state == INFEASIBLE:
      return Diverged(trial.id, trial.detail)
    vector = [entry["score"] for entry in trial.scores.values()]
    score = np.mean(vector) if self.weights is None else np.dot(vector, self.weights)
    return Scored(trial.id, float(score), vector)


def _command(trial: int, seed: int, budget: Budget) -> str:
  """What to paste, WORKDIR set, to run the trial again by itself."""
  mixture = f"$WORKDIR/study/trials/{trial:05d}/mixture.json"
  return (
    f"python -m mixjax.main --config=configs/train.py:atlas=$WORKDIR/atlas,mixture={mixture},"
    f"model={budget.model},samples={budget.samples},seed={seed} "
    f"--workdir=$WORKDIR/again-{trial:05d}"
  )


def _key(mixture: dict[str, float], seed: int) -> tuple:
  return (seed, *(round(weight, 9) for _, weight in sorted(mixture.items())))


def _finite(scores: Scores) -> bool:
  figures = (figure for entry in scores.values() for figure in entry.values())
  return all(math.isfinite(figure) for figure in figures if figure is not None)
