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

The sequence is found lap by lap, each of PERIOD positions, as far into a lap as it is asked for.
The first lap is the rule as it stands. What the cells have had when a later lap ends is found
without the laps before it: n w rounded to whole samples, those with the largest remainders up;
cells of less than a few samples a lap, which would then gain and lose one, by the same rule on what
a lap leaves of them. Within a lap the windows above hold again, cut off at its end. So a position
costs what its place in its own lap costs, however far it is. Later laps too stay within one sample,
or within 1.3 near where two laps meet (measured; the proof is of the first).
"""

import functools
import threading
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from mixjax.data.deadlines import GRID, Deadlines
from mixjax.data.prefix import Sections

PERIOD = 1 << 20


class Schedule:
  """Position -> (cell, how many earlier positions hold that cell); see the module's docstring."""

  def __init__(
    self,
    weights: Sequence[float] | Float[np.ndarray, " k"],
    period: int = PERIOD,
    lag: Int[np.ndarray, " k"] | None = None,
  ):
    """weights: float[k], of which each is finite and not negative; they are normalised.

    `lag` is what the cells are owed at the start, int64[k] in 1 / GRID of a sample (`lag_after` of
    what ran before); their windows open and close earlier by that much.

    Raises ValueError where weights are not as they should be, or where none is positive.
    """
    weights = np.asarray(weights, np.float64)
    if weights.ndim != 1 or not np.all(np.isfinite(weights)) or np.any(weights < 0):
      raise ValueError(f"weights must be a vector of finite, non-negative numbers, not {weights}")
    if not np.any(weights > 0):
      raise ValueError("no weight is positive: at least one must be")
    self.period = period
    # Python's integers: a position times a share is beyond 64 bits.
    self._shares = np.array(_on_grid(weights), object)
    self._lag = np.zeros(len(weights), object) if lag is None else lag.astype(object)
    self._lock = threading.RLock()  # loaders ask from prefetch threads
    self._first = self._new_lap(0)
    self._later = functools.lru_cache(maxsize=2)(self._new_lap)  # by reference: one an instance

  def at(
    self, positions: Int[np.ndarray, " n"]
  ) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """(cell int32[n], earlier positions of that cell int64[n]) of any positions, in any order."""
    laps, places = np.divmod(np.asarray(positions, np.int64), self.period)
    cell, earlier = np.empty(len(laps), np.int32), np.empty(len(laps), np.int64)
    for number in np.unique(laps):
      here = laps == number
      cell[here], within = self._lap(int(number)).at(places[here])
      earlier[here] = within + self._before(int(number))[cell[here]]
    return cell, earlier

  def counts(self, n: int) -> Int[np.ndarray, " k"]:
    """How many of the first n positions hold each cell."""
    number, rest = divmod(int(n), self.period)  # of numpy's, products would wrap around
    before = self._before(number)
    return before + self._lap(number).counts(rest) if rest else before

  def lag_after(self, n: int) -> Int[np.ndarray, " k"]:
    """What the cells are owed after n positions, int64[k] in 1 / GRID of a sample."""
    return self._lag_where(int(n), self.counts(n))

  def _lag_where(self, n: int, counts: Int[np.ndarray, " k"]) -> Int[np.ndarray, " k"]:
    return (self._lag + n * self._shares - counts.astype(object) * GRID).astype(np.int64)

  def _lap(self, number: int) -> Deadlines | Sections:
    with self._lock:
      return self._later(number) if number else self._first

  def _new_lap(self, number: int) -> Deadlines | Sections:
    if not number:
      if np.any(self._lag):
        return Deadlines(self._shares, self._lag, self.period)
      return Sections(self._shares, self.period)
    before, after = self._before(number), self._before(number + 1)
    lag = self._lag_where(number * self.period, before)
    return Deadlines(self._shares, lag, self.period, after - before)

  def _before(self, number: int) -> Int[np.ndarray, " k"]:
    """Samples of each cell in the laps before this one."""
    if not number:
      return np.zeros(len(self._shares), np.int64)
    counts = self._first.counts(self.period)
    if number == 1:
      return counts
    few, each_lap, parts = self._few
    if few.size:
      whole = (self.period * self._shares[few] // GRID).astype(np.int64)
      counts[few] += (number - 1) * whole
      if parts:
        counts[few] += parts.counts((number - 1) * each_lap)[: len(few)]
    many = np.setdiff1d(np.flatnonzero(self._shares), few)
    if many.size:
      due = self._lag[many] + number * self.period * self._shares[many]
      counts[many] = due // GRID
      extra, up = divmod(number * self.period - int(counts.sum()), len(many))
      counts[many] += extra
      counts[many[np.argsort(-(due % GRID), kind="stable")[:up]]] += 1
    return counts

  @functools.cached_property
  def _few(self) -> "tuple[Int[np.ndarray, ' m'], int, Schedule | None]":
    """Cells of few samples a lap, how many parts of samples a lap leaves of them, and whose."""
    each_lap = self.period * self._shares
    few = np.flatnonzero((each_lap > 0) & (each_lap < 4 * GRID))
    claims = each_lap[few] % GRID
    total = -(-int(claims.sum()) // GRID)
    if not total:
      return few, 0, None
    # All other cells are one more, that fills up the last sample.
    claims = np.append(claims, total * GRID - claims.sum())
    lag = self._lag_where(self.period, self._first.counts(self.period))[few]
    lag = np.append(lag, -lag.sum())
    return few, total, Schedule(claims.astype(np.float64), self.period, lag)


def _on_grid(weights: Float[np.ndarray, " k"]) -> list[int]:
  """Integers that sum to GRID, in proportion to the weights; 0 stays 0."""
  shares = [int(share * GRID) for share in weights / weights.sum()]
  shares[int(np.argmax(weights))] += GRID - sum(shares)
  return shares
