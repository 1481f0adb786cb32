"""What to do when a cell has no unseen rows left: decided, and said, before a run begins."""

import math
from collections.abc import Iterator, Mapping
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Int

from mixjax.data import mixture
from mixjax.data.stages import Stage, Stages

_ROUNDING = 1e-6  # of a sample
Exhausted = Literal["repeat", "stop", "redistribute"]


def plan(
  weights: Mapping[str, float] | Stages,
  sizes: Mapping[str, int],
  samples: int,
  repetition: float | Mapping[str, float] = 0.0,
  exhausted: Exhausted = "stop",
) -> Stages:
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
  if exhausted not in get_args(Exhausted):
    raise ValueError(f"exhausted is one of {', '.join(get_args(Exhausted))}, not {exhausted!r}")
  stages = Stages.of(weights)
  vectors = [np.array(list(mixture.check(s.weights, sizes).values())) for s in stages]
  caps = limits(sizes, repetition)
  if exhausted == "repeat" or np.all(np.isinf(caps)):
    return stages
  ends = [min(end, samples) for end in [*(stage.start for stage in stages), samples][1:]]
  spans = [(s.start, end) for s, end in zip(stages, ends, strict=True) if s.start < end]
  wanted = sum((end - start) * vector for (start, end), vector in zip(spans, vectors, strict=False))
  short = wanted > caps * (1 + 1e-9)
  if not np.any(short):
    return stages
  if exhausted == "stop":
    raise ValueError(_shortage(list(sizes), wanted, caps, short, samples))
  cells, done, planned = list(sizes), np.zeros(len(sizes)), []
  for (start, end), vector in zip(spans, vectors, strict=False):
    for at, shares, by_then in _until_exhausted(start, end, vector, done, caps):
      done = by_then
      named = {cell: float(share) for cell, share in zip(cells, shares, strict=True) if share}
      planned.append(Stage(at, named))
  return Stages(tuple(planned))


def limits(
  sizes: Mapping[str, int], repetition: float | Mapping[str, float]
) -> Float[np.ndarray, " k"]:
  """Samples that each cell may give, in the order of `sizes`; infinity where there is no limit."""
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


def _until_exhausted(
  start: int,
  end: int,
  weights: Float[np.ndarray, " k"],
  done: Float[np.ndarray, " k"],
  caps: Float[np.ndarray, " k"],
) -> Iterator[tuple[int, Float[np.ndarray, " k"], Float[np.ndarray, " k"]]]:
  """Yields (first position, shares, samples by its end) of each part of one stage."""
  shares = weights
  while start < end:
    # A cell with less than one position's worth left has run out. That gives the others more.
    while np.any(over := (shares > 0) & (done + shares > caps + _ROUNDING)):
      shares = np.where(over, 0.0, shares)
      if not np.any(shares):
        raise ValueError(
          f"every cell with weight has run out at sample {start}, before the run ends: shorten the "
          "run, raise the repetition, or give weight to more cells"
        )
      shares = shares / shares.sum()
    used = np.flatnonzero(shares)
    left = np.min((caps[used] - done[used] + _ROUNDING) / shares[used])
    until = int(min(start + left, end))
    done = done + (until - start) * shares
    yield start, shares, done
    start = until


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
