"""Samples that may be taken from one position on and must be by another: nearest deadline first.

The windows are those of `schedule`'s docstring. They are found by the thousand with numpy; what is
left for each position is one step on a heap of small integers.
"""

import heapq
import threading
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

GRID = 1 << 50
# Places found at a time: few at first, for stages of a step or two; at most so many at once.
_LEAST, _USUAL, _MOST = 256, 4096, 1 << 16


def wait_of(shares: Sequence[int]) -> int:
  """1 - beta, in 1 / GRID: what has to be due of a cell's first sample before it may be taken."""
  return -(-GRID // max(2 * sum(share > 0 for share in shares) - 2, 2))


def passes(
  share: Int[np.ndarray, " m"], earlier: Int[np.ndarray, " m"], part: int | Int[np.ndarray, " m"]
) -> Int[np.ndarray, " m"]:
  """The first place, from 1, by which `earlier` samples and `part` / GRID more are due."""
  about = np.rint(earlier * (GRID / share) + part / share).astype(np.int64)
  # Products wrap around at 2**64; the difference is small again, and exact.
  return about - (about * share - earlier * GRID - part) // share


class Deadlines:
  """Place -> (cell, how many earlier places hold that cell), for `length` places.

  Where cells are owed samples from before (`lag`), or must end with given counts (`ends`), it can
  be that no sample may be taken yet, or that more than one must be: then the next to come is taken
  early, or all but one are late.
  """

  def __init__(
    self,
    shares: Sequence[int],
    lag: Sequence[int],
    length: int,
    ends: Int[np.ndarray, " k"] | None = None,
  ):
    """shares: int[k], they sum to GRID; lag: int[k] in 1 / GRID of a sample; ends: int64[k]."""
    self._shares = [int(share) for share in shares]
    self._lag = [int(lag) for lag in lag]
    self._used = np.flatnonzero(np.array(self._shares))
    self._size, self._length, self._ends = len(self._shares), length, ends
    self._wait = wait_of(self._shares)
    self._counts = np.zeros(self._size, np.int64)
    self._found, self._early = 0, 0
    # Whole from the start, so that a reader on another thread never sees them move; the system
    # gives memory to the pages that are written.
    self._cell, self._earlier = np.empty(length, np.int32), np.empty(length, np.int32)
    self._lock = threading.Lock()

  def at(
    self, places: Int[np.ndarray, " n"]
  ) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """(cell int32[n], earlier places of that cell int32[n]) of places below `length`."""
    if places.size:
      self._extend(int(places.max()) + 1)
    return self._cell[places], self._earlier[places]

  def counts(self, n: int) -> Int[np.ndarray, " k"]:
    """How many of the first n places hold each cell."""
    if self._ends is not None and n == self._length:
      return self._ends
    self._extend(n)
    return np.bincount(self._cell[:n], minlength=self._size)

  @property
  def complete(self) -> bool:
    """Whether all places have been found."""
    return self._found == self._length

  def _extend(self, length: int):
    if self._found >= length:
      return
    with self._lock:
      while self._found < length:
        # Many cells make a chunk dear, however short it is.
        usual = np.clip(self._found, _LEAST, max(_USUAL, 2 * len(self._used)))
        chunk = max(int(usual), min(length - self._found, _MOST))
        end = min(self._found + chunk, self._length)
        cell, earlier = self._next(end)
        self._cell[self._found : end], self._earlier[self._found : end] = cell, earlier
        self._counts += np.bincount(cell, minlength=self._size)
        self._found = end

  def _next(self, end: int) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """The places from the last one found to `end`."""
    cell, earlier = self._open(end)
    first = self._passes(cell, earlier, self._wait)
    last = self._passes(cell, earlier, GRID - self._wait + 1)
    if self._ends is not None:
      last = np.minimum(last, self._length)
    by_deadline = np.lexsort((cell, last))
    cell, earlier, first = cell[by_deadline], earlier[by_deadline], first[by_deadline]
    by_arrival = np.argsort(first, kind="stable")
    here = np.searchsorted(first[by_arrival], end, "right")
    places = np.maximum(first[by_arrival[:here]] - self._found - 1, 0)
    taken = self._take(by_arrival, np.bincount(places, minlength=end - self._found))
    return cell[taken], earlier[taken]

  def _open(self, end: int) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"]]:
    """All samples still to be taken that may be by `end`, and each cell's next, should none be."""
    start = self._counts[self._used]
    stop = [
      (end * self._shares[cell] - self._wait + self._lag[cell]) // GRID + 2 for cell in self._used
    ]
    stop = np.maximum(stop, start + 1)
    if self._ends is not None:
      stop = np.minimum(stop, self._ends[self._used])
    number = stop - start
    cell = np.repeat(self._used, number)
    within = np.arange(len(cell)) - np.repeat(np.cumsum(number) - number, number)
    return cell, within + np.repeat(start, number)

  def _passes(
    self, cell: Int[np.ndarray, " m"], earlier: Int[np.ndarray, " m"], part: int
  ) -> Int[np.ndarray, " m"]:
    """The first place, from 1, by which `earlier` samples and `part` / GRID more are due."""
    share, lag = np.array(self._shares)[cell], np.array(self._lag)[cell]
    return passes(share, earlier, part - lag)

  def _take(self, by_arrival: Int[np.ndarray, " m"], arrivals: Int[np.ndarray, " n"]) -> list[int]:
    """What is taken at each place; a sample is its rank among the deadlines."""
    arriving = iter(by_arrival.tolist()).__next__
    ready: list[int] = []
    taken = []
    take, push, pop, push_pop = taken.append, heapq.heappush, heapq.heappop, heapq.heappushpop
    early = 0  # samples that were taken before their windows opened
    for new in arrivals.tolist():
      if early and new:
        known = min(early, new)
        early, new = early - known, new - known
      if new == 1:
        take(push_pop(ready, arriving()))
      elif new:
        for _ in range(new - 1):
          push(ready, arriving())
        take(push_pop(ready, arriving()))
      elif ready:
        take(pop(ready))
      else:
        take(arriving())
        early += 1
    return taken
