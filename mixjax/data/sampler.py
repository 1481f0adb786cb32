"""(mixture, sizes, seed, position) -> (cell, row): which row of the corpus the n-th sample is."""

import functools
import hashlib
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int

from mixjax.data import mixture
from mixjax.data.stages import StagedSchedule, Stages


class Sampler:
  """Cells by exact quota, and within a cell every row once an epoch, in a new order each epoch.

  Everything is a pure function of its arguments: any position can be asked for, in any order, on
  any host. A cell's order of rows depends on the seed, the cell's name and the epoch alone, so two
  mixtures read the same rows of a cell they share, one of them perhaps further.
  """

  def __init__(self, weights: Mapping[str, float] | Stages, sizes: Mapping[str, int], seed: int):
    """weights: shares of samples by cell, or stages of such; sizes: rows by cell.

    Raises as `mixture.check` does.
    """
    self.stages = Stages.of(weights)
    self.seed = seed
    self._rows = dict(sizes)
    self._names = tuple(sizes)
    self._sizes = np.array(list(sizes.values()), np.int64)
    self._schedule = StagedSchedule(
      [stage.start for stage in self.stages],
      [self._vector(stage.weights, stage.start) for stage in self.stages],
    )
    # A batch may straddle the epochs of every cell; kept by reference, so one cache an instance.
    self._order = functools.lru_cache(maxsize=2 * len(self._names))(self._shuffle)

  def __reduce__(self):
    """Worker processes find again what they need; nothing that was found is sent to them."""
    return type(self), (self.stages, self._rows, self.seed)

  def append(self, start: int, weights: Mapping[str, float]):
    """From position `start` on these weights hold: for mixers that find them during the run.

    All that comes before `start` stays; call it before anything from `start` on is read, and save
    `stages` to the run's folder first, so that a restart finds the same rows. Raises ValueError
    where a stage begins there or later, or as `mixture.check` does.
    """
    vector = self._vector(weights, start)
    self.stages = self.stages.then(start, weights)
    self._schedule.append(start, vector)

  def _vector(self, weights: Mapping[str, float], start: int) -> Float[np.ndarray, " k"]:
    try:
      return np.array(list(mixture.check(weights, self._rows).values()))
    except ValueError as error:
      raise ValueError(f"from sample {start} on, {error}" if start else str(error)) from None

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

  def quotas(self, samples: int) -> Float[np.ndarray, " k"]:
    """How many of the first `samples` positions the weights ask for of each cell."""
    return self._schedule.quotas(samples)

  def _shuffle(self, cell: int, epoch: int) -> Int[np.ndarray, " rows"]:
    """The epoch's permutation of a cell's rows."""
    name = int.from_bytes(hashlib.sha256(self._names[cell].encode()).digest()[:8])
    bits = np.random.Philox(np.random.SeedSequence([self.seed, name, epoch]))
    # NumPy keeps raw bits stable between releases, but not `Generator.permutation`.
    order = np.argsort(bits.random_raw(int(self._sizes[cell])), kind="stable")
    return order.astype(np.min_scalar_type(int(self._sizes[cell])))  # half of the memory, or less
