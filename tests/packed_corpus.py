"""A small corpus of pictures, several turns and bare text, measured for packed rows."""

import functools

import numpy as np
import odd_pictures

from mixjax.atlas import shards
from mixjax.corpus import pixels
from mixjax.corpus.example import Example, Turn
from mixjax.data import encode, tiles
from mixjax.data.conversation import ConversationEncoder
from mixjax.data.lengths import SOURCE, measure_cells
from mixjax.data.packed import PackedShape
from mixjax.data.packed_loader import PackedLoader
from mixjax.models.anyres import Anyres

GEOMETRY = Anyres(tile=28, patch=14, pinpoints=((28, 56), (56, 28), (56, 56)))
SHAPE = PackedShape(rows=8, length=128, image_tokens=64, tiles=12, groups=8, side=28)
SIZES = {"maps/caption": 20, "maps/vqa": 30, "charts/ocr": 40, "talk/vqa": 10}
WEIGHTS = {"maps/caption": 0.4, "maps/vqa": 0.25, "charts/ocr": 0.15, "talk/vqa": 0.2}
BLOCK = 64
WORDS = ["a", "red", "bus", "near", "the", "park", "is", "shown", "now", "describe", "compare"]
BROKEN = [*odd_pictures.BROKEN.values()]


def corpus(broken=0.0):
  """Rows of no, one or two pictures and of several turns; a share of the pictures is broken."""
  rng = np.random.default_rng(0)
  for cell, size in SIZES.items():
    bad = set(rng.choice(size, round(broken * size), replace=False)) if "talk" not in cell else ()
    for i in range(size):
      count = 0 if "talk" in cell else 1 + (cell == "maps/vqa" and i % 4 == 0)
      turns = tuple(
        Turn("what is " + WORDS[rng.integers(11)], " ".join(rng.choice(WORDS, rng.integers(1, 16))))
        for _ in range(1 + i % 2)
      )
      images = [
        odd_pictures.encoded(odd_pictures.picture(tuple(rng.integers(10, 90, 2)), seed=i))
        for _ in range(count)
      ]
      if i in bad:
        images[-1] = BROKEN[i % len(BROKEN)]
      keys = tuple(f"{cell}-{i}-{j}.png" for j in range(count))
      yield Example(f"{cell}-{i}", cell.split("/")[1], turns, keys, tuple(images))


def train_tokenizer(folder):
  return encode.train_tokenizer([" ".join(WORDS)], 320, folder)


def build(folder, tokenizer, examples, **options):
  shards.write_cells(examples, lambda example: example.key.split("/")[0], folder / "cells")
  cells = shards.open_cells(folder / "cells")
  encoder = ConversationEncoder.of(tokenizer, GEOMETRY, SHAPE)
  return measure_cells(cells, encoder, folder / "lengths", max_bad=0.5, **options)


def loader_of(measured, seed=1, shape=SHAPE, **options):
  return PackedLoader(measured, WEIGHTS, seed, shape, block=BLOCK, **options)


def assert_equal(one, other):
  assert one.keys() == other.keys()
  for name in one:
    np.testing.assert_array_equal(one[name], other[name], strict=True, err_msg=name)


def joined(parts):
  return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def examples_in(batch):
  """The tokens of each example of a batch."""
  return [
    tuple(ids[segments == segment].tolist())
    for ids, segments in zip(batch["ids"], batch["segments"], strict=True)
    for segment in range(1, segments.max() + 1)
  ]


@functools.cache
def _rows_of(ledger):
  return {}


def example_at(measured, flat):
  """(the tokens, the pictures) of the record at a place of the table."""
  known = _rows_of(measured.ledger)
  if int(flat) not in known:
    cell = int(np.searchsorted(measured.starts, flat, side="right")) - 1
    example = measured.cells[list(measured.rows)[cell]][int(measured.table[flat, SOURCE])]
    images = [pixels.read(image, measured.limits) for image in example.images]
    said = measured.encoder.encode(example, [tiles.size_of(image) for image in images])
    known[int(flat)] = said, images[: len(said.sizes)]
  return known[int(flat)]
