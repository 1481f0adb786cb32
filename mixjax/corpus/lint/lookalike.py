"""Pairs of hashes that differ in few bits, found without comparing all with all.

Multi-index hashing (Norouzi, Punjani, Fleet, 2012): if two hashes of 128 bits differ in at most 7,
then at least one of their eight 16-bit bands is the same in both. So only hashes that share a band
are compared; where too many share one, the same holds for the bits that are left.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int, UInt64
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

BITS = 128  # of a hash, in two words
BOUND = 6  # bits; measured: docstring of picture.difference_hash
_BANDS = 8
_DIRECT = 256  # so many hashes that share a band are compared all with all

Hashes = UInt64[np.ndarray, "n 2"]
Pairs = tuple[Int[np.ndarray, " p"], Int[np.ndarray, " p"], Int[np.ndarray, " p"]]


def near_pairs(hashes: Hashes, bound: int = BOUND) -> Pairs:
  """All pairs of different hashes within `bound` bits: (index, greater index, distance).

  Hashes must be distinct (`distinct`). Raises ValueError for a bound that the bands do not cover.
  """
  if not 1 <= bound < _BANDS:
    raise ValueError(f"bound={bound} bits: {_BANDS} bands find all pairs within 1 to {_BANDS - 1}")
  count = len(hashes)
  found = [np.zeros(0, np.int64)]
  for one, other in _sharing(hashes, np.arange(count), np.arange(BITS)):
    close = _distance(hashes[one], hashes[other]) <= bound
    one, other = one[close], other[close]
    found.append(np.minimum(one, other) * count + np.maximum(one, other))
  first, second = np.divmod(np.unique(np.concatenate(found)), max(count, 1))
  return first, second, _distance(hashes[first], hashes[second])


def _distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
  return np.bitwise_count(one ^ other).sum(axis=-1, dtype=np.int64)


def distinct(hashes: Hashes) -> tuple[Hashes, Int[np.ndarray, " n"]]:
  """(the different hashes, which of them each hash is)."""
  order = np.lexsort((hashes[:, 1], hashes[:, 0]))
  ordered = hashes[order]
  new = np.ones(len(hashes), bool)
  new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
  inverse = np.empty(len(hashes), np.int64)
  inverse[order] = np.cumsum(new) - 1
  return ordered[new], inverse


def _sharing(
  hashes: np.ndarray, members: np.ndarray, bits: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Pairs of members that agree in one of the bands of `bits`; some of them more than once."""
  bands = []
  for band in np.array_split(bits, _BANDS):
    value = np.zeros(len(members), np.int64)
    for place, bit in enumerate(band):
      word = hashes[members, bit // 64] >> np.uint64(bit % 64)
      value |= (word & np.uint64(1)).astype(np.int64) << place
    order = np.argsort(value, kind="stable")
    bands.append((band, members[order], value[order], np.unique(value, return_counts=True)[1]))
  if sum(int((counts**2).sum()) for *_, counts in bands) >= len(members) ** 2:
    # The bands do not tell these apart.
    yield from _alike(members, np.zeros(len(members), np.int64))
    return
  for band, ordered, value, counts in bands:
    left = np.setdiff1d(bits, band)
    crowded = (counts > _DIRECT) & (len(left) >= 2 * _BANDS)
    starts = np.cumsum(counts) - counts
    for start, size in zip(starts[crowded], counts[crowded], strict=True):
      yield from _sharing(hashes, ordered[start : start + size], left)
    rest = ~np.repeat(crowded, counts)
    yield from _alike(ordered[rest], value[rest])


def _alike(members: np.ndarray, value: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """All pairs of members whose values, in order, are the same."""
  at, apart = np.arange(len(value)), 1
  while len(at):
    at = at[at + apart < len(value)]
    at = at[value[at] == value[at + apart]]
    yield members[at], members[at + apart]
    apart += 1


def groups(hashes: Hashes, bound: int = BOUND) -> Int[np.ndarray, " n"]:
  """A number for each hash, the same for those that a chain of close ones joins."""
  different, inverse = distinct(hashes)
  first, second, _ = near_pairs(different, bound)
  links = coo_matrix((np.ones(len(first)), (first, second)), (len(different),) * 2)
  return connected_components(links, directed=False)[1][inverse]


def matches(
  theirs: UInt64[np.ndarray, "m 2"], ours: UInt64[np.ndarray, "n 2"], bound: int = BOUND
) -> Pairs:
  """All pairs across two sets within `bound` bits: (index in theirs, index in ours, distance)."""
  different, inverse = distinct(np.concatenate([theirs, ours]))
  first, second, distance = near_pairs(different, bound)
  alone = np.arange(len(different))
  first, second, distance = (
    np.concatenate(parts)
    for parts in ((first, second, alone), (second, first, alone), (distance, distance, 0 * alone))
  )
  at_theirs, at_ours = inverse[: len(theirs)], inverse[len(theirs) :]
  wanted = np.isin(first, at_theirs) & np.isin(second, at_ours)
  found = [np.zeros((3, 0), np.int64)]
  by_value = np.argsort(at_ours, kind="stable")
  for value, other, bits in zip(first[wanted], second[wanted], distance[wanted], strict=True):
    low, high = np.searchsorted(at_ours[by_value], [other, other + 1])
    pairs = np.meshgrid(np.flatnonzero(at_theirs == value), by_value[low:high], indexing="ij")
    found.append(np.stack([pairs[0].ravel(), pairs[1].ravel(), np.full(pairs[0].size, bits)]))
  their_index, our_index, bits = np.concatenate(found, axis=1)
  order = np.lexsort((our_index, bits, their_index))
  return their_index[order], our_index[order], bits[order]
