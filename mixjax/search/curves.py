"""Learning curves: what runs scored at checkpoints on the way, whether they finished or not."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from mixjax.search.objective import Objective
from mixjax.search.space import Space
from mixjax.search.trial import Trial

# A score beyond it, whose square may overflow, is none.
LARGEST = 1e100


@dataclasses.dataclass(frozen=True, eq=False)
class Curves:
  """Scores of n runs at the `steps` of t checkpoints, the last of which is the final one.

  Scores are NaN from where a run was stopped, or has not come yet, on all b benchmarks; all runs
  are scored in the same manner, and how much that errs is learnt (the error that a benchmark states
  for its choice of items is common to all runs, so it is not asked for). ValueError if shapes
  disagree, steps do not rise, a score is beyond 1e100, or a gap has later scores.
  """

  names: tuple[str, ...]
  steps: Float[np.ndarray, " t"]
  mixtures: Float[np.ndarray, "n d"]
  scores: Float[np.ndarray, "n t b"]

  def __post_init__(self):
    for name in ("steps", "mixtures", "scores"):
      object.__setattr__(self, name, np.array(getattr(self, name), np.float64))
    shape = (len(self.mixtures), self.steps.size, len(self.names))
    if self.scores.shape != shape:
      raise ValueError(
        f"scores of runs, checkpoints and benchmarks have shape {shape}, not {self.scores.shape}"
      )
    if self.steps.ndim != 1 or len(self.steps) < 2:
      raise ValueError(f"a curve has at least two checkpoints, not steps {self.steps.tolist()}")
    if not (np.isfinite(self.steps).all() and (np.diff(self.steps, prepend=0) > 0).all()):
      raise ValueError(f"steps are positive, finite and rise: {self.steps.tolist()} do not")
    if (bad := np.abs(self.scores) > LARGEST).any():
      run, at, place = np.argwhere(bad)[0]
      raise ValueError(
        f"run {run} scores {self.scores[run, at, place]} on {self.names[place]!r} at step "
        f"{self.steps[at]:g}: leave diverged runs out"
      )
    gap = np.isnan(self.scores) & (np.arange(shape[1])[:, None] < self._last[:, None, None])
    if gap.any():
      run, at, place = np.argwhere(gap)[0]
      raise ValueError(
        f"run {run} has no score on {self.names[place]!r} at step {self.steps[at]:g} but others "
        "there or later: evaluate it, or leave out the run, the checkpoint or the benchmark"
      )

  @classmethod
  def of_trials(cls, trials: Sequence[Trial], space: Space) -> "Curves":
    """What the trials on `space` reported (`Study.report`), in their order.

    Those of other axes, and those that reported nothing, are left out. A run is finished if it
    reported at the last step that any did: report there too, as final scores are often made from
    more items. ValueError if nothing was reported, benchmarks differ, or as above.
    """
    trials = [trial for trial in trials if trial.axis == space.name and trial.curve]
    if not trials:
      raise ValueError(f"no trial on the {space.name} axis reported scores on the way")
    names = tuple(trials[0].curve[0][1])
    steps = sorted({step for trial in trials for step, _ in trial.curve})
    scores = np.full((len(trials), len(steps), len(names)), np.nan)
    for row, trial in enumerate(trials):
      for step, found in trial.curve:
        if set(found) != set(names):
          raise ValueError(
            f"trial {trial.id} reports {sorted(found)} at step {step:g}, others {sorted(names)}"
          )
        scores[row, steps.index(step)] = [found[name]["score"] for name in names]
    return cls(names, steps, [space.from_dict(trial.point) for trial in trials], scores)

  def __len__(self) -> int:
    return len(self.mixtures)

  @property
  def _last(self) -> Int[np.ndarray, " n"]:
    """One more than the place of each run's last checkpoint with any score."""
    scored = ~np.isnan(self.scores).all(axis=2)
    return np.max(scored * np.arange(1, scored.shape[1] + 1), axis=1)

  @functools.cached_property
  def reached(self) -> Int[np.ndarray, " n"]:
    """How many checkpoints each run has scores at."""
    return self._last

  @property
  def finished(self) -> Bool[np.ndarray, " n"]:
    return self.reached == len(self.steps)

  def of(self, objective: Objective) -> "Curves":
    """The same runs with one curve each, that of the objective (higher is better)."""
    values = self.scores @ objective.over(self.names)
    return dataclasses.replace(self, names=("objective",), scores=values[:, :, None])
