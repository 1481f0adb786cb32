"""Broken records in packed batches: replaced in their own cells, entered, and never too many."""

import dataclasses
import json

import numpy as np
import odd_pictures
import pytest
from packed_corpus import (
  SHAPE,
  SIZES,
  assert_equal,
  build,
  corpus,
  example_at,
  examples_in,
  joined,
  loader_of,
  train_tokenizer,
)

from mixjax.corpus import pixels
from mixjax.data.lengths import TOKENS
from mixjax.data.packed_loader import PackedLoader


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  return train_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def measured(tokenizer, tmp_path_factory):
  return build(tmp_path_factory.mktemp("good"), tokenizer, corpus())


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
  rows = set(zip(measured.cell_of(flat).tolist(), flat.tolist(), strict=True))
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
  assert not loader.records.failures.exists()


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
  lines = [json.loads(line) for line in loader.records.failures.read_text().splitlines()]
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
  assert len(loader.records.failures.read_text().splitlines()) == 17


def test_where_nothing_can_stand_in_the_place_stays_empty(tokenizer, tmp_path, monkeypatch):
  found = build(tmp_path, tokenizer, [e for e in corpus() if e.key == "maps/vqa-1"])
  monkeypatch.setattr(
    pixels, "read", lambda *_: (_ for _ in ()).throw(pixels.BadPicture("unreadable", "damaged"))
  )
  loader = PackedLoader(found, {"maps/vqa": 1.0}, 0, SHAPE)
  batch = loader.batch(0)
  assert not batch["segments"].any() and not batch["tiles"].any()
  (line,) = loader.records.failures.read_text().splitlines()
  assert json.loads(line)["replaced_by_row"] is None


def test_cells_that_have_changed_are_noticed(measured):
  changed = np.array(measured.table)
  changed[:, TOKENS] -= 1
  loader = loader_of(dataclasses.replace(measured, table=changed, fingerprint="other"))
  with pytest.raises(ValueError, match="the cells have changed; measure them again"):
    loader.batch(0)
