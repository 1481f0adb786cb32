"""One run of a study: what was asked for, how far it got, what came out."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Done is never written without scores. Stopped: the searcher ended the run early, by its curve.
# Infeasible: the run itself went wrong (diverged) and would again. Failed: the machine did, and the
# run may be tried once more.
STATES = ("queued", "running", "done", "stopped", "failed", "infeasible")
QUEUED, RUNNING, DONE, STOPPED, FAILED, INFEASIBLE = STATES

Scores = dict[str, dict[str, Any]]

# Weights written twice agree to this; anything more is another mixture.
SAME_WEIGHT = 1e-9


@dataclasses.dataclass(frozen=True)
class Trial:
  """A run, asked for and perhaps finished.

  `purpose` says who asked ("seed", "mixatlas", "replicate", "baseline:uniform", ...). `mixture` is
  what was trained on, `{cell: weight}`; `point` is where it lies on `axis`, `{coordinate: weight}`.
  `command` can be pasted into a shell. `scores` is per benchmark `{"score", "stderr", "n", ...}`;
  `curve` has such scores at steps on the way, `(step, scores)` in order.
  """

  id: int | None  # None until attached to a study
  purpose: str
  axis: str
  mixture: dict[str, float]
  point: dict[str, float]
  seed: int
  fidelity: float | None = None
  command: str = ""
  state: str = QUEUED
  detail: str = ""
  scores: Scores | None = None
  curve: tuple[tuple[float, Scores], ...] = ()


PROGRESS = ("state", "detail", "scores", "curve")

# What makes two trials the same run. Not the command: it may name another folder or machine.
_IDENTITY = ("purpose", "axis", "seed", "fidelity", "mixture", "point")


def conflicts(old: Trial, new: Trial) -> list[str]:
  """The fields in which the two ask for different runs; empty if they are the same."""
  return [name for name in _IDENTITY if not _alike(getattr(old, name), getattr(new, name))]


def fidelities(trials: Sequence[Trial]) -> list[float] | None:
  """The fidelity of each, None where none states one; ValueError if only some do."""
  found = [trial.fidelity for trial in trials]
  if all(fidelity is None for fidelity in found):
    return None
  if None in found:
    bare, other = trials[found.index(None)], next(t for t in trials if t.fidelity is not None)
    raise ValueError(
      f"trial {bare.id} states no fidelity, but trial {other.id} has {other.fidelity:g}: their "
      "scores cannot be compared; give it to all, or to none"
    )
  return found


def check_mixture(trial: Trial) -> None:
  """ValueError if a weight is negative or not finite, or if the mixture does not sum to 1."""
  for what, weights in (("mixture", trial.mixture), ("point", trial.point)):
    if bad := {k: w for k, w in weights.items() if not (math.isfinite(w) and w >= 0)}:
      raise ValueError(f"{what} of a trial has weights that are negative or not finite: {bad}")
  if abs(sum(trial.mixture.values()) - 1) > 1e-6:
    raise ValueError(f"mixture of a trial sums to {sum(trial.mixture.values())}, not to 1")


def check_scores(scores: Mapping[str, Mapping[str, Any]]) -> None:
  """ValueError unless every benchmark has a finite score and, if any, a finite stderr."""
  if not scores:
    raise ValueError("no scores")
  for benchmark, entry in scores.items():
    if not isinstance(entry, Mapping) or not _finite(entry.get("score")):
      raise ValueError(f"{benchmark!r} has no finite score: {entry!r}")
    if entry.get("stderr") is not None and not (_finite(entry["stderr"]) and entry["stderr"] >= 0):
      raise ValueError(f"stderr of {benchmark!r} is {entry['stderr']!r}")


def _finite(value) -> bool:
  return isinstance(value, (int, float, np.number)) and math.isfinite(value)


def _alike(a, b) -> bool:
  if isinstance(a, dict) and isinstance(b, dict):
    return a.keys() == b.keys() and all(abs(a[k] - b[k]) <= SAME_WEIGHT for k in a)
  return a == b
