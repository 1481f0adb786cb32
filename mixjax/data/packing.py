"""Which samples share a row, found from their lengths alone.

The run's samples are cut into blocks of consecutive ones, and each block is packed into rows by
itself. So the rows of any block are a pure function of its samples, every sample is in exactly one
row, and after each whole block the mixture is as exact as the sampler's. Only the number of rows of
all earlier blocks has to be known to find row r of the run.

Within a block, one row after another is filled: with the longest sample left, then with samples of
middling length, and as soon as two samples are left that fill the row to the brim, with these two.
Sets of lengths are the bits of one integer, so that such a pair is found in a few operations on
machine words: the set, and its mirror image shifted by what is missing, have a bit in common.
Largest samples first instead of middling ones suits other lengths; the better of the two is taken.
"""

import bisect
import functools
import os
import pathlib
import threading
import uuid
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Int

from mixjax.data.packed import PackedShape

BLOCK = 2048
_UNITS = 1024  # lengths are rounded up to this fraction of a row: more pairs fit, at 0.1% a sample
_SLACK = 16  # units of a row that a pair may leave empty
_UNKEPT = 64  # blocks found before they are kept; an eighth of all, where that is more
_FULL = 0.99  # a block filled so well is not packed a second time

Lengths = Int[np.ndarray, "n 3"]  # tokens, image tokens and tiles of samples


def pack(lengths: Lengths, shape: PackedShape) -> tuple[Int[np.ndarray, " n"], int]:
  """(the row of each sample, how many rows), rows counted in the order they are filled.

  Raises ValueError if a sample does not fit in a row of `shape`.
  """
  limits = (shape.length, shape.image_tokens, shape.row_tiles)
  if len(lengths) and np.any(lengths.max(axis=0) > limits):
    raise ValueError(
      f"a sample of at most {lengths.max(axis=0)} tokens, image tokens and tiles does not fit in a "
      f"row of {limits}: measure the cells for this shape"
    )
  best = _fill(lengths, limits, middling=False)
  if lengths[:, 0].sum() < _FULL * best[1] * shape.length:
    other = _fill(lengths, limits, middling=True)
    best = min(best, other, key=lambda found: found[1])
  return best


def _fill(
  lengths: Lengths, limits: tuple[int, int, int], middling: bool
) -> tuple[Int[np.ndarray, " n"], int]:
  unit = max(limits[0] // _UNITS, 1)
  brim = limits[0] // unit
  sizes = np.minimum(-(-lengths[:, 0] // unit), brim).tolist()
  middle = sum(sizes) // max(len(sizes), 1)
  image_tokens, tiles = lengths[:, 1].tolist(), lengths[:, 2].tolist()
  of_size: list[list[int]] = [[] for _ in range(brim + 1)]
  for sample in range(len(sizes) - 1, -1, -1):
    of_size[sizes[sample]].append(sample)
  left = mirror = 0  # the sizes that samples are left of: bit s, and bit brim - s
  for size, samples in enumerate(of_size):
    if samples:
      left |= 1 << size
      mirror |= 1 << (brim - size)

  row_of = [0] * len(sizes)
  rows = 0
  while left:
    room, image_room, tile_room = brim, *limits[1:]
    size = left.bit_length() - 1
    while True:
      samples = of_size[size]
      sample = samples[-1]
      if image_tokens[sample] > image_room or tiles[sample] > tile_room:
        fitting = (
          other
          for size in _downwards(left, size)
          for other in reversed(of_size[size])
          if image_tokens[other] <= image_room and tiles[other] <= tile_room
        )
        sample = next(fitting, None)
        if sample is None:
          break
        size = sizes[sample]
        samples = of_size[size]
      samples.remove(sample) if sample != samples[-1] else samples.pop()
      row_of[sample] = rows
      room -= size
      image_room -= image_tokens[sample]
      tile_room -= tiles[sample]
      if not samples:
        left ^= 1 << size
        mirror ^= 1 << (brim - size)
      smallest = (left & -left).bit_length() - 1
      if not left or room < smallest:
        break
      if left >> room & 1:
        size = room
        continue
      if 2 * smallest <= room <= 2 * (left.bit_length() - 1):
        size = _of_pair(left, mirror, brim, room, of_size)
        if size:
          continue
      size = 0
      if middling and room >= 2 * smallest:
        larger = left >> middle
        size = middle + (larger & -larger).bit_length() - 1 if larger else smallest
      if not 0 < size <= room:
        size = (left & ((2 << room) - 1)).bit_length() - 1
    rows += 1
  return np.array(row_of, np.int64), rows


def _downwards(sizes: int, size: int) -> Iterator[int]:
  """The members of a set of sizes, from `size` down."""
  sizes &= (2 << size) - 1
  while sizes:
    size = sizes.bit_length() - 1
    yield size
    sizes ^= 1 << size


def _of_pair(left: int, mirror: int, brim: int, room: int, of_size: list[list[int]]) -> int:
  """The larger of two sizes that together fill `room` nearly; 0 if there are no such two."""
  for sum_of_two in range(room, max(room - _SLACK, 0), -1):
    pairs = left & (mirror >> (brim - sum_of_two))
    if pairs:
      larger = pairs.bit_length() - 1
      if 2 * larger != sum_of_two or len(of_size[larger]) > 1:
        return larger
  return 0


class Packing:
  """The rows of a run, in order; see the module's docstring.

  Rows of a block come in random order, as each is filled from the longest sample left; samples of a
  row in the order of the run.
  """

  def __init__(
    self,
    lengths: Callable[[int, int], Lengths],
    shape: PackedShape,
    seed: int,
    block: int = BLOCK,
    cache: str | os.PathLike | None = None,
  ):
    """lengths: (start, count) -> lengths of the samples start ... start + count - 1 of the run.

    `cache` is a file to keep the blocks' numbers of rows in, which spares a resumed run from
    finding most of them again; it must be of the same lengths, shape and block. Raises ValueError
    for a block without samples.
    """
    if block < 1:
      raise ValueError(f"block is {block}: a block has at least one sample")
    self.block, self._lengths, self._shape, self._seed = block, lengths, shape, seed
    # How many rows the blocks before each have, as far as that is known.
    self._ends = [0]
    self._open(cache)
    self._start()

  def _open(self, cache: str | os.PathLike | None):
    self._cache, self._kept = None if cache is None else pathlib.Path(cache), 1
    if self._cache is not None and self._cache.exists():
      kept = [0, *np.cumsum(np.load(self._cache), dtype=np.int64).tolist()]
      self._ends, self._kept = max(self._ends, kept, key=len), len(kept)

  def _start(self):
    self._lock = threading.RLock()  # loaders ask from prefetch threads
    self._packed = functools.lru_cache(maxsize=4)(self._pack)
    self._parted = functools.lru_cache(maxsize=4)(self._part)

  def __getstate__(self):
    # For worker processes: what has been found goes along, locks and caches do not.
    return {k: v for k, v in vars(self).items() if k not in ("_lock", "_packed", "_parted")}

  def __setstate__(self, state):
    vars(self).update(state)
    self._start()

  def rows(self, start: int, count: int) -> list[Int[np.ndarray, " n"]]:
    """The samples, as positions in the run, of the rows start ... start + count - 1."""
    found = []
    while len(found) < count:
      block, row = self.locate(start + len(found))
      samples = self._parted(block)[row : row + count - len(found)]
      found += [block * self.block + part for part in samples]
    return found

  def locate(self, row: int) -> tuple[int, int]:
    """(block, row within the block) of a row of the run."""
    with self._lock:
      while self._ends[-1] <= row:
        self._find()
      block = bisect.bisect(self._ends, row) - 1
      return block, row - self._ends[block]

  def reach(self, block: int, rows: int) -> bool:
    """Whether the blocks before a block have so many rows, or more."""
    with self._lock:
      while self._ends[-1] < rows and len(self._ends) <= block:
        self._find()
      return self._ends[min(block, len(self._ends) - 1)] >= rows

  def before(self, block: int) -> int:
    """How many rows the blocks before a block have."""
    with self._lock:
      while len(self._ends) <= block:
        self._find()
      return self._ends[block]

  def samples(self, rows: int) -> tuple[int, Int[np.ndarray, " n"]]:
    """What the first `rows` rows hold: all samples before a position, and these from there on."""
    if not rows:
      return 0, np.zeros(0, np.int64)
    block, row = self.locate(rows - 1)
    first = block * self.block
    return first, first + np.concatenate(self._parted(block)[: row + 1])

  def forget(self, block: int, cache: str | os.PathLike | None = None):
    """Lets go of what is known from a block on: its samples are others now, and so is the cache."""
    with self._lock:
      del self._ends[block + 1 :]
      self._packed.cache_clear()
      self._parted.cache_clear()
      self._open(cache)

  def keep(self):
    """Writes what is known of the blocks to the cache, if there is one."""
    if self._cache is None or len(self._ends) <= self._kept:
      return
    with self._lock:
      counts = np.diff(self._ends).astype(np.int32)
    partial = self._cache.with_name(f".{self._cache.name}.{uuid.uuid4().hex}")
    partial.parent.mkdir(parents=True, exist_ok=True)
    with open(partial, "wb") as file:
      np.save(file, counts)
    os.replace(partial, self._cache)
    self._kept = len(counts) + 1

  def _find(self):
    """The rows of one block more."""
    self._ends.append(self._ends[-1] + self._packed(len(self._ends) - 1)[1])
    if len(self._ends) - self._kept > max(_UNKEPT, self._kept // 8):
      self.keep()

  def _pack(self, block: int) -> tuple[Int[np.ndarray, " n"], int]:
    return pack(self._lengths(block * self.block, self.block), self._shape)

  def _part(self, block: int) -> list[Int[np.ndarray, " n"]]:
    """The samples of each row of a block, as places in the block."""
    row_of, rows = self._packed(block)
    bits = np.random.Philox(np.random.SeedSequence([self._seed, block])).random_raw(rows)
    rank = np.empty(rows, np.int64)
    rank[np.argsort(bits, kind="stable")] = np.arange(rows)
    order = np.argsort(rank[row_of], kind="stable")
    return np.split(order, np.cumsum(np.bincount(rank[row_of]))[:-1])
