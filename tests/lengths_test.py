"""Lengths of all rows: found once, kept, and the broken records found on the way."""

import json

import numpy as np
import odd_pictures
import pytest

from mixjax.atlas import shards
from mixjax.corpus.example import Example, Turn
from mixjax.data import encode, measuring
from mixjax.data.conversation import ConversationEncoder
from mixjax.data.lengths import SOURCE, TOKENS, measure_cells
from mixjax.models.anyres import Anyres

GEOMETRY = Anyres(tile=28, patch=7, pinpoints=((28, 56), (56, 28), (56, 56)))
PNG = odd_pictures.encoded(odd_pictures.picture())
TEXTS = ["What is shown here?", "a red bus near the park", "And now?"]


def row(cell, i, image=PNG, answer="a red bus", prompt="What is shown?"):
  keys, images = ((f"{cell}-{i}.png",), (image,)) if image is not None else ((), ())
  return Example(f"{cell}-{i}", cell.split("/")[1], (Turn(prompt, answer),), keys, images)


def corpus():
  """Good rows but for one cell, where every broken kind is followed by a row that is good."""
  for i in range(6):
    yield row("maps/vqa", i, answer="bus " * (i + 1))
  for i in range(4):
    yield row("maps/ocr", i, image=None, answer="park " * (40 * i + 1))
  broken = [dict(image=image) for image in odd_pictures.BROKEN.values()]
  broken += [dict(answer=" "), dict(answer="at [0.1, nan, 0.3, 0.4]"), dict(prompt=b"What \xff?")]
  readable = [dict(image=image) for image in odd_pictures.READABLE.values()]
  good = [*readable, *[{}] * (len(broken) - len(readable))]
  for i, (bad, kept) in enumerate(zip(broken, good, strict=True)):
    yield row("charts/vqa", 2 * i, **bad)
    yield row("charts/vqa", 2 * i + 1, **kept)


BAD_ROWS = range(0, 20, 2)
SHARES = {"max_bad": 0.5}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
  tokenizer = encode.train_tokenizer(TEXTS, 320, tmp_path_factory.mktemp("tokenizer"))
  return ConversationEncoder(tokenizer, GEOMETRY, 120, 100, 5)


def concept_of(example):
  return example.key.split("/")[0]


def write(examples, folder):
  shards.write_cells(examples, concept_of, folder)
  return shards.open_cells(folder)


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
  return write(corpus(), tmp_path_factory.mktemp("corpus") / "cells")


@pytest.fixture(scope="module")
def measured(cells, encoder, tmp_path_factory):
  return measure_cells(cells, encoder, tmp_path_factory.mktemp("lengths"), **SHARES)


def lines_of(found):
  return [json.loads(line) for line in found.ledger.read_text().splitlines()]


def table_of(found, cell):
  at = list(found.rows).index(cell)
  return np.asarray(found.table[found.starts[at] : found.starts[at + 1]])


def test_lengths_are_the_encoders(measured, cells, encoder):
  for cell in ("maps/vqa", "maps/ocr"):
    for length, example in zip(table_of(measured, cell), cells[cell], strict=True):
      sizes = [(40, 30)] * len(example.images)
      found = encoder.encode(example, sizes)
      image_tokens = sum(map(GEOMETRY.num_tokens, sizes))
      tiles = sum(map(GEOMETRY.num_tiles, sizes))
      wanted = (len(found.ids), image_tokens, tiles, found.loss_mask.sum())
      assert tuple(length[:SOURCE]) == wanted
      assert image_tokens == np.sum(found.ids == encoder.tokenizer.convert_tokens_to_ids("<image>"))
    np.testing.assert_array_equal(table_of(measured, cell)[:, SOURCE], range(len(cells[cell])))


def test_every_broken_record_is_replaced_by_the_next_good_one(measured):
  table = table_of(measured, "charts/vqa")
  lines = [line for line in lines_of(measured) if "replaced_by" in line]
  assert [line["row"] for line in lines] == list(BAD_ROWS)
  for line in lines:
    bad, by = line["row"], line["row"] + 1
    assert (line["replaced_by_row"], line["replaced_by"]) == (by, f"charts/vqa-{by}")
    assert line["cell"] == "charts/vqa"
    np.testing.assert_array_equal(table[bad], table[by])
  reasons = " | ".join(line["reason"] for line in lines)
  for word in (
    "zero bytes",
    "truncated",
    "too many pixels",
    "aspect",
    "empty answer",
    "finite",
    "bad UTF-8",
  ):
    assert word in reasons
  assert measured.report["charts/vqa"] == {"rows": 20, "replaced": 10, "shortened": 0}
  assert np.all(table[:, TOKENS] > 0)
  assert [line["key"] for line in lines][:9] == [f"charts/vqa-{row}" for row in BAD_ROWS[:9]]
  assert lines[9]["key"] == ""  # the record cannot be read at all


def test_without_decoding_only_headers_are_judged(cells, encoder, tmp_path):
  found = measure_cells(cells, encoder, tmp_path, decode=False, **SHARES)
  bad = [line["row"] for line in lines_of(found) if "replaced_by" in line]
  assert bad == [row for row in BAD_ROWS if row not in (4, 12)]  # truncated; floating-point


def test_shortened_conversations_are_entered(cells, encoder, tmp_path):
  tight = ConversationEncoder(encoder.tokenizer, GEOMETRY, 100, 100, 5)
  found = measure_cells(cells, tight, tmp_path, **SHARES)
  lines = {line["key"]: line for line in lines_of(found) if line["reason"] == "shortened"}
  long = [i for i in range(4) if table_of(found, "maps/ocr")[i, TOKENS] == 100]
  assert long and {key for key in lines if "ocr" in key} == {f"maps/ocr-{i}" for i in long}
  assert all(line["tokens_cut"] > 0 for line in lines.values())


def test_a_second_time_nothing_is_read(cells, encoder, measured, monkeypatch):
  monkeypatch.setattr(measuring, "measure_rows", lambda *args: pytest.fail("measured again"))
  again = measure_cells(cells, encoder, measured.folder, **SHARES)
  assert again.fingerprint == measured.fingerprint
  np.testing.assert_array_equal(again.table, measured.table)


def test_only_what_is_new_is_measured(encoder, measured, tmp_path, monkeypatch):
  """A cell is added, after a scan of some cells that was killed."""
  cells = write([*corpus(), row("plans/vqa", 0)], tmp_path / "cells")
  seen = []
  measure = measuring.measure_rows

  def spy(*args):
    seen.append(args[-1][0])
    if args[-1][0] == "charts/vqa" and len(seen) < 5:
      raise KeyboardInterrupt
    return measure(*args)

  monkeypatch.setattr(measuring, "measure_rows", spy)
  with pytest.raises(KeyboardInterrupt):
    measure_cells(cells, encoder, tmp_path / "lengths", **SHARES)
  assert not (tmp_path / "lengths" / "index.json").exists()
  done = set(seen) - {"charts/vqa"}
  seen += [""] * 5
  found = measure_cells(cells, encoder, tmp_path / "lengths", **SHARES)
  assert done and not done & set(seen[seen.index("") :])
  np.testing.assert_array_equal(table_of(found, "charts/vqa"), table_of(measured, "charts/vqa"))
  assert len(found.table) == len(measured.table) + 1 and found.fingerprint != measured.fingerprint


def test_a_source_that_is_added_is_all_that_is_measured(encoder, measured, tmp_path, monkeypatch):
  write(corpus(), tmp_path / "cells")
  first = measure_cells(shards.open_cells(tmp_path / "cells"), encoder, tmp_path / "to", **SHARES)
  more = [row("charts/vqa", 20, image=b""), row("charts/vqa", 21), row("maps/ocr", 4, image=None)]
  shards.write_cells(more, concept_of, tmp_path / "cells", source="more")
  seen, measure = [], measuring.measure_rows
  monkeypatch.setattr(
    measuring, "measure_rows", lambda *args: seen.append(args[-1]) or measure(*args)
  )
  found = measure_cells(shards.open_cells(tmp_path / "cells"), encoder, tmp_path / "to", **SHARES)
  assert sorted(seen) == [("charts/vqa", 20, 22), ("maps/ocr", 4, 5)]
  for cell in ("maps/vqa", "maps/ocr", "charts/vqa"):
    np.testing.assert_array_equal(
      table_of(found, cell)[: first.rows[cell]], table_of(measured, cell)
    )
  added = next(line for line in lines_of(found) if line["row"] == 20)
  assert added["key"] == "charts/vqa-20" and added["replaced_by"] == "charts/vqa-21"
  assert table_of(found, "charts/vqa")[20, SOURCE] == 21


def test_too_many_bad_records_stop_the_run(cells, encoder, tmp_path):
  with pytest.raises(ValueError, match=r"10 of 30 records cannot be used \(.*over a share of 0.05"):
    measure_cells(cells, encoder, tmp_path)
  with pytest.raises(ValueError, match=r"'charts/vqa': 10 of its 20 .* raise max_bad_of_cell"):
    measure_cells(cells, encoder, tmp_path, max_bad=0.5, max_bad_of_cell=0.4)
  (ledger,) = tmp_path.glob("ledger-*")
  assert ledger.read_text().count("replaced_by_row") == 10  # to see what is wrong
  measure_cells(cells, encoder, tmp_path, **SHARES)


def test_a_cell_of_bad_records_only_is_an_error(encoder, tmp_path):
  bad = [row("maps/ocr", 0, image=b""), row("maps/ocr", 1, answer=" ")]
  cells = write([row("maps/vqa", 0), *bad], tmp_path / "cells")
  for _ in range(2):
    with pytest.raises(ValueError, match=r"'maps/ocr': none of its 2 records .*/ledger-\w+\.jsonl"):
      measure_cells(cells, encoder, tmp_path / "lengths", max_bad=1.0, max_bad_of_cell=1.0)
    (ledger,) = (tmp_path / "lengths").glob("ledger-*")  # to see what is wrong
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert [line["key"] for line in lines] == ["maps/ocr-0", "maps/ocr-1"]
    assert all(line["reason"] and line["replaced_by"] is None for line in lines)
    assert not (tmp_path / "lengths" / "index.json").exists()


@pytest.mark.slow  # each process imports transformers
def test_workers_find_the_same(cells, encoder, measured, tmp_path, monkeypatch):
  monkeypatch.setattr(measuring, "_CHUNK", 3)
  found = measure_cells(cells, encoder, tmp_path, workers=2, **SHARES)
  np.testing.assert_array_equal(found.table, measured.table)
  assert found.ledger.read_bytes() == measured.ledger.read_bytes()
