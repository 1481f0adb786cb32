"""Which cell the n-th sample comes from, so that no cell is ever more than one sample off.

The rule is Tijdeman's for the chairman assignment problem (R. Tijdeman, "The chairman assignment
problem", Discrete Mathematics 32, 1980): with K cells of positive weight and
beta = 1 - 1 / (2K - 2), the j-th sample of a cell of weight w

    may be taken   from position  (j - beta) / w      on, and
    must be taken  before passing (j - 1 + beta) / w.

At every position the sample whose deadline is nearest is taken among those that may be. Tijdeman
proves that one always may be and that no deadline is ever missed, hence for every n

    |count of a cell after n samples - n w| <= beta < 1,

and that no rule has a smaller bound. Weights are first put on a grid of 2**-50, so that all of it
is integer arithmetic and every machine finds the same sequence.

The sequence is found once, as far as it is asked for, and kept. From PERIOD on it repeats: seeking
costs nothing, and each further period adds less than one to the bound, that is, a share of samples
is off by less than 1 / PERIOD, a millionth.
"""

import heapq
import itertools
import threading
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

PERIOD = 1 << 20
GRID = 1 << 50
_CHUNK = 4096  # positions found at a time


class Schedule:
  """Position -> (cell, how many earlier positions hold that cell); see the module's docstring."""

  def __init__(self, weights: Sequence[float] | Float[np.ndarray, " k"], period: int = PERIOD):
    """weights: float[k], of which each is finite and not negative; they are normalised.

    Raises ValueError where they are not, or where none is positive.
    """
    weights = np.asarray(weights, np.float64)
    if weights.ndim != 1 or not np.all(np.isfinite(weights)) or np.any(weights < 0):
      raise ValueError(f"weights must be a vector of finite, non-negative numbers, not {weights}")
    if not np.any(weights > 0):
      raise ValueError("no weight is positive: at least one must be")
    self.period = period
    self._size = len(weights)
    self._rule = _tijdeman(_on_grid(weights))
    self._cell = np.zeros(0, np.int32)
    self._earlier = np.zeros(0, np.int64)
    self._lock = threading.Lock()  # loaders ask from prefetch threads

  def at(
    self, positions: Int[np.ndarray, " n"]
  ) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """(cell int32[n], earlier positions of that cell int64[n]) of any positions, in any order."""
    laps, place = np.divmod(np.asarray(positions, np.int64), self.period)
    if not place.size:
      return self._cell[:0], self._earlier[:0]
    if laps.max() > 0:
      self._extend(self.period)
      per_lap = np.bincount(self._cell, minlength=self._size)
      cell = self._cell[place]
      return cell, self._earlier[place] + laps * per_lap[cell]
    self._extend(int(place.max()) + 1)
    return self._cell[place], self._earlier[place]

  def counts(self, n: int) -> Int[np.ndarray, " k"]:
    """How many of the first n positions hold each cell."""
    laps, rest = divmod(n, self.period)
    self._extend(self.period if laps else rest)
    whole = np.bincount(self._cell[: self.period], minlength=self._size) if laps else 0
    return laps * whole + np.bincount(self._cell[:rest], minlength=self._size)

  def _extend(self, length: int):
    """Finds the sequence as far as `length`, in whole chunks."""
    with self._lock:
      missing = length - len(self._cell)
      if missing <= 0:
        return
      missing = min(-(-missing // _CHUNK) * _CHUNK, self.period - len(self._cell))
      found = np.array(list(itertools.islice(self._rule, missing)), np.int64).reshape(-1, 2)
      # `_earlier` first: a reader on another thread that sees the new cells finds their counts.
      self._earlier = np.concatenate([self._earlier, found[:, 1]])
      self._cell = np.concatenate([self._cell, found[:, 0].astype(np.int32)])


def _on_grid(weights: Float[np.ndarray, " k"]) -> list[int]:
  """Integers that sum to GRID, in proportion to the weights; 0 stays 0."""
  shares = [int(share * GRID) for share in weights / weights.sum()]
  shares[int(np.argmax(weights))] += GRID - sum(shares)
  return shares


def _tijdeman(shares: list[int]) -> Iterator[tuple[int, int]]:
  """Endless (cell, earlier positions of it), for weights shares / GRID."""
  used = [cell for cell, share in enumerate(shares) if share]
  # With beta = (m - 1) / m everything below is a ratio of integers.
  m = max(2 * len(used) - 2, 2)
  unit = m * GRID  # one sample, in the units in which a position is worth m * share

  def window(cell: int, earlier: int) -> tuple[int, int, int, int]:
    """The first and last position, from 1, that may take the cell's next sample."""
    pace = m * shares[cell]
    first = -(-(earlier * unit + GRID) // pace)
    last = (earlier * unit + unit - GRID) // pace + 1
    return first, last, cell, earlier

  waiting = [window(cell, 0) for cell in used]
  heapq.heapify(waiting)
  ready: list[tuple[int, int, int]] = []
  for position in itertools.count(1):
    while waiting and waiting[0][0] <= position:
      heapq.heappush(ready, heapq.heappop(waiting)[1:])
    _, cell, earlier = heapq.heappop(ready)
    heapq.heappush(waiting, window(cell, earlier + 1))
    yield cell, earlier
