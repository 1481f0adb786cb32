"""Between the search and the pool: mixtures to be scored in, scores out, every trial in the
study.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from etils import epath

from mixjax.jobs.pool import LocalPool
from mixjax.jobs.trial import Budget, TrialSpec
from mixjax.progress import Reporter
from mixjax.search.study import Study
from mixjax.search.trial import Trial


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
  """A finished proxy: its mean answer likelihood over the benchmarks, and each benchmark's."""

  trial: int
  score: float
  vector: list[float]


class Runner:
  """Runs asks on the pool. What was run before, for whichever method, is only looked up."""

  def __init__(
    self, folder: epath.Path, pool: LocalPool, budget: Budget, seed: int, reporter: Reporter
  ):
    config = {"budget": dataclasses.asdict(budget), "seed": seed}
    self._study = Study(folder, config)
    self._folder, self._pool, self._budget = epath.Path(folder), pool, budget
    self._seed, self._reporter = seed, reporter
    self._trials = {_key(t.mixture, t.seed): t for t in self._study.trials()}

  def run(self, asks: Sequence[Ask]) -> list[Scored]:
    """Scores in the order of `asks`."""
    trials = [self._trial(ask) for ask in asks]
    waiting = {self._folder_of(t): t for t in trials if t.scores is None}
    self._reporter.advance(len(trials) - len(waiting))

    def on_done(spec: TrialSpec, result: dict) -> None:
      trial = self._study.record(waiting[spec.folder], result["scores"]["validation"])
      self._trials[_key(trial.mixture, trial.seed)] = trial
      score = _scored(trial).score
      self._reporter.advance(note=f"trial={trial.id} purpose={trial.purpose} score={score:.2f}")

    specs = [TrialSpec(folder, t.mixture, t.seed, self._budget) for folder, t in waiting.items()]
    self._pool.run(specs, on_done)
    return [_scored(self._trials[_key(t.mixture, t.seed)]) for t in trials]

  def _trial(self, ask: Ask) -> Trial:
    seed = 1000 * self._seed + ask.replicate
    key = _key(ask.weights, seed)
    if key not in self._trials:
      self._trials[key] = self._study.attach(
        Trial(
          id=len(self._trials), purpose=ask.purpose, axis=ask.axis, mixture=ask.weights,
          point=ask.point, seed=seed, fidelity=float(self._budget.samples),
          command=_command(len(self._trials), seed, self._budget),
        )
      )  # fmt: skip
    return self._trials[key]

  def _folder_of(self, trial: Trial) -> str:
    return str(self._folder / "trials" / f"{trial.id:05d}")


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


def _scored(trial: Trial) -> Scored:
  vector = [entry["score"] for entry in trial.scores.values()]
  return Scored(trial.id, float(np.mean(vector)), vector)
