"""How many of the first n places each cell has, found without finding those places.

It is the rule of `schedule` that is asked, of cells that are owed nothing. At any place most
samples have been taken for sure, because they had to be, or have not, because they may not be yet;
there is at most one sample of each cell that may have been. The rule takes the nearest deadline
first, so samples of nearer deadlines never wait for those of farther ones: the k nearest are a
queue of their own, which one sample leaves at every place unless it is empty. Of such a queue, what
has left by n is

    the least, over all m up to n, of (what has come by m) + (n - m),

and a sample has been taken if one more leaves with it than without. What has come by m is at least
m while all that has come counts, as the rule never has to wait. So only those m matter by which a
sample has come that may not have been taken at n: about as far back as the longest window is long.
"""

import threading
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from mixjax.data.deadlines import GRID, Deadlines, passes, wait_of

_SPAN = 1 << 16  # places whose arrivals are counted together
_SECTION = 1 << 14  # places of a section; more of many cells, each of which makes a section dear


class Sections:
  """`Deadlines` of cells that are owed nothing, found from wherever one looks.

  Each section of places is found from its own start on, by `counts_after`, or by the section before
  it where that has been read to its end.
  """

  def __init__(self, shares: Sequence[int], length: int, section: int = 0):
    """shares: int[k], they sum to GRID; `length` places, `section` of which are found together."""
    self._shares, self._length = [int(share) for share in shares], length
    self._section = section or max(_SECTION, 8 * len(self._shares))
    self._found: dict[int, tuple[Int[np.ndarray, " k"], Deadlines]] = {}
    self._lock = threading.Lock()

  def at(
    self, places: Int[np.ndarray, " n"]
  ) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """(cell int32[n], earlier places of that cell int64[n]) of places below `length`."""
    numbers, places = np.divmod(places, self._section)
    cell, earlier = np.empty(len(places), np.int32), np.empty(len(places), np.int64)
    for number in np.unique(numbers):
      here = numbers == number
      before, section = self._at(int(number))
      cell[here], within = section.at(places[here])
      earlier[here] = within + before[cell[here]]
    return cell, earlier

  def counts(self, n: int) -> Int[np.ndarray, " k"]:
    """How many of the first n places hold each cell."""
    number, rest = divmod(n, self._section)
    known = self._found.get(number)
    return known[0] + known[1].counts(rest) if known else counts_after(n, self._shares)

  def _at(self, number: int) -> tuple[Int[np.ndarray, " k"], Deadlines]:
    """(samples of each cell before a section, the section)."""
    with self._lock:
      if number not in self._found:
        start = number * self._section
        length = min(self._section, self._length - start)
        before, last = self._found.get(number - 1, (None, None))
        if last is not None and last.complete:
          before = before + last.counts(self._section)
        else:
          before = counts_after(start, self._shares)
        owed = [
          start * share - int(count) * GRID
          for share, count in zip(self._shares, before, strict=True)
        ]
        self._found[number] = before, Deadlines(self._shares, owed, length)
      return self._found[number]


def counts_after(n: int, shares: Sequence[int]) -> Int[np.ndarray, " k"]:
  """How many of the first n places of `Deadlines(shares, lag=0)` hold each cell, int64[k].

  shares: int[k], they sum to GRID.
  """
  shares = [int(share) for share in shares]
  wait = wait_of(shares)
  came = np.array([_due(n, share, wait) for share in shares], np.int64)
  left = np.array([_due(n, share, GRID - wait + 1) for share in shares], np.int64)
  # The samples that may have been taken: one each of these cells, nearest deadline first.
  unsure = np.flatnonzero(came > left)
  if not unsure.size:
    return left
  first, last = (
    np.array([-(-(int(left[c]) * GRID + part) // shares[c]) for c in unsure], np.int64)
    for part in (wait, GRID - wait + 1)
  )
  order = np.lexsort((unsure, last))
  unsure, first = unsure[order], first[order]
  starts = np.sort(first)
  # At m, what has come beyond m, the unsure samples left out.
  beyond = _least_beyond(starts, n, shares, wait) - np.arange(1, len(starts) + 1)
  taken = min(int(beyond.min()), 0)
  for cell, rank in zip(unsure, np.searchsorted(starts, first), strict=True):
    beyond[rank:] += 1
    now = min(int(beyond.min()), 0)
    left[cell] += now - taken
    taken = now
  return left


def _due(n: int, share: int, part: int) -> int:
  """Samples of a cell of which all before and `part` / GRID of it are due by place n."""
  return max((n * share - part) // GRID + 1, 0) if share else 0


def _least_beyond(
  starts: Int[np.ndarray, " j"], n: int, shares: Sequence[int], wait: int
) -> Int[np.ndarray, " j"]:
  """The least of (samples that have come by m) - m, over starts[i] <= m < starts[i + 1] or <= n.

  Where two starts are one, the first of them has no m of its own, and the second's is as good.
  """
  least = np.full(len(starts), 1 << 60)
  used = [cell for cell, share in enumerate(shares) if share]
  begin = int(starts[0]) - 1
  count = [_due(begin, shares[cell], wait) for cell in used]
  while begin < n:
    end = min(begin + _SPAN, n)
    upto = [_due(end, shares[cell], wait) for cell in used]
    number = np.subtract(upto, count)
    cell = np.repeat(used, number)
    within = np.arange(len(cell)) - np.repeat(np.cumsum(number) - number, number)
    came = passes(np.array(shares)[cell], within + np.repeat(count, number), wait)
    came = np.bincount(came - begin - 1, minlength=end - begin)
    beyond = np.cumsum(came) + sum(count) - np.arange(begin + 1, end + 1)
    at = np.searchsorted(starts, np.arange(begin + 1, end + 1), "right") - 1
    np.minimum.at(least, at, beyond)
    begin, count = end, upto
  return least
