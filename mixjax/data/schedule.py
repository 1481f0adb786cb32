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
The first lap is the rule as it stands. What the cells have at the end of each later lap is found
without the laps before it: the whole part of PERIOD w in every lap, and of the parts that are left
over as many more samples as the same rule hands out, on them, to the laps so far. Within a lap the
windows above hold again, cut off at its end. So a position costs what its place in its own lap
costs, however far it is, and cells stay within one sample but for the rim of a lap, where the cut
can make it one and a half (measured; there is no proof for later laps).
"""

import functools
import threading
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from mixjax.data.deadlines import GRID, Deadlines

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
    number, rest = divmod(n, self.period)
    before = self._before(number)
    return before + self._lap(number).counts(rest) if rest else before

  def lag_after(self, n: int) -> Int[np.ndarray, " k"]:
    """What the cells are owed after n positions, int64[k] in 1 / GRID of a sample."""
    return self._lag_where(n, self.counts(n))

  def _lag_where(self, n: int, counts: Int[np.ndarray, " k"]) -> Int[np.ndarray, " k"]:
    return (self._lag + n * self._shares - counts.astype(object) * GRID).astype(np.int64)

  def _lap(self, number: int) -> Deadlines:
    with self._lock:
      return self._later(number) if number else self._first

  def _new_lap(self, number: int) -> Deadlines:
    if not number:
      return Deadlines(self._shares, self._lag, self.period)
    before, after = self._before(number), self._before(number + 1)
    lag = self._lag_where(number * self.period, before)
    return Deadlines(self._shares, lag, self.period, after - before)

  def _before(self, number: int) -> Int[np.ndarray, " k"]:
    """Samples of each cell in the laps before this one."""
    if not number:
      return np.zeros(len(self._shares), np.int64)
    first = self._first.counts(self.period)
    whole = (self.period * self._shares // GRID).astype(np.int64)
    before = first + (number - 1) * whole
    if self._left_over:
      over, each_lap = self._left_over
      before += over.counts((number - 1) * each_lap)
    return before

  @functools.cached_property
  def _left_over(self) -> "tuple[Schedule, int] | None":
    """Who gets the samples of a lap that no cell has a whole claim to, and how many there are."""
    claims = self.period * self._shares % GRID
    each_lap = int(claims.sum()) // GRID
    if not each_lap:
      return None
    lag = self._lag_where(self.period, self._first.counts(self.period))
    return Schedule(claims.astype(np.float64), self.period, lag), each_lap


def _on_grid(weights: Float[np.ndarray, " k"]) -> list[int]:
  """Integers that sum to GRID, in proportion to the weights; 0 stays 0."""
  shares = [int(share * GRID) for share in weights / weights.sum()]
  shares[int(np.argmax(weights))] += GRID - sum(shares)
  return shares
