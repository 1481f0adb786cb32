"""A finished atlas on a new corpus, from pictures to drift.json and to the cells that grow."""

import importlib
import json
import sys

import pytest
from colours import see_colours, write_atlas, write_corpus
from etils import epath

from mixjax.atlas import shards
from mixjax.jobs import apply
from mixjax.jobs import atlas as atlas_job


@pytest.fixture
def atlas(tmp_path, monkeypatch):
  """The workdir of a finished atlas of three colours."""
  see_colours(monkeypatch)
  return write_atlas(tmp_path)


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
  applied(tmp_path, atlas, "web", source="web", seed=2, sizes=(5, 6, 7))
  assert "has the source 'web' already" in capsys.readouterr().out
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


def test_without_beam_its_environment_is_named(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "apache_beam", None)
  config = importlib.import_module("configs.atlas").get_config("corpus=x,apply=y,beam=DirectRunner")
  job = importlib.import_module(f"mixjax.jobs.{config.job}")
  with pytest.raises(ValueError, match=r"pip install -r requirements-beam\.txt"):
    job.main(config.to_dict(), str(tmp_path / "new"))
  assert not (tmp_path / "new").exists()
  with pytest.raises(ValueError, match="beam= goes with apply=RUN"):
    importlib.import_module("configs.atlas").get_config("corpus=x,beam=DirectRunner")
