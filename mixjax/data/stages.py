"""Mixtures that change during a run: which one holds from which sample on.

A list of stages is all there is to a run's state beside its step. A curriculum is written down
before the run; an online mixer appends a stage whenever it has new weights and saves the list, so
that a run which starts again reads the same rows. What is appended changes nothing before it.

What a stage leaves unpaid, the next one inherits: a cell is owed the samples that all stages so far
promised it, less those it was given. Stages of equal weights are one stage, and a mixer that moves
its weights a little at every step still keeps each cell within one sample of the sum of what was
promised. Were each stage to begin anew, a cell that is promised a fraction of a sample a stage
would never see one: with 50 cells and 300 such stages, cells end 150 samples off (measured).
Where weights jump, to zero above all, no rule that does not know them beforehand can stay within
one sample (it is the emptier of the cup game, who does not see what the filler will do): those who
lose their weight keep what they owe, and the others have to make up for it. Measured on the worst
of lists, 2.2 samples; what is owed is paid as soon as the weight is back.
"""

import bisect
import dataclasses
import functools
import itertools
import json
import numbers
import os
import threading
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from etils import epath
from jaxtyping import Float, Int

from mixjax.data.schedule import PERIOD, Schedule

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Stage:
  """From sample `start` on, counted over the whole run and all hosts, `weights` hold."""

  start: int
  weights: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Stages:
  """The stages of a run in order, the first from sample 0; see the module's docstring."""

  stages: tuple[Stage, ...]

  def __post_init__(self):
    starts = [stage.start for stage in self.stages]
    for start in starts:
      if isinstance(start, bool) or not isinstance(start, numbers.Integral):
        raise ValueError(f"a stage starts at {start!r}: samples are counted in whole numbers")
    if not starts or starts[0] != 0:
      raise ValueError(f"the first stage starts at sample 0, not at {(starts or ['none'])[0]}")
    for before, start in itertools.pairwise(starts):
      if start <= before:
        raise ValueError(
          f"a stage from sample {start} on cannot follow one from {before} on: stages are in "
          "order, and what has been read stays as it was"
        )

  @classmethod
  def of(cls, weights: "Mapping[str, float] | Stages") -> "Stages":
    """One mixture for the whole run, or stages as they are."""
    return weights if isinstance(weights, Stages) else cls((Stage(0, dict(weights)),))

  @classmethod
  def at_steps(cls, mixtures: Mapping[int, Mapping[str, float]], batch_size: int) -> "Stages":
    """A curriculum `{step: mixture from that step on}`; the first step is 0."""
    return cls(tuple(Stage(step * batch_size, dict(mixtures[step])) for step in sorted(mixtures)))

  def then(self, start: int, weights: Mapping[str, float]) -> "Stages":
    """These stages and one more; ValueError if `start` is not after the last one's."""
    return Stages((*self.stages, Stage(int(start), dict(weights))))

  def __iter__(self):
    return iter(self.stages)

  def __len__(self) -> int:
    return len(self.stages)

  def save(self, path: str | os.PathLike):
    """Writes the list as JSON, whole or not at all."""
    path = epath.Path(path)
    content = {"format": FORMAT, "stages": [dataclasses.asdict(stage) for stage in self.stages]}
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(path)

  @classmethod
  def load(cls, path: str | os.PathLike) -> "Stages":
    """Reads what `save` wrote, to the last bit. Raises ValueError naming the file if it is not."""
    try:
      content = json.loads(epath.Path(path).read_text())
      known = content["format"]
      stages = tuple(Stage(stage["start"], stage["weights"]) for stage in content["stages"])
    except (ValueError, KeyError, TypeError) as error:
      raise ValueError(f"{path} is no list of stages as Stages.save writes it") from error
    if known != FORMAT:
      raise ValueError(f"{path} has format {known}, this code reads format {FORMAT}")
    return cls(stages)


class StagedSchedule:
  """`Schedule` over stages: position -> (cell, how many earlier positions hold that cell)."""

  def __init__(
    self, starts: Sequence[int], weights: Iterable[Float[np.ndarray, " k"]], period: int = PERIOD
  ):
    """starts: the first position of each stage, from 0 up; weights: float[k] of each stage."""
    self._starts, self._weights = list(starts), [np.asarray(w, np.float64) for w in weights]
    self._period = period
    # By reference, so one cache an instance. Neighbours are asked for together.
    self._schedule = functools.lru_cache(maxsize=4)(self._find)
    self._before = [(np.zeros(len(self._weights[0]), np.int64), None)]  # samples, lag; by stage
    self._lock = threading.RLock()  # loaders ask from prefetch threads

  def append(self, start: int, weights: Float[np.ndarray, " k"]):
    """One more stage, after all there are."""
    with self._lock:
      self._weights.append(np.asarray(weights, np.float64))
      self._starts.append(int(start))  # last: a reader that sees it finds the rest

  def at(
    self, positions: Int[np.ndarray, " n"]
  ) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """(cell int32[n], earlier positions of that cell int64[n]) of any positions, in any order."""
    positions = np.asarray(positions, np.int64)
    stages = np.searchsorted(self._starts, positions, "right") - 1
    cell, earlier = np.empty(len(positions), np.int32), np.empty(len(positions), np.int64)
    for stage in np.unique(stages):
      here = stages == stage
      cell[here], within = self._schedule(int(stage)).at(positions[here] - self._starts[stage])
      earlier[here] = within + self._at_start(int(stage))[0][cell[here]]
    return cell, earlier

  def counts(self, n: int) -> Int[np.ndarray, " k"]:
    """How many of the first n positions hold each cell."""
    stage = max(bisect.bisect_left(self._starts, n) - 1, 0)
    return self._at_start(stage)[0] + self._schedule(stage).counts(n - self._starts[stage])

  def quotas(self, n: int) -> Float[np.ndarray, " k"]:
    """What all stages together promise each cell of the first n positions."""
    ends = [*self._starts[1:], n]
    spans = [
      (max(min(end, n) - start, 0), weights)
      for start, end, weights in zip(self._starts, ends, self._weights, strict=True)
    ]
    return sum(span * weights for span, weights in spans)

  def _find(self, stage: int) -> Schedule:
    return Schedule(self._weights[stage], self._period, self._at_start(stage)[1])

  def _at_start(self, stage: int) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"] | None]:
    """What each cell has had, and is owed, when a stage begins."""
    with self._lock:
      while len(self._before) <= stage:
        last = len(self._before) - 1
        length = self._starts[last + 1] - self._starts[last]
        schedule = self._schedule(last)
        counts = self._before[last][0] + schedule.counts(length)
        self._before.append((counts, schedule.lag_after(length)))
      return self._before[stage]
