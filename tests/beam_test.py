"""A corpus placed in an atlas by Beam's workers, against the same in one process."""

import json
import pathlib
import shutil

import numpy as np
import pytest

pytest.importorskip(
  "apache_beam",
  reason="Beam has an environment of its own: pip install -r requirements-beam.txt",
)

import tensorflow_datasets as tfds
from colours import Tower, see_colours, write_atlas, write_corpus

from mixjax.atlas import embed, parts, shards
from mixjax.corpus.readers import llava_json
from mixjax.jobs import apply, beam
from mixjax.jobs.beam import embedding as beam_embedding

TASKS = ("vqa", "ocr")
# DirectRunner itself, which first asks the network for a better one, has only the slow test.
RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
TWO_PROCESSES = "--direct_num_workers=2 --direct_running_mode=multi_processing"


def write_new(folder, sizes=(30, 28, 26)):
  """Every picture under several tasks, one task after the other; text, and what cannot be read."""
  folder.mkdir()
  path = write_corpus(folder, 1, sizes)
  rows = json.loads(path.read_text())
  said = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "This."}]
  for task in TASKS:
    for row in rows[: sum(sizes)]:
      if not (task == "ocr" and row["id"].startswith("red")):  # a cell without rows
        rows.append(row | {"id": f"{row['id']}-{task}", "task": task})
  rows[7:7] = [{"id": f"text{i}", "task": "vqa", "conversations": said} for i in range(3)]
  rows[40:40] = [{"id": "mute", "image": "red0.png", "conversations": []}, "not a row"]
  (folder / "green3.png").write_bytes(b"torn")
  path.write_text(json.dumps(rows))
  return path


def place(job, corpus, run, workdir, source="", shards=0, runner=RUNNER, options=""):
  config = {"corpus": str(corpus), "apply": str(run), "checkpoints": "", "seed": 0}
  config |= {"source": source, "job": "apply"}
  if job is beam:
    config |= {"job": "beam", "beam": dict(runner=runner, options=options, shards=shards)}
  job.main(config, str(workdir))
  return workdir


def contents(folder):
  return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def rows(cells):
  return {name: list(cell) for name, cell in shards.open_cells(cells).items() if len(cell)}


@pytest.fixture
def small_pieces(monkeypatch):
  """Parts of the corpus, and of its pictures, of which even a small one has several."""
  monkeypatch.setattr(llava_json, "BLOCK", 32)
  monkeypatch.setattr(parts, "SIZE", 25)


@pytest.fixture
def atlas(tmp_path, monkeypatch):
  see_colours(monkeypatch)
  return write_atlas(tmp_path)


def test_a_source_joins_the_cells_with_the_bytes_of_one_process(atlas, tmp_path, small_pieces):
  corpus = write_new(tmp_path / "new")
  shutil.copytree(atlas, tmp_path / "same")
  one = place(apply, corpus, atlas, tmp_path / "one", source="web")
  many = place(beam, corpus, tmp_path / "same", tmp_path / "many", source="web")
  manifest = shards.verify(tmp_path / "same" / "atlas" / "cells")
  assert manifest["sources"][-1] == {"source": "web", "rows": 222}
  assert {"red-colour/ocr", "text/ocr"} <= {
    n for n, c in manifest["cells"].items() if not c["rows"]
  }
  assert contents(tmp_path / "same" / "atlas") == contents(atlas / "atlas")
  assert contents(many / "applied") == contents(one / "applied")
  unlike = json.loads((many / "drift.json").read_text())
  assert unlike == json.loads((one / "drift.json").read_text())
  ledger = (many / "applied" / "ledger.jsonl").read_text()
  assert "green3.png" in ledger and "row 40" in ledger and "row 41" in ledger
  assert not (many / "beam").exists()


def test_cells_of_their_own_in_several_files(atlas, tmp_path, small_pieces, capsys):
  corpus = write_new(tmp_path / "new")
  one = place(beam, corpus, atlas, tmp_path / "one")
  three = place(beam, corpus, atlas, tmp_path / "three", shards=3)
  assert rows(three / "cells") == rows(one / "cells")
  keys = [row.key for row in rows(three / "cells")["blue-colour/vqa"]]
  assert keys == [f"blue{i}-vqa" for i in range(26)]
  cell = shards.verify(three / "cells")["cells"]["blue-colour/vqa"]
  assert [shard["rows"] for shard in cell["shards"]] == [8, 9, 9]
  whole = shards.verify(one / "cells")["cells"]["blue-colour/vqa"]
  assert cell["prompt_tokens"] == whole["prompt_tokens"]
  assert sum(s["num_bytes"] for s in cell["shards"]) == whole["shards"][0]["num_bytes"]
  source = tfds.data_source("blue_colour/vqa", data_dir=three / "cells", split="train")
  assert [row["key"].decode() for row in source] == keys
  capsys.readouterr()
  before = contents(one)
  place(beam, corpus, atlas, one)
  assert contents(one) == before and "is there already" in capsys.readouterr().out


def test_a_killed_run_goes_on_and_loads_one_tower(atlas, tmp_path, small_pieces, monkeypatch):
  made, seen = [], []

  class Failing(Tower):
    def __init__(self, clip):
      made.append(self)

    def __call__(self, images):
      seen.append(len(images))
      if len(made) == 1 and len(seen) == 3:
        raise MemoryError("killed here")
      return super().__call__(images)

  corpus = write_new(tmp_path / "new")
  whole = place(beam, corpus, atlas, tmp_path / "whole")
  monkeypatch.setattr(embed, "Embedder", Failing)
  with pytest.raises(Exception, match="killed here"):
    place(beam, corpus, atlas, tmp_path / "killed")
  assert len(list((tmp_path / "killed" / "applied" / "parts").glob("*.json"))) == 2
  again = place(beam, corpus, atlas, tmp_path / "killed")
  assert len(made) == 2  # one a run, though a run has several pieces
  assert sum(seen) == 83 + seen[2]  # nothing but the third piece was embedded twice
  assert contents(again / "cells") == contents(whole / "cells")
  assert contents(again / "applied") == contents(whole / "applied")


def test_a_run_that_began_with_another_corpus_is_not_gone_on_with(atlas, tmp_path, monkeypatch):
  corpus = write_new(tmp_path / "new")

  def fail(*args):
    raise MemoryError("killed here")

  with monkeypatch.context() as patch:
    patch.setattr(beam_embedding.parts, "write_one", fail)
    with pytest.raises(Exception, match="killed here"):
      place(beam, corpus, atlas, tmp_path / "run2")
  corpus.write_text(json.dumps(json.loads(corpus.read_text())[1:]))
  with pytest.raises(ValueError, match="made from another corpus"):
    place(beam, corpus, atlas, tmp_path / "run2")


@pytest.mark.slow
def test_two_processes_write_what_one_writes(tmp_path, small_pieces):
  """With CLIP itself, as the gallery's stand-in has it."""
  run = write_atlas(tmp_path)
  corpus = write_new(tmp_path / "new")
  alone = place(apply, corpus, run, tmp_path / "alone")
  one = place(beam, corpus, run, tmp_path / "one")
  two = place(beam, corpus, run, tmp_path / "two", runner="DirectRunner", options=TWO_PROCESSES)
  assert contents(two / "cells") == contents(one / "cells")
  assert contents(two / "applied") == contents(one / "applied")
  embeddings = [np.load(pathlib.Path(w) / "applied" / "embeddings.npy") for w in (alone, one)]
  np.testing.assert_allclose(*embeddings, atol=1e-6)
  assert (alone / "drift.json").read_text() == (one / "drift.json").read_text()
