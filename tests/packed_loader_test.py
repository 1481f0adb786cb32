"""Packed batches from pixels: pure functions of the step, on any hosts, with any broken records."""

import dataclasses
import functools
import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import odd_pictures
import pytest
import tiny
from absl import flags
from flax import nnx

from mixjax.atlas import shards
from mixjax.corpus import pixels
from mixjax.corpus.example import Example, Turn
from mixjax.data import encode, tiles
from mixjax.data.conversation import ConversationEncoder
from mixjax.data.lengths import SOURCE, TOKENS, measure_cells
from mixjax.data.packed import PackedShape
from mixjax.data.packed_loader import PackedLoader
from mixjax.models.anyres import Anyres
from mixjax.models.llava_next import LlavaNext, LlavaNextConfig, Tiles

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


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  return encode.train_tokenizer([" ".join(WORDS)], 320, tmp_path_factory.mktemp("tokenizer"))


def build(folder, tokenizer, examples, **options):
  shards.write_cells(examples, lambda example: example.key.split("/")[0], folder / "cells")
  cells = shards.open_cells(folder / "cells")
  encoder = ConversationEncoder.of(tokenizer, GEOMETRY, SHAPE)
  return measure_cells(cells, encoder, folder / "lengths", max_bad=0.5, **options)


@pytest.fixture(scope="module")
def measured(tokenizer, tmp_path_factory):
  return build(tmp_path_factory.mktemp("good"), tokenizer, corpus())


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


def test_a_batch_is_what_its_shape_says(measured):
  batch = loader_of(measured).batch(3)
  wanted = SHAPE.arrays()
  assert batch.keys() == wanted.keys()
  for name, (dtype, size) in wanted.items():
    assert (batch[name].dtype, batch[name].shape) == (dtype, size), name


def test_rows_hold_whole_examples_one_after_another(measured):
  loader = loader_of(measured)
  for step in (0, 5):
    batch = loader.batch(step)
    for i, positions in enumerate(loader.packing.rows(step * SHAPE.rows, SHAPE.rows)):
      segments, end, patch, token = batch["segments"][i], 0, 0, 0
      for segment, flat in enumerate(loader._flat(positions), start=1):
        said, images = example_at(measured, flat)
        here = slice(end, end + len(said.ids))
        np.testing.assert_array_equal(batch["ids"][i, here], said.ids)
        np.testing.assert_array_equal(batch["loss_mask"][i, here], said.loss_mask)
        np.testing.assert_array_equal(batch["positions"][i, here], np.arange(len(said.ids)))
        np.testing.assert_array_equal(segments[here], segment)
        end = here.stop
        for image in images:
          cut = tiles.cut(image, GEOMETRY)
          np.testing.assert_array_equal(batch["tiles"][i, patch // 4 : patch // 4 + len(cut)], cut)
          tokens = GEOMETRY.tokens(tiles.size_of(image))
          shown = np.where(tokens < 0, tokens, tokens + patch)
          np.testing.assert_array_equal(batch["index"][i, token : token + len(tokens)], shown)
          patch, token = patch + 4 * len(cut), token + len(tokens)
      image = measured.encoder.tokenizer.convert_tokens_to_ids("<image>")
      assert np.sum(batch["ids"][i] == image) == token == np.sum(batch["index"][i] != -2)
      assert not segments[end:].any() and not batch["loss_mask"][i, end:].any()
      assert np.all(batch["ids"][i, end:] == measured.encoder.pad_id)


def test_hosts_read_parts_of_one_global_batch(measured):
  whole = loader_of(measured).batch(5)
  for hosts in (1, 2, 4, 8):
    parts = [loader_of(measured).batch(5, host, hosts) for host in range(hosts)]
    assert_equal(joined(parts), whole)
  with pytest.raises(ValueError, match="8 groups cannot be dealt to 3 processes"):
    loader_of(measured).batch(0, 0, 3)


def test_groups_of_rows_share_their_slots(measured):
  shape = dataclasses.replace(SHAPE, tiles=48, groups=2)
  assert shape.row_tiles == SHAPE.row_tiles
  whole, wide = loader_of(measured).batch(2), loader_of(measured, shape=shape).batch(2)
  for name in ("ids", "positions", "segments", "loss_mask"):
    np.testing.assert_array_equal(whole[name], wide[name])
  parts = [loader_of(measured, shape=shape).batch(2, host, 2) for host in range(2)]
  assert_equal(joined(parts), wide)
  np.testing.assert_array_equal(whole["index"] < 0, wide["index"] < 0)
  for row in range(8):  # the index finds the same patches where they lie now
    shown = [
      batch["tiles"].reshape(groups, -1, 2, 14, 2, 14, 3).swapaxes(3, 4)[row * groups // 8]
      for batch, groups in ((whole, 8), (wide, 2))
    ]
    at = [batch["index"][row][batch["index"][row] >= 0] for batch in (whole, wide)]
    one, other = (
      group.reshape(-1, 14, 14, 3)[patches] for group, patches in zip(shown, at, strict=True)
    )
    np.testing.assert_array_equal(one, other)


def test_any_step_after_any_other(measured):
  loader, fresh = loader_of(measured), loader_of(measured)
  batches = {step: loader.batch(step) for step in (2, 3, 7, 8)}
  for step in (8, 2):
    assert_equal(fresh.batch(step), batches[step])
  for batch, expected in zip(fresh.dataset(2, start=7), (batches[s] for s in (7, 8)), strict=True):
    assert_equal(batch, expected)
  half = list(fresh.dataset(1, start=3, process_index=1, process_count=2))
  assert_equal(half[0], {k: v[len(v) // 2 :] for k, v in batches[3].items()})
  travelled = pickle.loads(pickle.dumps(fresh))  # as to a worker process
  assert_equal(travelled.batch(8), batches[8])
  other = loader_of(measured, seed=2).batch(2)
  assert not np.array_equal(other["ids"], batches[2]["ids"])


def test_a_far_step_is_the_samplers(measured):
  loader = loader_of(measured)
  rows = loader.packing.rows(1000 * SHAPE.rows, SHAPE.rows)
  found = examples_in(loader.batch(1000))
  expected = [example_at(measured, flat)[0].ids for row in rows for flat in loader._flat(row)]
  assert found == [tuple(ids.tolist()) for ids in expected]
  assert_equal(loader_of(measured).batch(1000), loader.batch(1000))  # now from the cache


def test_every_sample_is_seen_once_and_the_mixture_is_exact_by_block(measured):
  loader = loader_of(measured)
  steps = 7
  seen = [tuple(sorted(examples_in(loader.batch(step)))) for step in range(steps)]
  before, rest = loader.packing.samples(steps * SHAPE.rows)
  assert before and before % BLOCK == 0
  positions = np.concatenate([np.arange(before), rest])
  expected = [tuple(example_at(measured, flat)[0].ids.tolist()) for flat in loader._flat(positions)]
  assert sorted(example for batch in seen for example in batch) == sorted(expected)
  cell = loader._cell(loader._flat(np.arange(before)))
  share = np.bincount(cell, minlength=len(SIZES))
  wanted = before * np.array([WEIGHTS.get(name, 0) for name in measured.rows])
  assert np.abs(share - wanted).max() < 1


def test_counts_and_fill_are_what_the_batches_hold(measured):
  loader = loader_of(measured)
  steps = 5
  batches = [loader.batch(step) for step in range(steps)]
  counts = loader.counts(steps)
  assert list(counts) == list(measured.rows)
  total = {name: sum(count[name] for count in counts.values()) for name in counts["maps/vqa"]}
  assert total["realised"] == sum(len(examples_in(batch)) for batch in batches)
  assert total["realised"] == pytest.approx(total["requested"])
  assert total["tokens"] == sum(np.sum(batch["segments"] > 0) for batch in batches)
  assert total["loss_tokens"] == sum(np.sum(batch["loss_mask"]) for batch in batches)
  assert total["image_tokens"] == sum(np.sum(batch["index"] != -2) for batch in batches)
  assert total["replaced"] == 0
  assert counts["charts/vqa"]["realised"] == 0
  assert counts["talk/vqa"]["epochs"] == counts["talk/vqa"]["realised"] / 10
  assert counts["talk/vqa"]["image_tokens"] == 0
  fill = loader.fill(steps)
  assert fill["tokens"] == np.mean([batch["segments"] > 0 for batch in batches])
  assert fill["image_tokens"] == np.mean([batch["index"] != -2 for batch in batches])
  used = np.mean([batch["tiles"].any(axis=(2, 3, 4)) for batch in batches])
  assert fill["tiles"] == pytest.approx(used, abs=0.03)  # a tile of padding alone is black
  json.dumps(counts), json.dumps(fill)


def test_weights_may_change_during_a_run(measured):
  loader = loader_of(measured)
  before = {step: loader.batch(step) for step in (0, 3, 13)}
  start = loader.change(4, {"charts/ocr": 1.0})
  assert start % BLOCK == 0 and loader.packing.locate(4 * SHAPE.rows)[0] * BLOCK < start
  for step in (0, 3):
    assert_equal(loader.batch(step), before[step])
  cell = loader._cell(loader._flat(np.arange(start, start + 100)))
  assert set(cell) == {list(measured.rows).index("charts/ocr")}
  assert not np.array_equal(loader.batch(13)["ids"], before[13]["ids"])
  loader.packing.keep()
  again = PackedLoader(measured, loader.sampler.stages, 1, SHAPE, block=BLOCK)
  assert_equal(again.batch(13), loader.batch(13))
  assert again.counts(14) == loader.counts(14)
  assert_equal(loader_of(measured).batch(13), before[13])  # the old weights have their own cache


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_broken_records_change_no_proportion(share, measured, tokenizer, tmp_path):
  found = build(tmp_path, tokenizer, corpus(share))
  assert found.rows == measured.rows
  lines = [json.loads(line) for line in found.ledger.read_text().splitlines()]
  broken = {cell: round(share * size) if cell != "talk/vqa" else 0 for cell, size in SIZES.items()}
  bad = {cell: [line for line in lines if line["cell"] == cell] for cell in SIZES}
  assert {cell: len(rows) for cell, rows in bad.items()} == broken
  assert all(line["replaced_by_row"] is not None for line in lines)

  clean, loader = loader_of(measured), loader_of(found)
  steps = 6
  whole = loader.batch(steps - 1)
  for hosts in (2, 4):
    parts = [loader_of(found).batch(steps - 1, host, hosts) for host in range(hosts)]
    assert_equal(joined(parts), whole)
  for start in (0, 1000):  # the same positions fall on the same cells and rows
    for ours, theirs in zip(
      loader.sampler.rows(start, 300), clean.sampler.rows(start, 300), strict=True
    ):
      np.testing.assert_array_equal(ours, theirs)
  counts = loader.counts(steps)
  positions = np.concatenate([x for x in loader._positions(steps * SHAPE.rows)])
  flat = loader._flat(positions)
  rows = set(zip(loader._cell(flat).tolist(), flat.tolist(), strict=True))
  starts = dict(zip(found.rows, found.starts, strict=False))
  names = list(found.rows)
  for cell, replaced in bad.items():
    at = [starts[cell] + line["row"] for line in replaced]
    assert counts[cell]["replaced"] == np.isin(flat, at).sum()
    for line, where in zip(replaced, at, strict=True):
      if (names.index(cell), where) in rows:
        ids = example_at(found, where)[0].ids
        by = example_at(found, starts[cell] + line["replaced_by_row"])[0].ids
        np.testing.assert_array_equal(ids, by)
  assert not loader.failures.exists()


def test_a_record_that_fails_when_it_is_loaded_is_replaced_in_its_cell(tokenizer, tmp_path):
  """Truncated pictures that a scan without decoding did not find."""
  whole = odd_pictures.encoded(odd_pictures.picture((200, 160)), "JPEG", quality=95)

  def damaged():
    for example in corpus():
      if example.key in ("maps/caption-3", "maps/caption-4", "maps/vqa-29"):
        example = dataclasses.replace(example, images=(whole[: len(whole) // 3],))
      yield example

  found = build(tmp_path, tokenizer, damaged(), decode=False)
  assert not found.ledger.read_text()
  steps = 9
  loader = loader_of(found)
  batches = [loader.batch(step) for step in range(steps)]
  lines = [json.loads(line) for line in loader.failures.read_text().splitlines()]
  assert {(line["cell"], line["row"]) for line in lines} == {
    ("maps/caption", 3),
    ("maps/caption", 4),
    ("maps/vqa", 29),
  }
  starts = dict(zip(found.rows, found.starts, strict=False))
  for line in lines:
    assert "truncated" in line["reason"]
    at, by = (starts[line["cell"]] + line[name] for name in ("row", "replaced_by_row"))
    assert np.all(found.table[by, :3] <= found.table[at, :3])  # it fits in the place of the other
    ids = tuple(example_at(found, by)[0].ids.tolist())
    assert sum(ids in examples_in(batch) for batch in batches) >= 1
  step = next(step for step, batch in enumerate(batches) if ids in examples_in(batch))
  parts = [loader_of(found).batch(step, host, 4) for host in range(4)]
  assert_equal(joined(parts), batches[step])
  one = {line["row"]: line["replaced_by_row"] for line in lines if "caption" in line["cell"]}
  assert not {3, 4} & set(one.values())


def test_too_many_failures_stop_the_run(tokenizer, tmp_path, monkeypatch):
  found = build(tmp_path, tokenizer, corpus())
  loader = loader_of(found)
  read = pixels.read

  def failing(encoded, limits):
    if hash(encoded) % 2:
      raise pixels.BadPicture("unreadable", "damaged")
    return read(encoded, limits)

  monkeypatch.setattr(pixels, "read", failing)
  with pytest.raises(ValueError, match=r"17 of \d+ records failed when they were loaded"):
    for step in range(20):
      loader.batch(step)
  assert len(loader.failures.read_text().splitlines()) == 17


def test_where_nothing_can_stand_in_the_place_stays_empty(tokenizer, tmp_path, monkeypatch):
  found = build(tmp_path, tokenizer, [e for e in corpus() if e.key == "maps/vqa-1"])
  monkeypatch.setattr(
    pixels, "read", lambda *_: (_ for _ in ()).throw(pixels.BadPicture("unreadable", "damaged"))
  )
  loader = PackedLoader(found, {"maps/vqa": 1.0}, 0, SHAPE)
  batch = loader.batch(0)
  assert not batch["segments"].any() and not batch["tiles"].any()
  (line,) = loader.failures.read_text().splitlines()
  assert json.loads(line)["replaced_by_row"] is None


def test_cells_that_have_changed_are_noticed(measured):
  changed = np.array(measured.table)
  changed[:, TOKENS] -= 1
  loader = loader_of(dataclasses.replace(measured, table=changed, fingerprint="other"))
  with pytest.raises(ValueError, match="the cells have changed; measure them again"):
    loader.batch(0)


def test_lengths_of_another_shape_are_refused(measured):
  for change in ({"length": 100}, {"image_tokens": 32}, {"tiles": 11}, {"side": 14}):
    with pytest.raises(ValueError, match="measure them for this shape"):
      loader_of(measured, shape=dataclasses.replace(SHAPE, **change))


def test_a_packed_row_is_its_examples_alone(measured):
  """Hidden states of each example, packed and by itself, pictures included."""
  text = dataclasses.replace(tiny.TEXT, hidden_size=32, intermediate_size=64, num_hidden_layers=2)
  image = measured.encoder.tokenizer.convert_tokens_to_ids("<image>")
  config = LlavaNextConfig(text, tiny.VISION, image, pinpoints=GEOMETRY.pinpoints)
  assert config.anyres == GEOMETRY
  rng = np.random.default_rng(0)
  model = jax.tree.map(  # compiling the true initialisation would take most of the test's time
    lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype),
    jax.eval_shape(lambda: LlavaNext(config, rngs=nnx.Rngs(0), tower=False)),
  )
  tower = rng.normal(size=(14 * 14 * 3, 32)) / 255  # stands in for CLIP's

  @jax.jit
  def hidden(model, batch):
    patches = batch["tiles"].reshape(8, -1, 2, 14, 2, 14, 3).swapaxes(3, 4)
    features = patches.reshape(8, SHAPE.tiles, 4, -1) @ jnp.asarray(tower, jnp.float32)
    x = model.embed(batch["ids"], Tiles(features, batch["index"]))
    return model.text(x, batch["positions"], None, batch["segments"])

  loader = loader_of(measured)
  batch = loader.batch(0)
  packed = np.asarray(hidden(model, {k: jnp.asarray(v) for k, v in batch.items()}))
  segments = batch["segments"]
  assert segments.max() > 1
  examples = [
    (packed[row, segments[row] == segment], *example_at(measured, flat))
    for row, positions in enumerate(loader.packing.rows(0, 8))
    for segment, flat in enumerate(loader._flat(positions), start=1)
  ]
  for start in range(0, len(examples), 8):  # each by itself, in a row of its own
    group = examples[start : start + 8]
    group += group[:1] * (8 - len(group))
    ends = [SHAPE.length - len(said.ids) for _, said, _ in group]
    alone = {
      "ids": np.stack([np.pad(x[1].ids, (0, e)) for x, e in zip(group, ends, strict=True)]),
      "positions": np.tile(np.arange(SHAPE.length), (8, 1)),
      "segments": np.stack([np.arange(SHAPE.length) < len(x[1].ids) for x in group]),
      "tiles": tiles.stack(
        [[tiles.cut(image, GEOMETRY) for image in images] for _, _, images in group],
        batch["tiles"].shape,
      ),
      "index": GEOMETRY.index([said.sizes for _, said, _ in group], SHAPE.image_tokens, 8),
    }
    alone = {k: jnp.asarray(v.astype(batch[k].dtype)) for k, v in alone.items()}
    alone["loss_mask"] = jnp.asarray(batch["loss_mask"])
    states = np.asarray(hidden(model, alone))
    for row, (together, said, _) in enumerate(group):
      np.testing.assert_allclose(together, states[row, : len(said.ids)], rtol=0, atol=1e-5)


@pytest.mark.slow  # each process imports jax's data stack
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_make_the_same_batches(workers, measured):
  if not flags.FLAGS.is_parsed():
    flags.FLAGS(["test"])
  loader = loader_of(measured)
  batches = list(loader.dataset(6, start=2, workers=workers))
  assert len(batches) == 6
  for step, batch in enumerate(batches, start=2):
    assert_equal(batch, loader.batch(step))
