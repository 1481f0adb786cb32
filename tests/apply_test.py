"""A finished atlas on a new corpus, from pictures to drift.json and to the cells that grow."""

import io
import json

import numpy as np
import pytest
from etils import epath
from PIL import Image

from mixjax.atlas import embed, parts, shards
from mixjax.atlas.atlas import Atlas
from mixjax.corpus.corpus import Corpus
from mixjax.jobs import apply, concepts, embedding
from mixjax.jobs import atlas as atlas_job
from mixjax.jobs.atlas import STANDINS
from mixjax.progress import Reporter

COLOURS = {"red": (200, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 200)}


class Tower:
  """Stands in for CLIP: an image's mean colour, as a direction."""

  size = 8

  def __init__(self, clip):
    pass

  def __call__(self, images):
    x = np.stack(images).astype(np.float32).mean(axis=(1, 2))
    return x / np.linalg.norm(x, axis=1, keepdims=True), np.zeros((len(x), 2, 3), np.float16)


def write_corpus(folder, seed, sizes, tint=0):
  """A LLaVA json of noisy colours; `tint` makes the blue ones greener."""
  rng, rows = np.random.default_rng(seed), []
  for (name, colour), size in zip(COLOURS.items(), sizes, strict=True):
    for i in range(size):
      shift = tint * np.array([0, 1, 0]) if name == "blue" else 0
      pixels = np.clip(np.array(colour) + shift + rng.normal(0, 12, 3), 0, 255).astype(np.uint8)
      buffer = io.BytesIO()
      Image.fromarray(np.broadcast_to(pixels, (8, 8, 3)).copy()).save(buffer, "PNG")
      (folder / f"{name}{i}.png").write_bytes(buffer.getvalue())
      said = [("human", "<image>\nDescribe it."), ("gpt", f"a {name} colour, plain {name}")]
      row = {"id": f"{name}{i}", "image": f"{name}{i}.png", "task": "caption"}
      rows.append(row | {"conversations": [{"from": who, "value": text} for who, text in said]})
  (folder / "train.json").write_text(json.dumps(rows))
  return folder / "train.json"


@pytest.fixture
def atlas(tmp_path, monkeypatch):
  """The workdir of a finished atlas of three colours."""
  monkeypatch.setattr(embed, "Embedder", Tower)
  monkeypatch.setattr(embedding.hf, "load_clip", lambda folder: None)
  (tmp_path / "old").mkdir()
  corpus = Corpus(epath.Path(write_corpus(tmp_path / "old", 0, (60, 50, 40))))
  folder = epath.Path(tmp_path) / "run" / "atlas"
  clip = STANDINS / "clip"
  origin = parts.Origin(corpus.sha256(), shards.sha256(clip / "model.safetensors"))
  index = embedding.embed_corpus(corpus, origin, clip, folder, Reporter())
  concepts.compare([2, 3], folder, 0, Reporter())
  concepts.fit(corpus.examples, folder, index, 3, 0, {"extra": 1}, Reporter())
  names, found = Atlas.load(folder), np.load(folder / "embeddings.npy")
  of = dict(zip(index["images"], map(names.names.__getitem__, names.assign(found)), strict=True))
  shards.write_cells(corpus.examples(), of, folder / "cells", concepts=names.names)
  return tmp_path / "run"


def applied(tmp_path, atlas, name, source="", **corpus):
  (tmp_path / name).mkdir(exist_ok=True)
  path = write_corpus(tmp_path / name, **corpus)
  config = {"corpus": str(path), "apply": str(atlas), "checkpoints": "", "seed": 0}
  apply.main(config | {"source": source, "job": "apply"}, str(tmp_path / f"of_{name}"))
  return json.loads((tmp_path / f"of_{name}" / "drift.json").read_text())


def test_the_atlas_of_three_colours(atlas):
  folder = atlas / "atlas"
  card = json.loads((folder / "card.json").read_text())
  assert sorted(card["concepts"].values()) == [40, 50, 60] and card["extra"] == 1
  assert {name.split("-")[0] for name in card["concepts"]} == {"red", "green", "blue"}
  assert json.loads((folder / "choose.json").read_text())["recommended"] == 3
  assert len(list((folder / "sheets").iterdir())) == 3 and not (folder / "parts").exists()


def test_drift_is_reported_where_it_is(atlas, tmp_path, capsys):
  same = applied(tmp_path, atlas, "same", seed=1, sizes=(60, 50, 40))
  assert same["drifted"] == [] and same["far"] < 0.05
  capsys.readouterr()
  moved = applied(tmp_path, atlas, "moved", seed=1, sizes=(20, 50, 80), tint=60)
  (blue,) = moved["drifted"]
  assert blue.startswith("blue")
  row = next(row for row in moved["concepts"] if row["concept"] == blue)
  assert row["far"] > 0.5 and row["share"]["new"] == pytest.approx(80 / 150)
  printed = capsys.readouterr().out
  assert f"{blue} " in printed and "1 of 3 concepts drifted" in printed


def test_a_source_joins_the_cells_once(atlas, tmp_path, capsys):
  before = {p: p.read_bytes() for p in (atlas / "atlas" / "cells").rglob("*record*")}
  for _ in range(2):
    applied(tmp_path, atlas, "web", source="web", seed=2, sizes=(5, 6, 7))
  assert "has the source 'web' already" in capsys.readouterr().out
  manifest = shards.verify(atlas / "atlas" / "cells")
  assert manifest["sources"] == [{"source": "", "rows": 150}, {"source": "web", "rows": 18}]
  assert all(path.read_bytes() == data for path, data in before.items())
  with pytest.raises(ValueError, match=r"has grown by \['web'\]"):
    atlas_job.refuse_grown(epath.Path(atlas) / "atlas" / "cells")
  (atlas / "study").mkdir()
  with pytest.raises(ValueError, match="cannot grow, for trials were run on it"):
    applied(tmp_path, atlas, "more", source="more", seed=3, sizes=(2, 2, 2))


def test_a_corpus_that_has_changed_since_is_refused(atlas, tmp_path):
  applied(tmp_path, atlas, "new", seed=1, sizes=(20, 20, 20))
  with pytest.raises(ValueError, match="made from another corpus"):
    applied(tmp_path, atlas, "new", seed=1, sizes=(20, 20, 21))


def test_an_atlas_of_another_encoder_is_refused(atlas, tmp_path):
  path = atlas / "atlas" / "atlas.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"encoder": "another"}))
  with pytest.raises(ValueError, match="belongs to another encoder"):
    applied(tmp_path, atlas, "new", seed=1, sizes=(3, 3, 3))
