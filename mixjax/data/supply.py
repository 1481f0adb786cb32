"""What to do when a cell has no unseen rows left: decided, and said, before a run begins."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Int

from mixjax.data import mixture
from mixjax.data.stages import Stage, Stages

_ROUNDING = 1e-6  # of a sample
Exhausted = Literal["repeat", "stop", "redistribute"]


@dataclasses.dataclass(frozen=True)
class Plan:
  """`stages` of a run, and by cell the first sample at which it has no row left that may be read.

  Cells that do not run out are not in `run_out`. `unread` says where the stages were to begin that
  come after the run and are not in `stages`: "sample 640", "step 20".
  """

  stages: Stages
  run_out: dict[str, int]
  unread: tuple[str, ...] = ()


def plan(
  weights: Mapping[str, float] | Stages,
  sizes: Mapping[str, int],
  samples: int,
  repetition: float | Mapping[str, float] = 0.0,
  exhausted: Exhausted = "stop",
) -> Plan:
  """The stages under which no row of a run of `samples` is seen more than `repetition` times.

  Args:
    weights: shares of samples by cell, or stages of such.
    sizes: rows by cell.
    samples: length of the run.
    repetition: epochs that a cell may be read, of every cell or by cell; 0 is as many as it likes,
      and so is a cell that is not named.
    exhausted: what happens when a cell would be read further.
      "repeat": it is, and the weights stay as they are.
      "stop": the run does not begin.
      "redistribute": from there on, its weight goes to the cells that have rows left, in proportion
      to theirs. Each time is a stage, found from the weights alone. A cell may leave its last row
      or two unread.

  Raises:
    ValueError: under "stop", names the cells, the samples wanted and those there are; under
      "redistribute", when all cells with weight run out before the run ends. Or as
      `mixture.check` does.
  """
  supply = Supply(sizes, repetition, exhausted)
  stages = Stages.of(weights)
  vectors = [np.array(list(mixture.check(s.weights, sizes).values())) for s in stages]
  starts = [stage.start for stage in stages if stage.start < samples]
  ends = [*starts, samples]
  planned: list[Stage] = []
  follow(
    vectors[: len(starts)],
    supply,
    lambda number, by: ends[number] if ends[number] <= by else None,
    lambda start, shares: planned.append(Stage(start, supply.named(shares))),
  )
  supply.check(samples)
  if not supply.redistributed:
    return Plan(stages, supply.run_out)
  unread = tuple(f"sample {stage.start}" for stage in stages if stage.start >= samples)
  return Plan(Stages(tuple(planned)), supply.run_out, unread)


class Supply:
  """What the cells may still give while a run is planned, from its first sample to its last."""

  def __init__(
    self,
    sizes: Mapping[str, int],
    repetition: float | Mapping[str, float] = 0.0,
    exhausted: Exhausted = "stop",
  ):
    """As `plan` takes them."""
    if exhausted not in get_args(Exhausted):
      raise ValueError(f"exhausted is one of {', '.join(get_args(Exhausted))}, not {exhausted!r}")
    self.run_out: dict[str, int] = {}
    self.redistributed = False
    self._cells, self._exhausted = list(sizes), exhausted
    self._caps, self._given = limits(sizes, repetition), np.zeros(len(sizes))

  @property
  def limited(self) -> bool:
    """Whether any cell can run out."""
    return bool(np.any(np.isfinite(self._caps)))

  def named(self, shares: Float[np.ndarray, " k"]) -> dict[str, float]:
    """The shares that are not zero, by cell."""
    return {cell: float(x) for cell, x in zip(self._cells, shares, strict=True) if x}

  def shares(self, weights: Float[np.ndarray, " k"], at: int) -> Float[np.ndarray, " k"]:
    """What is read from sample `at` on under these weights; float64[k]."""
    shares = weights
    # A cell with less than one position's worth left has run out. That gives the others more.
    while np.any(over := self._short(shares)):
      for cell in np.flatnonzero(over):
        self.run_out.setdefault(self._cells[cell], at)
      if self._exhausted != "redistribute":
        break
      self.redistributed = True
      shares = np.where(over, 0.0, shares)
      if not np.any(shares):
        raise ValueError(
          f"every cell with weight has run out at sample {at}, before the run ends: shorten the "
          "run, raise the repetition, or give weight to more cells"
        )
      shares = shares / shares.sum()
    return shares

  def lasts(self, shares: Float[np.ndarray, " k"]) -> float:
    """Samples until a cell runs out that has not yet: a whole number, one at least, or infinity."""
    used = np.flatnonzero((shares > 0) & ~self._short(shares))
    left = (self._caps[used] - self._given[used] + _ROUNDING) / shares[used]
    return max(float(np.floor(np.min(left, initial=np.inf))), 1.0)

  def give(self, samples: int, shares: Float[np.ndarray, " k"]):
    """So many samples are read."""
    self._given = self._given + samples * shares

  def check(self, samples: int):
    """Raises ValueError where a run that has been gone through may not begin."""
    short = self._given > self._caps * (1 + 1e-9)
    if self._exhausted == "stop" and np.any(short):
      raise ValueError(_shortage(self._cells, self._given, self._caps, short, samples))

  def _short(self, shares: Float[np.ndarray, " k"]) -> Int[np.ndarray, " k"]:
    return (shares > 0) & (self._given + shares > self._caps + _ROUNDING)


def follow(
  weights: Sequence[Float[np.ndarray, " k"]],
  supply: Supply,
  start_of: Callable[[int, float], int | None],
  begin: Callable[[int, Float[np.ndarray, " k"]], None],
) -> None:
  """Goes through a run from sample 0, part by part of what is read.

  Args:
    weights: float64[k] of each stage.
    supply: what cells may give.
    start_of: (stage, by) -> its first sample, None if that is after `by`; the stage after the last
      is the run's end. Asked only after `begin` of all before. Where the run ends before a stage,
      it takes that and all later ones out of `weights`, and answers with the end.
    begin: is called with the first sample of each part and the shares from there on.
  """
  position = stage = 0
  begun = None
  while stage < len(weights):
    shares = supply.shares(weights[stage], position)
    if begun is None or not np.array_equal(shares, begun):
      begin(position, shares)
    begun = shares
    by = position + supply.lasts(shares)
    if stage + 1 == len(weights) and not supply.limited:
      return
    following = start_of(stage + 1, by)
    end = int(by) if following is None else following
    assert end >= position, "what has been read would be taken back"
    supply.give(end - position, shares)
    position = end
    if following is not None:
      stage, begun = stage + 1, None


def limits(
  sizes: Mapping[str, int], repetition: float | Mapping[str, float]
) -> Float[np.ndarray, " k"]:
  """Samples that each cell may give, in the order of `sizes`; infinity where there is no limit."""
  if not isinstance(repetition, Mapping) and not repetition >= 0:
    raise ValueError(f"the repetition is {repetition}: it is a number of epochs, 0 for any")
  by_cell = repetition if isinstance(repetition, Mapping) else dict.fromkeys(sizes, repetition)
  for cell, epochs in by_cell.items():
    if cell not in sizes:
      raise ValueError(f"no cell is called {cell!r}, which has a repetition of {epochs}")
    if not epochs >= 0:
      raise ValueError(f"the repetition of cell {cell!r} is {epochs}: it is a number of epochs")
  epochs = np.array([by_cell.get(cell, 0.0) for cell in sizes], np.float64)
  rows = np.array(list(sizes.values()), np.float64)
  # 0.29 epochs of 100 rows are 29 samples, although 0.29 * 100 < 29.
  return np.where(epochs > 0, np.floor(epochs * rows * (1 + 1e-12)), np.inf)


def _shortage(
  cells: list[str],
  wanted: Float[np.ndarray, " k"],
  caps: Float[np.ndarray, " k"],
  short: Int[np.ndarray, " k"],
  samples: int,
) -> str:
  """Names the cells that are short, the shortest first."""
  worst = sorted(np.flatnonzero(short), key=lambda cell: caps[cell] / wanted[cell])
  lines = [
    f"{cells[cell]!r} would give {math.ceil(wanted[cell])} samples and has {int(caps[cell])}"
    for cell in worst[:10]
  ]
  more = f", and {len(worst) - 10} more cells" if len(worst) > 10 else ""
  return (
    f"in {samples} samples {', '.join(lines)}{more} (rows times repetition): lower their weights, "
    'shorten the run, raise the repetition, or set exhausted to "repeat" or "redistribute"'
  )
