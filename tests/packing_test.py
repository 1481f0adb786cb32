"""Samples share rows by their lengths alone: none is lost, none overflows, and little is empty."""

import pickle

import numpy as np
import pytest

from mixjax.data import packing as packing_lib
from mixjax.data.packed import PackedShape
from mixjax.data.packing import Packing, pack

# Two pictures' worth of anyres sizes for usual photographs, charts, pages, screens and thumbnails,
# as (image tokens, tiles) of LLaVA-NeXT at 336 pixels, and how often they are seen.
PICTURES = [
  (2340, 5),
  (2144, 5),
  (1948, 5),
  (2928, 5),
  (1752, 3),
  (1560, 3),
  (1166, 3),
  (576 + 50, 3),
]
SHARES = [0.30, 0.20, 0.12, 0.08, 0.10, 0.08, 0.07, 0.05]


def samples(count, text, fixed=False, seed=0):
  """Lengths of a mixture of pictures with questions and of text alone (a share `text` of it).

  `fixed`: LLaVA-1.5's 576 tokens a picture in place of LLaVA-NeXT's tiles.
  """
  rng = np.random.default_rng(seed)
  seen = np.array([(576, 1)] if fixed else PICTURES)
  seen = seen[rng.choice(len(seen), count, p=[1.0] if fixed else SHARES)]
  said = np.clip(rng.lognormal(np.log(120), 1.0, count), 12, 1000).astype(int)
  alone = np.clip(rng.lognormal(np.log(450), 0.8, count), 20, 4000).astype(int)
  only = rng.random(count) < text
  seen[only] = 0
  return np.column_stack([np.where(only, alone, seen[:, 0] + said), seen]).astype(np.int32)


def shape_of(length=4096, image_tokens=None, tiles=16):
  return PackedShape(1, length, image_tokens or length, tiles, 1)


def assert_rows_hold(lengths, row_of, rows, shape):
  assert row_of.shape == (len(lengths),)
  used = np.stack([np.bincount(row_of, column, rows) for column in lengths.T], axis=1)
  assert len(used) == rows  # no row beyond the last
  assert np.all(np.bincount(row_of, minlength=rows) > 0)
  assert np.all(used <= [shape.length, shape.image_tokens, shape.row_tiles])


@pytest.mark.parametrize("text", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
  "shape", [shape_of(), shape_of(image_tokens=3000), shape_of(tiles=6), shape_of(5001, tiles=50)]
)
def test_no_row_overflows(text, shape):
  lengths = samples(700, text)
  assert_rows_hold(lengths, *pack(lengths, shape), shape)


@pytest.mark.parametrize("length", [1, 2, 7, 100, 5000])
def test_small_rows_and_whole_rows(length):
  lengths = np.zeros((50, 3), np.int32)
  lengths[:, 0] = np.random.default_rng(0).integers(1, length + 1, 50)
  lengths[7, 0] = length
  shape = shape_of(length)
  row_of, rows = pack(lengths, shape)
  assert_rows_hold(lengths, row_of, rows, shape)
  assert np.sum(row_of == row_of[7]) == 1
  assert pack(lengths[:0], shape)[1] == 0


def test_a_sample_that_fits_nowhere_is_named():
  with pytest.raises(ValueError, match="does not fit in a row"):
    pack(np.array([[5, 0, 0], [4097, 0, 0]]), shape_of())
  with pytest.raises(ValueError, match="does not fit in a row"):
    pack(np.array([[600, 576, 5]]), shape_of(tiles=4))


@pytest.mark.parametrize(
  ("length", "text", "fixed", "least"),
  [
    (4096, 0.06, True, 0.97),  # LLaVA-1.5's own mixture
    (4096, 0.65, False, 0.99),  # LLaVA-NeXT's tiles, where two samples in three are text
    (8192, 0.14, False, 0.98),  # LLaVA-OneVision's share of text
    (8192, 0.40, False, 0.99),
  ],
)
def test_little_of_the_rows_is_empty(length, text, fixed, least):
  lengths = samples(2048, text, fixed)
  lengths[:, 0] = np.minimum(lengths[:, 0], length)
  _, rows = pack(lengths, shape_of(length, tiles=length // 256))
  assert lengths[:, 0].sum() / (rows * length) >= least


def test_pictures_too_long_for_pairs_leave_what_no_packing_could_fill():
  """At 4096, LLaVA-OneVision's mixture has more pictures over half a row than anything to add."""
  lengths = samples(2048, 0.14)
  _, rows = pack(lengths, shape_of())
  halves = np.sum(lengths[:, 0] > 2048)  # no two of them share a row
  assert halves <= rows <= 1.04 * halves
  assert lengths[:, 0].sum() / (rows * 4096) < 0.9


BLOCK = 128
LENGTHS = samples(BLOCK * 12, 0.3)


class Asked:
  """Lengths of the run, and the blocks that were asked for."""

  def __init__(self, lengths):
    self.lengths, self.starts = lengths, []

  def __call__(self, start, count):
    self.starts.append(start)
    return self.lengths[start : start + count]


def packing(lengths=LENGTHS, block=BLOCK, seed=3, **options):
  lengths = lengths if isinstance(lengths, Asked) else Asked(lengths)
  return Packing(lengths, shape_of(), seed, block, **options)


def rows_of(made, block):
  """All rows of a block, by what the packing says of where they are."""
  row = 0
  while made.locate(row)[0] < block:
    row += 1
  found = []
  while made.locate(row)[0] == block:
    found += made.rows(row, 1)
    row += 1
  return found


def test_every_sample_is_in_exactly_one_row():
  made = packing()
  for block in range(5):
    rows = rows_of(made, block)
    held = np.sort(np.concatenate(rows))
    np.testing.assert_array_equal(held, np.arange(BLOCK * block, BLOCK * (block + 1)))
    for row in rows:
      assert np.all(np.diff(row) > 0)  # in the order of the run
      assert np.all(LENGTHS[row].sum(axis=0) <= [4096, 4096, 16])


def test_rows_are_the_same_however_they_are_asked_for():
  whole = packing().rows(0, 200)
  far = packing()
  for start, count in ((150, 50), (0, 1), (60, 90)):
    for row, expected in zip(far.rows(start, count), whole[start : start + count], strict=True):
      np.testing.assert_array_equal(row, expected)
  copy = pickle.loads(pickle.dumps(far))
  np.testing.assert_array_equal(copy.rows(199, 1)[0], whole[199])


def test_a_block_is_its_own():
  """What follows a block changes nothing in it, and what comes before only where it begins."""
  other = LENGTHS.copy()
  other[: 2 * BLOCK] = samples(2 * BLOCK, 0.9, seed=5)
  for row, same in zip(rows_of(packing(other), 2), rows_of(packing(), 2), strict=True):
    np.testing.assert_array_equal(row, same)


def test_rows_come_in_no_order_of_length():
  rows = packing(samples(4096, 0.3), block=4096).rows(0, 900)
  longest = [samples(4096, 0.3)[row, 0].max() for row in rows]
  halves = np.mean(longest[:450]), np.mean(longest[450:])
  assert abs(halves[0] - halves[1]) < 150
  assert not np.array_equal(
    np.concatenate(packing().rows(0, 20)), np.concatenate(packing(seed=4).rows(0, 20))
  )


def test_blocks_of_equal_lengths_come_in_orders_of_their_own():
  made = packing(np.tile(LENGTHS[:BLOCK], (3, 1)))
  blocks = [[(row % BLOCK).tolist() for row in rows_of(made, block)] for block in range(2)]
  assert sorted(blocks[0]) == sorted(blocks[1]) and blocks[0] != blocks[1]


def test_samples_of_the_first_rows():
  made = packing()
  for rows in (0, 1, 30, 200):
    before, rest = made.samples(rows)
    held = np.concatenate([np.zeros(0, int), *made.rows(0, rows)])
    np.testing.assert_array_equal(np.sort(np.concatenate([np.arange(before), rest])), np.sort(held))


def test_a_cache_spares_what_was_found(tmp_path):
  first, second = Asked(LENGTHS), Asked(LENGTHS)
  made = packing(first, cache=tmp_path / "deep" / "rows.npy")
  expected = made.rows(300, 10)
  made.keep()
  again = packing(second, cache=tmp_path / "deep" / "rows.npy")
  for row, same in zip(again.rows(300, 10), expected, strict=True):
    np.testing.assert_array_equal(row, same)
  assert len(set(first.starts)) > 3 and len(set(second.starts)) == 1
  assert [path.name for path in (tmp_path / "deep").iterdir()] == ["rows.npy"]


def test_a_run_that_is_killed_has_kept_most_of_what_it_found(tmp_path, monkeypatch):
  monkeypatch.setattr(packing_lib, "_UNKEPT", 2)
  first, second = Asked(LENGTHS), Asked(LENGTHS)
  expected = packing(first, cache=tmp_path / "rows.npy").rows(300, 10)
  again = packing(second, cache=tmp_path / "rows.npy")
  for row, same in zip(again.rows(300, 10), expected, strict=True):
    np.testing.assert_array_equal(row, same)
  assert len(set(second.starts)) <= 3 < len(set(first.starts))


def test_a_block_has_samples():
  with pytest.raises(ValueError, match="block is 0"):
    packing(block=0)
