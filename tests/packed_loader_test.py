"""Packed batches from pixels: pure functions of the step, on any hosts."""

import dataclasses
import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from absl import flags
from flax import nnx
from packed_corpus import (
  BLOCK,
  GEOMETRY,
  SHAPE,
  SIZES,
  WEIGHTS,
  assert_equal,
  build,
  corpus,
  example_at,
  examples_in,
  joined,
  loader_of,
  train_tokenizer,
)

from mixjax.data import tiles
from mixjax.data.packed_loader import PackedLoader
from mixjax.models.llava_next import LlavaNext, LlavaNextConfig, Tiles


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  return train_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def measured(tokenizer, tmp_path_factory):
  return build(tmp_path_factory.mktemp("good"), tokenizer, corpus())


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
  cell = measured.cell_of(loader._flat(np.arange(before)))
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
  cell = measured.cell_of(loader._flat(np.arange(start, start + 100)))
  assert set(cell) == {list(measured.rows).index("charts/ocr")}
  assert not np.array_equal(loader.batch(13)["ids"], before[13]["ids"])
  loader.packing.keep()
  again = PackedLoader(measured, loader.sampler.stages, 1, SHAPE, block=BLOCK)
  assert_equal(again.batch(13), loader.batch(13))
  assert again.counts(14) == loader.counts(14)
  assert_equal(loader_of(measured).batch(13), before[13])  # the old weights have their own cache


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
