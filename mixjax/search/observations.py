"""Finished runs as every surrogate and policy sees them."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree

from mixjax.search.space import SUM_TOLERANCE, Space

# Two points closer than this in every weight are the same mixture (decimal rounding in a file).
SAME = 1e-6

# Scores beyond it have squares that may overflow; below its inverse they are taken as zero.
LARGEST = 1e100

# The fields of `Observations` with a row for each run.
OF_RUNS = ("mixtures", "scores", "stderr", "fidelity", "parts", "part_stderr")


@dataclasses.dataclass(frozen=True, eq=False)
class Observations:
  """Finished runs: mixtures `float[n, d]` and their scores `float[n]`, higher is better.

  `stderr` is each score's standard error, `fidelity` each run's budget (larger is nearer the
  target); `pending: float[p, d]` are mixtures under way or given up, not to be proposed again, and
  `infeasible: float[i, d]` those whose run itself went wrong and would again (`as_worst`).
  `parts: float[n, b]` are what a score is the sum of, such as a b-th of each benchmark's, with
  their own standard errors `part_stderr` if known: a surrogate learns more from them than from the
  sum. ValueError if shapes disagree, a weight is negative, or a number is NaN, infinite or, of the
  scores, beyond 1e100: failed runs are pending, diverged ones infeasible.
  """

  mixtures: Float[np.ndarray, "n d"]
  scores: Float[np.ndarray, " n"]
  stderr: Float[np.ndarray, " n"] | None = None
  fidelity: Float[np.ndarray, " n"] | None = None
  pending: Float[np.ndarray, "p d"] | None = None
  parts: Float[np.ndarray, "n b"] | None = None
  part_stderr: Float[np.ndarray, "n b"] | None = None
  infeasible: Float[np.ndarray, "i d"] | None = None

  def __post_init__(self):
    for field in dataclasses.fields(self):
      if (value := getattr(self, field.name)) is not None:
        object.__setattr__(self, field.name, np.array(value, np.float64))
    self._check_mixtures()
    for value in (self.scores, self.parts):
      if value is not None:
        value[np.abs(value) < 1 / LARGEST] = 0
    for name in ("scores", "stderr", "fidelity"):
      value = getattr(self, name)
      if value is None:
        continue
      if value.shape != (len(self.mixtures),):
        raise ValueError(f"{len(self.mixtures)} mixtures but {name} of shape {value.shape}")
      if not np.isfinite(value).all():
        run = int(np.argmax(~np.isfinite(value)))
        raise ValueError(f"{name} of run {run} is {value[run]}: leave failed runs out")
    if (huge := np.abs(self.scores) > LARGEST).any():
      run = int(np.argmax(huge))
      raise ValueError(f"scores of run {run} is {self.scores[run]}: leave diverged runs out")
    if self.stderr is not None and (self.stderr < 0).any():
      raise ValueError(f"stderr of run {int(np.argmin(self.stderr))} is negative")
    self._check_parts()

  def _check_mixtures(self) -> None:
    if self.mixtures.ndim != 2:
      raise ValueError(f"mixtures have shape (n, d), not {self.mixtures.shape}")
    dim = self.mixtures.shape[1]
    _check_weights("mixture", self.mixtures)
    for name in ("pending", "infeasible"):
      if (rows := getattr(self, name)) is None:
        continue
      if rows.ndim != 2 or rows.shape[1] != dim:
        raise ValueError(f"mixtures have {dim} weights but {name} has shape {rows.shape}")
      _check_weights(f"{name} mixture", rows)

  def _check_parts(self) -> None:
    if self.parts is None:
      if self.part_stderr is not None:
        raise ValueError("part_stderr without parts: give the parts of the scores too")
      return
    if self.parts.ndim != 2 or len(self.parts) != len(self.mixtures) or not self.parts.shape[1]:
      raise ValueError(f"{len(self.mixtures)} mixtures but parts of shape {self.parts.shape}")
    off = np.abs(self.parts.sum(axis=1) - self.scores)
    # Written so that NaN is caught too.
    wrong = ~(off <= SAME * np.abs(self.parts).sum(axis=1))
    if wrong.any():
      run = int(np.argmax(wrong))
      raise ValueError(
        f"parts of run {run} sum to {self.parts[run].sum()}, but its score is {self.scores[run]}"
      )
    if self.part_stderr is not None:
      if self.part_stderr.shape != self.parts.shape:
        raise ValueError(f"part_stderr has shape {self.part_stderr.shape}, not {self.parts.shape}")
      if not (np.isfinite(self.part_stderr) & (self.part_stderr >= 0)).all():
        raise ValueError("a standard error of a part is negative or not finite")

  @classmethod
  def none(cls, space: Space) -> "Observations":
    return cls(np.zeros((0, space.dim)), np.zeros(0))

  @classmethod
  def concatenate(cls, several: Sequence["Observations"]) -> "Observations":
    """The runs of all, in order, without what is pending or infeasible; what only some state is
    left out.

    ValueError if that is their fidelity: a cheap score would pass for one of the target.
    """
    several = [one for one in several if len(one)] or several[:1]
    if len({one.fidelity is None for one in several}) > 1:
      raise ValueError("only some of the runs state their fidelity: give it to all, or to none")
    found = {}
    for name in OF_RUNS:
      values = [getattr(one, name) for one in several]
      found[name] = None if any(value is None for value in values) else np.concatenate(values)
    return cls(**found)

  def __len__(self) -> int:
    return len(self.scores)

  def at_target(self) -> "Observations":
    """Only the runs of the highest fidelity, for policies that do not model the others."""
    if self.fidelity is None or not len(self):
      return self
    return self.only(self.fidelity == self.fidelity.max())

  def only(self, kept: Int[np.ndarray, " k"] | Bool[np.ndarray, " n"]) -> "Observations":
    """Some of the runs, and all that is pending or infeasible."""
    values = {name: getattr(self, name) for name in OF_RUNS}
    return dataclasses.replace(
      self, **{name: None if value is None else value[kept] for name, value in values.items()}
    )

  def by_part(self) -> list["Observations"]:
    """The runs scored by each part alone; by the whole score where no parts are known."""
    if self.parts is None:
      return [self]
    errors = [None] * self.parts.shape[1] if self.part_stderr is None else self.part_stderr.T
    return [
      dataclasses.replace(self, scores=scores, stderr=error, parts=None, part_stderr=None)
      for scores, error in zip(self.parts.T, errors, strict=True)
    ]

  def as_worst(self) -> "Observations":
    """The runs, and the infeasible mixtures as if they had come out like the worst at the highest
    fidelity, part by part.

    Nobody knows how bad they are, but no search is to come back to them or to what is around them:
    as pending ones, believed to come out as predicted, they would keep the promise that led there.
    """
    if self.infeasible is None or not len(self.infeasible) or not len(self):
      return self
    highest = np.ones(len(self), bool)
    if self.fidelity is not None:
      highest = self.fidelity == self.fidelity.max()
    worst = np.argmin(np.where(highest, self.scores, np.inf))
    worst = np.full(len(self.infeasible), worst)
    more = self.only(np.concatenate([np.arange(len(self)), worst]))
    mixtures = np.concatenate([self.mixtures, self.infeasible])
    return dataclasses.replace(more, mixtures=mixtures, infeasible=None)

  def known(self) -> Float[np.ndarray, "m d"]:
    """Every mixture that needs no further proposal: observed ones, pending, then infeasible."""
    others = [rows for rows in (self.pending, self.infeasible) if rows is not None and len(rows)]
    return np.concatenate([self.mixtures, *others]) if others else self.mixtures

  def mean_at(self, mixture: Float[np.ndarray, " d"]) -> tuple[float | None, float | None]:
    """Mean and standard error of the runs on `mixture`; None for what they cannot tell.

    The error comes from `stderr` where given, otherwise from the spread of two or more replicates.
    """
    here = matches(self.mixtures, mixture[None])
    scores = self.scores[here]
    if not len(scores):
      return None, None
    if self.stderr is not None:
      return float(scores.mean()), float(np.sqrt(np.sum(self.stderr[here] ** 2)) / len(scores))
    if len(scores) == 1:
      return float(scores[0]), None
    return float(scores.mean()), float(scores.std(ddof=1) / np.sqrt(len(scores)))

  def best(self, space: Space) -> Float[np.ndarray, " d"]:
    """The mixture with the highest mean score over its replicates, of those within the bounds.

    ValueError if there is none.
    """
    allowed = (self.mixtures >= space.lower - SAME).all(axis=1)
    if not allowed.any():
      raise ValueError(f"none of {len(self)} finished runs is within the bounds of {space.name}")
    alike = cKDTree(self.mixtures).query_ball_point(self.mixtures, SAME, p=np.inf)
    means = np.array([self.scores[rows].mean() for rows in alike])
    return self.mixtures[np.argmax(np.where(allowed, means, -np.inf))]


def _check_weights(what: str, rows: Float[np.ndarray, "n d"]) -> None:
  """ValueError names the first weight that is none, or sum that is not 1 on each axis."""
  if (bad := ~(np.isfinite(rows) & (rows >= 0))).any():
    row, column = np.argwhere(bad)[0]
    raise ValueError(
      f"{what} {row}: weight {column} is {rows[row, column]}; weights are finite and not negative"
    )
  # On the product of two axes they sum to 2.
  sums = rows.sum(axis=1)
  if (wrong := np.abs(sums - np.maximum(sums.round(), 1)) > SUM_TOLERANCE * (1 + sums)).any():
    row = int(np.argmax(wrong))
    raise ValueError(
      f"{what} {row}: its weights sum to {sums[row]}, not to 1 on each axis; divide them by that"
    )


def matches(
  points: Float[np.ndarray, "n d"], known: Float[np.ndarray, "m d"]
) -> Bool[np.ndarray, " n"]:
  """Which of `points` are among `known`."""
  if not len(points) or not len(known):
    return np.zeros(len(points), bool)
  return np.isfinite(cKDTree(known).query(points, p=np.inf, distance_upper_bound=SAME)[0])
