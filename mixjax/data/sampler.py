"""(mixture, sizes, seed, position) -> (cell, row): which row of the corpus the n-th sample is."""

import functools
import hashlib
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int

from mixjax.data import mixture
from mixjax.data.schedule import Schedule


class Sampler:
  """Cells by exact quota, and within a cell every row once an epoch, in a new order each epoch.

  Everything is a pure function of its arguments: any position can be asked for, in any order, on
  any host. A cell's order of rows depends on the seed, the cell's name and the epoch alone, so two
  mixtures read the same rows of a cell they share, one of them perhaps further.
  """

  def __init__(self, weights: Mapping[str, float], sizes: Mapping[str, int], seed: int):
    """weights: shares of samples by cell; sizes: rows by cell. Raises as `mixture.check` does."""
    self.weights = mixture.check(weights, sizes)
    self.seed = seed
    self._names = tuple(self.weights)
    self._sizes = np.array([sizes[name] for name in self._names], np.int64)
    self._schedule = Schedule(list(self.weights.values()))
    # A batch may straddle the epochs of every cell; kept by reference, so one cache an instance.
    self._order = functools.lru_cache(maxsize=2 * len(self._names))(self._shuffle)

  def rows(self, start: int, count: int) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """(cell int32[count], row int64[count]) of the positions start ... start + count - 1.

    Cells are numbered in the order of `sizes`; rows count from 0 within their cell.
    """
    cell, earlier = self._schedule.at(np.arange(start, start + count))
    epoch, place = np.divmod(earlier, self._sizes[cell])
    row = np.empty_like(place)
    by_group = np.lexsort((epoch, cell))
    changes = np.flatnonzero(np.diff(cell[by_group]) | np.diff(epoch[by_group])) + 1
    for group in np.split(by_group, changes) if count else ():
      order = self._order(int(cell[group[0]]), int(epoch[group[0]]))
      row[group] = order[place[group]]
    return cell, row

  def counts(self, samples: int) -> Int[np.ndarray, " k"]:
    """How many of the first `samples` positions fall on each cell."""
    return self._schedule.counts(samples)

  def _shuffle(self, cell: int, epoch: int) -> Int[np.ndarray, " rows"]:
    """The epoch's permutation of a cell's rows."""
    name = int.from_bytes(hashlib.sha256(self._names[cell].encode()).digest()[:8])
    bits = np.random.Philox(np.random.SeedSequence([self.seed, name, epoch]))
    # NumPy keeps raw bits stable between releases, but not `Generator.permutation`.
    return np.argsort(bits.random_raw(int(self._sizes[cell])), kind="stable")
