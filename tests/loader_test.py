"""Encoded cells, and batches that are pure functions of (weights, cells, seed, step)."""

import json

import numpy as np
import pytest

from mixjax.atlas import shards
from mixjax.corpus.example import Example, Turn
from mixjax.data import encode
from mixjax.data.loader import EncodedCells, Loader, encode_cells

P = 4
IMAGES = {f"image{i}": i for i in range(12)}
SIZES = {"maps/caption": 5, "maps/vqa": 9, "charts/vqa": 12}
WEIGHTS = {"maps/caption": 0.5, "maps/vqa": 0.2, "charts/vqa": 0.3}


def corpus():
  for cell, size in SIZES.items():
    task = cell.split("/")[1]
    for i in range(size):
      yield Example.single(f"{cell}-{i}", f"image{i}", b"png", task, "What?", f"{cell} {'x' * i}")


def concept_of(example):
  return example.key.split("/")[0]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
  texts = [f"What? {example.answer}" for example in corpus()]
  tokenizer = encode.train_tokenizer(texts, 320, tmp_path_factory.mktemp("tokenizer"))
  return encode.Encoder(tokenizer, image_tokens=P, text_length=48)


FEATURES = np.arange(12 * P * 3, dtype=np.float16).reshape(12, P, 3)


def build(folder, encoder, examples=None, **options):
  examples = corpus() if examples is None else examples
  shards.write_cells(examples, concept_of, folder / "cells")
  cells = shards.open_cells(folder / "cells")
  options = {"features": FEATURES, "image_index": IMAGES} | options
  return encode_cells(cells, encoder, folder=folder / "encoded", **options)


@pytest.fixture(scope="module")
def encoded(encoder, tmp_path_factory):
  return build(tmp_path_factory.mktemp("corpus"), encoder)


def assert_equal(one, other):
  assert one.keys() == other.keys()
  for name in one:
    np.testing.assert_array_equal(one[name], other[name], strict=True)


def test_a_batch_holds_the_rows_the_sampler_names(encoded, encoder):
  loader = Loader(encoded, WEIGHTS, seed=1, batch_size=8)
  names = list(encoded.rows)
  for step in (0, 3, 1000):
    batch = loader.batch(step)
    cells, rows = loader.sampler.rows(step * 8, 8)
    np.testing.assert_array_equal(batch["cell"], cells)
    for i in range(8):
      name = names[cells[i]]
      row = encoder.encode("What?", f"{name} {'x' * rows[i]}")
      for part in ("ids", "mask", "loss_mask"):
        np.testing.assert_array_equal(batch[part][i], row[part], strict=True)
      np.testing.assert_array_equal(batch["features"][i], FEATURES[rows[i]])
    assert batch["features"].dtype == np.float32
    assert batch["cell"].dtype == np.int32


def test_hosts_read_slices_of_one_global_batch(encoded):
  whole = Loader(encoded, WEIGHTS, seed=1, batch_size=8).batch(5)
  for hosts in (1, 2, 4, 8):
    parts = [Loader(encoded, WEIGHTS, 1, 8).batch(5, host, hosts) for host in range(hosts)]
    assert_equal({k: np.concatenate([p[k] for p in parts]) for k in whole}, whole)
  with pytest.raises(ValueError, match="8 is no multiple of 3"):
    Loader(encoded, WEIGHTS, 1, 8).batch(0, 0, 3)


def test_the_dataset_resumes_at_any_step(encoded):
  loader = Loader(encoded, WEIGHTS, seed=2, batch_size=4)
  whole = list(loader.dataset(10))
  assert len(whole) == 10
  for step, batch in enumerate(whole):
    assert_equal(batch, loader.batch(step))
  for batch, expected in zip(loader.dataset(4, start=6), whole[6:], strict=True):
    assert_equal(batch, expected)
  half = list(loader.dataset(2, start=3, process_index=1, process_count=2))
  assert_equal(half[0], {k: v[2:] for k, v in whole[3].items()})


def test_the_iterators_state_is_one_integer(encoded):
  loader = Loader(encoded, WEIGHTS, seed=2, batch_size=4)
  iterator = iter(loader.dataset(10))
  for _ in range(3):
    next(iterator)
  state = iterator.get_state()
  assert list(state.values()) == [3]
  resumed = iter(Loader(encoded, WEIGHTS, seed=2, batch_size=4).dataset(10))
  resumed.set_state(state)
  assert_equal(next(resumed), loader.batch(3))


def test_counts_are_what_the_batches_hold(encoded):
  loader = Loader(encoded, WEIGHTS, seed=3, batch_size=7)
  batches = [loader.batch(step) for step in range(11)]
  cells = np.concatenate([b["cell"] for b in batches])
  tokens = np.concatenate([b["loss_mask"].sum(axis=1) for b in batches])
  counts = loader.counts(11)
  assert list(counts) == list(encoded.rows)
  for i, (name, count) in enumerate(counts.items()):
    assert count["realised"] == np.sum(cells == i)
    assert count["loss_tokens"] == tokens[cells == i].sum()
    assert abs(count["realised"] - count["requested"]) < 1
    assert count["requested"] == pytest.approx(77 * WEIGHTS.get(name, 0))
    assert count["epochs"] == count["realised"] / SIZES.get(name, 1)
  assert counts["charts/ocr"] == {"requested": 0, "realised": 0, "epochs": 0, "loss_tokens": 0}
  json.dumps(counts)


def test_blind_batches_differ_in_features_alone(encoded):
  seen = Loader(encoded, WEIGHTS, 1, 8).batch(0)
  blind = Loader(encoded, WEIGHTS, 1, 8, blind=True).batch(0)
  assert not blind.pop("features").any()
  assert seen.pop("features").any()
  assert_equal(blind, seen)


def test_bad_records_are_replaced_in_place_and_entered_in_the_ledger(encoder, encoded, tmp_path):
  def damaged():
    for example in corpus():
      if example.key == "maps/vqa-8":
        yield Example.single(example.key, "image8", b"png", "vqa", "What?", " ")
      else:
        yield example

  index = {key: i for key, i in IMAGES.items() if key != "image3"}
  found = build(tmp_path, encoder, damaged(), image_index=index, bad={"image4"})
  lines = [json.loads(x) for x in (tmp_path / "encoded" / "ledger.jsonl").read_text().splitlines()]
  replaced = {(x["key"], x["reason"], x["replaced_by"]) for x in lines}
  assert replaced == {
    ("maps/caption-3", "no features", "maps/caption-0"),  # goes round
    ("maps/caption-4", "bad image", "maps/caption-0"),
    ("maps/vqa-3", "no features", "maps/vqa-5"),
    ("maps/vqa-4", "bad image", "maps/vqa-5"),
    ("maps/vqa-8", "empty answer", "maps/vqa-0"),
    ("charts/vqa-3", "no features", "charts/vqa-5"),
    ("charts/vqa-4", "bad image", "charts/vqa-5"),
  }
  assert found.rows == encoded.rows
  starts = dict(zip(found.rows, found.starts, strict=False))
  good = np.ones(len(found.ids), bool)
  for line in lines:
    row, by = starts[line["cell"]] + line["row"], starts[line["cell"]] + line["replaced_by_row"]
    np.testing.assert_array_equal(found.ids[row], encoded.ids[by])
    assert found.image[row] == encoded.image[by]
    good[row] = False
  np.testing.assert_array_equal(found.ids[good], encoded.ids[good])
  assert found.report["maps/vqa"]["replaced"] == 3


def test_bad_may_be_a_function_that_sees_the_image(encoder, tmp_path):
  found = build(tmp_path, encoder, bad=lambda e: e.image == b"png" and e.key == "maps/vqa-0")
  assert found.report["maps/vqa"]["replaced"] == 1
  assert found.report["maps/caption"]["replaced"] == 0


def test_a_cell_of_bad_records_only_is_an_error(encoder, tmp_path):
  with pytest.raises(ValueError, match="'maps/caption': none of its 5 records"):
    build(tmp_path, encoder, image_index={"image11": 0, "image7": 1})
  assert not (tmp_path / "encoded").exists()
  assert not list(tmp_path.glob(".encoded*"))


def test_rows_without_an_image_get_no_features(encoder, tmp_path):
  rows = [
    Example.single("maps/0", "", b"", "vqa", "What?", "maps"),
    Example.single("maps/1", "image1", b"png", "vqa", "What?", "maps"),
  ]
  batch = Loader(build(tmp_path, encoder, rows), {"maps/vqa": 1.0}, 0, 2).batch(0)
  text = np.flatnonzero(~np.any(batch["ids"] == encoder.image_id, axis=1))
  assert len(text) == 1
  assert not batch["features"][text].any()
  np.testing.assert_array_equal(batch["features"][1 - text[0]], FEATURES[1])


def test_truncated_answers_are_counted(encoder, tmp_path):
  answers = ["z", "x y " * 60]
  rows = [
    Example.single(f"maps/{i}", "image0", b"", "vqa", "What?", answer)
    for i, answer in enumerate(answers)
  ]
  with pytest.raises(ValueError, match="'maps/1' has"):
    build(tmp_path / "strict", encoder, rows)
  cutting = encode.Encoder(encoder.tokenizer, P, 48, truncate=True)
  assert build(tmp_path / "cutting", cutting, rows).report["maps/vqa"]["truncated"] == 1


def test_mapped_features_are_referred_to_and_others_kept(encoder, tmp_path):
  np.save(tmp_path / "features.npy", FEATURES)
  mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
  for name, features, copied in (
    ("mapped", mapped, False),
    ("memory", FEATURES, True),
    ("part", mapped[::-1], True),
  ):
    (tmp_path / name).mkdir()
    build(tmp_path / name, encoder, features=features)
    loaded = EncodedCells.load(tmp_path / name / "encoded")
    np.testing.assert_array_equal(loaded.features, features)
    assert (tmp_path / name / "encoded" / "features.npy").exists() == copied
  with pytest.raises(ValueError, match="features of 12 images, not of 3"):
    EncodedCells.load(tmp_path / "memory" / "encoded", features=FEATURES[:3])


def test_encoding_twice_gives_the_same_bytes(encoder, tmp_path):
  for name in "ab":
    (tmp_path / name).mkdir()
    build(tmp_path / name, encoder)
  for path in (tmp_path / "a" / "encoded").iterdir():
    assert path.read_bytes() == (tmp_path / "b" / "encoded" / path.name).read_bytes(), path.name


def test_rows_of_a_users_corpus_that_do_not_fit_are_bad_and_their_cell_may_be_empty(
  encoder, tmp_path
):
  cutting = encode.Encoder(encoder.tokenizer, P, 48, truncate=True)
  second = Example(
    "maps/second",
    "vqa",
    (Turn("What?", "a"), Turn("And\n<image>?", "b")),
    image_keys=("image1",),
    images=(b"png",),
  )
  rows = [
    Example.single("charts/long", "image0", b"", "caption", "What? " * 60, "a"),
    Example.single("maps/long", "image0", b"", "vqa", "What? " * 60, "a"),
    Example.single("maps/frame", "", b"", "vqa", "What?", "a <|endoftext|> b"),
    second,
  ]
  found = build(tmp_path, cutting, rows)
  assert found.rows["charts/caption"] == 0
  assert found.rows["maps/vqa"] == 3
  lines = [json.loads(x) for x in (tmp_path / "encoded" / "ledger.jsonl").read_text().splitlines()]
  by = {line["key"]: line["replaced_by"] for line in lines}
  assert by == {"charts/long": None, "maps/long": "maps/second", "maps/frame": "maps/second"}
  ids = Loader(found, {"maps/vqa": 1.0}, 0, 3).batch(0)["ids"]
  assert (ids == ids[0]).all()
  assert (ids[0] == encoder.image_id).sum() == P
  with pytest.raises(ValueError, match="none of the 1 records can be used"):
    build(tmp_path / "none", cutting, rows[:1])
