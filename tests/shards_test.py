"""Cells written to disk: what TFDS reads back, checksums, and folders that are whole or absent."""

import io
import json
import os
import pathlib
import resource
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from PIL import Image

from mixjax.atlas import cell_files, shards
from mixjax.corpus import tasks
from mixjax.corpus.example import Example, Turn


def png(seed: int, size: int = 8) -> bytes:
  pixels = np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8)
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, "PNG")
  return buffer.getvalue()


CONCEPTS = {f"image{i}": ("chart-bars", "3d-maps")[i % 2] for i in range(6)}


def corpus():
  for i, image_key in enumerate(CONCEPTS):
    for task in ("caption", "vqa"):
      answer = f"number {i} " * (i + 1)
      key = f"{image_key}-{task}"
      yield Example.single(key, image_key, png(i), task, "What is é here?", answer, "charts")


def test_rows_come_back_as_they_were_written(tmp_path):
  manifest = shards.write_cells(corpus(), CONCEPTS, tmp_path / "cells")
  cells = shards.open_cells(tmp_path / "cells")
  expected = {}
  for example in corpus():
    expected.setdefault(f"{CONCEPTS[example.image_key]}/{example.task}", []).append(example)
  for cell, examples in expected.items():
    assert list(cells[cell]) == examples
    assert cells[cell][-1] == examples[-1]
  assert manifest["rows"] == sum(map(len, expected.values()))
  assert cells.rows == {
    f"{concept}/{task}": len(expected.get(f"{concept}/{task}", []))
    for concept in ("chart-bars", "3d-maps")
    for task in tasks.TASKS
  }
  with pytest.raises(IndexError, match="row 3 of 3"):
    cells["chart-bars/caption"][3]
  assert list(cells["chart-bars/ocr"]) == []


def test_more_cells_than_files_may_be_open_are_written_and_read_the_same(tmp_path, monkeypatch):
  """Rows of many cells come in turn; the system allows few files more than are open already.

  Every cell has a file of each source: of three rows, of one and of two.
  """
  rows = [
    Example.single(f"{i}", f"image{i}", png(0), "vqa", "What?", f"answer {i} {time}", "charts")
    for time in range(6)
    for i in range(40)
  ]
  sources = {"": rows[:120], "web": rows[120:160], "more": rows[160:]}
  concepts = {f"image{i}": f"c{i:03}" for i in range(40)}

  def write(folder):
    for source, part in sources.items():
      shards.write_cells(part, concepts, folder, token_count=len, source=source)
    return shards.open_cells(folder)

  free = write(tmp_path / "free").manifest
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  used = len(os.listdir("/proc/self/fd"))
  monkeypatch.setattr(cell_files, "most_open", lambda part: 10)
  resource.setrlimit(resource.RLIMIT_NOFILE, (used + 25, hard))
  try:
    cells = write(tmp_path / "few")
    found = [list(cells[f"c{i:03}/vqa"]) for i in range(40)]
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
  assert found == [rows[i::40] for i in range(40)]
  assert cells.manifest == free  # the same bytes, file by file
  assert not [path for path in tmp_path.rglob("*") if path.name.startswith(("tmp", "."))]


def test_the_limit_of_open_files_is_shared_out():
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
  try:
    assert cell_files.most_open(1 / 4) == 128
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_plain_tfds_reads_a_cell(tmp_path):
  manifest = shards.write_cells(corpus(), CONCEPTS, tmp_path / "cells")
  assert manifest["cells"]["3d-maps/vqa"]["folder"] == "c_3d_maps/vqa"
  source = tfds.data_source("c_3d_maps/vqa", data_dir=tmp_path / "cells", split="train")
  assert [row["key"] for row in source] == [b"image1-vqa", b"image3-vqa", b"image5-vqa"]
  pixels = np.asarray(Image.open(io.BytesIO(png(3))))
  np.testing.assert_array_equal(source[1]["images"][0], pixels)


def test_equal_rows_give_equal_bytes(tmp_path):
  first = shards.write_cells(corpus(), CONCEPTS, tmp_path / "a", token_count=len)
  second = shards.write_cells(corpus(), CONCEPTS, tmp_path / "b", token_count=len)
  assert first == second
  files = [sorted(p.relative_to(d) for p in d.rglob("*")) for d in (tmp_path / "a", tmp_path / "b")]
  assert files[0] == files[1]
  for path in files[0]:
    if (tmp_path / "a" / path).is_file():
      assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()


def test_a_record_has_its_fields_in_one_order(tmp_path):
  """In which protobuf leaves them differs from process to process."""
  shards.write_cells(corpus(), CONCEPTS, tmp_path / "cells")
  (path,) = (tmp_path / "cells" / "c_3d_maps" / "vqa").rglob("*array_record*")
  record = ArrayRecordDataSource([str(path)])[0]
  names = sorted(["domain", "image_keys", "images", "key", "label", "task"])
  places = [record.index(b"\n" + bytes([len(name)]) + name.encode()) for name in names]
  assert places == sorted(places)


def test_manifest_counts_tokens(tmp_path):
  manifest = shards.write_cells(
    corpus(), CONCEPTS, tmp_path / "cells", token_count=lambda text: len(text.split())
  )
  cell = manifest["cells"]["chart-bars/caption"]  # images 0, 2, 4: 2, 6 and 10 words
  assert cell["answer_tokens"] == {"mean": 6.0, "max": 10}
  assert cell["prompt_tokens"] == {"mean": 4.0, "max": 4}


def test_declared_concepts_are_listed_and_names_do_not_clash(tmp_path):
  manifest = shards.write_cells(
    corpus(), CONCEPTS, tmp_path / "cells", concepts=["chart_bars", "chart-bars", "3d-maps"]
  )
  assert manifest["cells"]["chart_bars/vqa"] == {"rows": 0, "folder": None, "files": {}}
  assert manifest["cells"]["chart-bars/vqa"]["folder"] == "chart_bars_2/vqa"


def test_text_only_rows_keep_no_image(tmp_path):
  row = Example.single("k", "", b"", "vqa", "1 + 1?", "2")
  shards.write_cells([row], lambda example: "text", tmp_path / "cells")
  assert list(shards.open_cells(tmp_path / "cells")["text/vqa"]) == [row]


def test_conversations_about_several_pictures_come_back_whole(tmp_path):
  turns = (Turn("<image> or <image>?", "the second"), Turn("Why?", "it is élan"))
  row = Example("k", "vqa", turns, ("a", "b"), (png(1), png(2)), "maps", "rule")
  shards.write_cells([row], lambda example: "maps", tmp_path / "cells", token_count=len)
  cells = shards.open_cells(tmp_path / "cells")
  assert list(cells["maps/vqa"]) == [row]
  assert cells.manifest["cells"]["maps/vqa"]["answer_tokens"] == {"mean": 20.0, "max": 20}
  (plain,) = tfds.data_source("maps/vqa", data_dir=tmp_path / "cells", split="train")
  assert [image.shape for image in plain["images"]] == [(8, 8, 3)] * 2
  assert plain["turns"]["prompt"][1] == b"Why?"


def test_a_row_needs_a_turn_and_a_name_for_each_picture():
  with pytest.raises(ValueError, match="'k' has 1 pictures under 0 names"):
    Example("k", "vqa", (Turn("p", "a"),), images=(b"x",))
  with pytest.raises(ValueError, match="'k' has no turns"):
    Example("k", "vqa", ())


def flip_bit(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(bytes(data))


def test_verify_names_the_damaged_file(tmp_path):
  manifest = shards.write_cells(corpus(), CONCEPTS, tmp_path / "cells")
  assert shards.verify(tmp_path / "cells") == manifest
  for name in manifest["cells"]["chart-bars/vqa"]["files"]:
    path = tmp_path / "cells" / name
    intact = path.read_bytes()
    flip_bit(path)
    with pytest.raises(shards.DamagedCellsError, match=f"{path.name} of cell 'chart-bars/vqa'"):
      shards.verify(tmp_path / "cells")
    path.write_bytes(intact[:-1])
    with pytest.raises(shards.DamagedCellsError, match="bytes"):
      shards.verify(tmp_path / "cells")
    path.unlink()
    with pytest.raises(shards.DamagedCellsError, match="is missing"):
      shards.verify(tmp_path / "cells")
    path.write_bytes(intact)


def test_an_edited_manifest_is_refused(tmp_path):
  shards.write_cells(corpus(), CONCEPTS, tmp_path / "cells")
  path = tmp_path / "cells" / "manifest.json"
  manifest = json.loads(path.read_text())
  manifest["cells"]["chart-bars/vqa"]["rows"] += 1
  path.write_text(json.dumps(manifest))
  with pytest.raises(shards.DamagedCellsError, match=r"manifest\.json"):
    shards.open_cells(tmp_path / "cells")


def test_a_failed_write_leaves_nothing(tmp_path):
  def broken():
    yield from corpus()
    raise OSError("the disk is gone")

  with pytest.raises(OSError, match="the disk is gone"):
    shards.write_cells(broken(), CONCEPTS, tmp_path / "cells")
  assert list(tmp_path.iterdir()) == []


def test_what_a_killed_write_left_is_cleared_away(tmp_path):
  leftover = tmp_path / ".cells.partial" / "chart_bars" / "caption" / "1.0.0"
  leftover.mkdir(parents=True)
  (leftover / "torn").write_bytes(b"half")
  shards.write_cells(corpus(), CONCEPTS, tmp_path / "cells")
  assert not list(tmp_path.rglob("torn"))
  shards.verify(tmp_path / "cells")


def more():
  """Another source: rows for a cell that is there, for one that was empty, for a new concept."""
  for i, (image_key, task) in enumerate(
    (("image1", "vqa"), ("image1", "vqa"), ("image0", "ocr"), ("stranger", "vqa"))
  ):
    yield Example.single(f"more-{i}", image_key, png(9 + i), task, "And here?", f"{i}")


def concept(example):
  return CONCEPTS.get(example.image_key, "new")


def contents(folder):
  return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_source_adds_its_shards_and_changes_no_rows(tmp_path):
  folder = tmp_path / "cells"
  first = shards.write_cells(corpus(), concept, folder, token_count=len)
  before, rows = contents(folder), list(shards.open_cells(folder)["3d-maps/vqa"])
  manifest = shards.write_cells(more(), concept, folder, token_count=len, source="web")
  after = contents(folder)
  changed = {path.name for path in before if after[path] != before[path]}
  assert changed == {"manifest.json", "dataset_info.json"}
  assert len([path for path in after if path not in before and "array_record" in path.name]) == 3
  assert shards.verify(folder) == manifest == shards.read_manifest(folder)
  assert manifest["rows"] == first["rows"] + 4
  assert manifest["sources"] == [{"source": "", "rows": 12}, {"source": "web", "rows": 4}]
  cells = shards.open_cells(folder)
  assert list(cells["3d-maps/vqa"]) == rows + list(more())[:2]
  assert list(cells["chart-bars/ocr"]) == list(more())[2:3]
  assert list(cells["new/vqa"]) == list(more())[3:]
  assert manifest["cells"]["3d-maps/vqa"]["prompt_tokens"] == {"mean": 12.6, "max": 15}
  source = tfds.data_source("c_3d_maps/vqa", data_dir=folder, split="train")
  assert [row["key"].decode() for row in source] == [
    *("image1-vqa", "image3-vqa", "image5-vqa"),
    *("more-0", "more-1"),
  ]
  with pytest.raises(FileExistsError, match="holds the source 'web'"):
    shards.write_cells(more(), concept, folder, source="web")


class Killed(BaseException):
  """Stands in for the end of the process."""


def test_a_killed_addition_is_whole_or_not_at_all(tmp_path, monkeypatch):
  """The process ends before each single rename, and nothing of it runs afterwards."""
  whole = tmp_path / "whole"
  shards.write_cells(corpus(), concept, whole)
  shards.write_cells(more(), concept, whole, source="web")
  outcomes = []
  for survived in range(100):
    folder = tmp_path / str(survived) / "cells"
    shards.write_cells(corpus(), concept, folder)
    before = contents(folder)
    renames = iter(range(survived))

    def replace(source, target, renames=renames, real=os.replace):
      if next(renames, None) is None:
        raise Killed
      real(source, target)

    with monkeypatch.context() as patch:
      patch.setattr(os, "replace", replace)
      patch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)
      patch.setattr(pathlib.Path, "unlink", lambda *args, **kwargs: None)
      try:
        shards.write_cells(more(), concept, folder, source="web")
      except Killed:
        pass
      else:
        break
    rows = sum(len(list(cell)) for cell in shards.open_cells(folder).values())
    shards.verify(folder)
    assert contents(folder) == (contents(whole) if rows == 16 else before)
    assert rows in (12, 16) and [p.name for p in folder.parent.iterdir()] == ["cells"]
    outcomes.append(rows)
  assert outcomes == sorted(outcomes) and {12, 16} == set(outcomes)


def test_errors_name_the_row(tmp_path):
  row = Example.single("k7", "image0", b"x", "poetry", "", "")
  with pytest.raises(ValueError, match="'k7' has the unknown task 'poetry'"):
    shards.write_cells([row], CONCEPTS, tmp_path / "cells")
  row = Example.single("k8", "stranger", b"x", "vqa", "", "")
  with pytest.raises(ValueError, match="'stranger' has no concept"):
    shards.write_cells([row], CONCEPTS, tmp_path / "cells")
  with pytest.raises(ValueError, match="'a/b'"):
    shards.write_cells([row], lambda example: "a/b", tmp_path / "cells")
  shards.write_cells([], CONCEPTS, tmp_path / "cells")
  with pytest.raises(FileExistsError, match="already exists"):
    shards.write_cells([], CONCEPTS, tmp_path / "cells")
