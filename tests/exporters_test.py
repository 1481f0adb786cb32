"""Recipes in other trainers' formats: what the files say, and what their readers make of them."""

import glob
import json
import math
import re

import grain
import numpy as np
import pytest
import yaml
from tensorflow_datasets.proto import tf_example_pb2

from mixjax.atlas import shards
from mixjax.corpus import tasks
from mixjax.corpus.example import Example
from mixjax.jobs import export as export_job
from mixjax.recipes.exporters import (
  energon,
  hugging_face,
  levanter,
  llava_next,
  maxtext,
  sources,
  streaming,
)

WEIGHTS = {"charts/caption": 0.5, "charts/ocr": 0.3, "3d maps/vqa": 0.2 - 1e-9, "maps/ocr": 1e-9}
LENGTHS = {"charts/caption": 40, "charts/ocr": 10, "3d maps/vqa": 5, "maps/ocr": 5, "maps/vqa": 9}
ROWS = {"charts/caption": 30, "charts/ocr": 8, "3d maps/vqa": 12, "maps/ocr": 4, "maps/vqa": 6}


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
  """Real cells of rows whose answers have the cell's length in words."""
  rows = [
    Example.single(f"{cell}-{i}", f"{cell}-{i}", b"\x89PNG", cell.split("/")[1], "a", "w " * length)
    for cell, length in LENGTHS.items()
    for i in range(ROWS[cell])
  ]
  folder = tmp_path_factory.mktemp("export") / "cells"
  shards.write_cells(
    rows, lambda e: e.key.split("/")[0], folder, token_count=lambda text: len(text.split())
  )
  return folder


@pytest.fixture(scope="module")
def manifest(cells):
  return shards.read_manifest(cells)


def made(manifest, path="{folder}", weights=WEIGHTS, **more):
  return sources.sources(weights, manifest, path, **more)


def test_sources_are_the_cells_with_weight(manifest):
  found = made(manifest, "gs://b/{concept}-{task}/{name}", extra_tokens=100)
  by_cell = {source.cell: source for source in found}
  assert set(by_cell) == set(WEIGHTS)  # not maps/vqa, and no empty cell
  assert math.fsum(source.weight for source in found) == 1
  maps = by_cell["3d maps/vqa"]
  assert maps.path == "gs://b/3d maps-vqa/c_3d_maps_vqa"
  assert maps.rows == 12 and maps.tokens == 100 + 1 + 5
  assert maps.epochs(600) == pytest.approx(10)


def test_what_cannot_be_exported_is_named(manifest):
  with pytest.raises(ValueError, match=r"no cell is called 'charts/ocr2'; did you mean"):
    made(manifest, weights={"charts/ocr2": 1.0})
  with pytest.raises(ValueError, match=r"path '\{shard\}'.*may hold \{cell\}, \{concept\}"):
    made(manifest, "{shard}")
  for path in ("{cell.x}", "{cell.upper}", "{cell[0]}", "{cell!r}", "{}", "{cell:>9}", "{cell"):
    with pytest.raises(ValueError) as error:
      made(manifest, path)
    said = str(error.value)
    assert repr(path) in said and "may hold {cell}, {concept}, {task}" in said
  with pytest.raises(ValueError, match=r"both have the path 'charts'.*put \{cell\}"):
    made(manifest, "{concept}")
  bare = {**manifest, "cells": {k: dict(v) for k, v in manifest["cells"].items()}}
  for entry in bare["cells"].values():
    entry.pop("answer_tokens", None), entry.pop("prompt_tokens", None)
  with pytest.raises(ValueError, match=r"no token lengths of .*maps/ocr.*token_count="):
    levanter.export(made(bare))


def test_token_shares_follow_the_lengths(manifest):
  found = made(manifest, weights={"charts/caption": 0.5, "charts/ocr": 0.5})
  shares = sources.token_shares(found)
  assert shares["charts/caption"] / shares["charts/ocr"] == pytest.approx(41 / 11)
  with pytest.raises(ValueError, match="give extra_tokens"):
    sources.token_shares(
      [sources.Source("a/ocr", "a_ocr", "", 1.0, 3, 0.0)],
    )


def test_maxtext_mixes_our_own_files_with_grain(cells, manifest):
  """Its get_datasets, said again: glob, ArrayRecord, repeat and grain's IterDataset.mix by name."""
  weights = {**WEIGHTS, "3d maps/vqa": 0.199, "maps/ocr": 0.001}
  found = made(manifest, maxtext.PATH, folder=str(cells), weights=weights)
  exported = maxtext.export(found, samples=400)
  config = json.loads(exported.text)
  assert list(config) == [s.cell for s in found] and all(
    set(entry) == {"path", "weight"} for entry in config.values()
  )
  # charts/ocr ends first, after 8 / 0.3 samples.
  assert "ends after about 27 samples, where charts/ocr does" in exported.notes[0]
  epochs = int(re.search(r"set num_epoch=(\d+)", exported.notes[0]).group(1))
  parts, total = {}, sum(float(entry["weight"]) for entry in config.values())
  for name, entry in config.items():
    files = glob.glob(entry["path"])
    assert files, entry
    source = grain.sources.ArrayRecordDataSource(files)
    parts[name] = grain.MapDataset.source(source).seed(0).shuffle().repeat(epochs).to_iter_dataset()
  mixed = grain.IterDataset.mix(
    parts, {name: float(entry["weight"]) / total for name, entry in config.items()}
  )
  drawn = []
  for _, record in zip(range(400), mixed, strict=False):
    key = tf_example_pb2.Example.FromString(record).features.feature["key"].bytes_list.value[0]
    drawn.append(key.decode().rsplit("-", 1)[0])
  assert len(drawn) == 400  # the epochs of the note suffice
  for source in found:
    assert abs(drawn.count(source.cell) - 400 * source.weight) <= 2


def test_energon_writes_a_metadataset(manifest):
  exported = energon.export(made(manifest, "s3://b/{name}"))
  content = yaml.safe_load(exported.text)
  assert content["__module__"] == "megatron.energon" and content["__class__"] == "MetadatasetV2"
  blend = content["splits"]["train"]["blend"]
  assert {entry["subflavors"]["cell"]: entry["weight"] for entry in blend} == exported.weights
  assert min(entry["weight"] for entry in blend) == 1e-9  # read back as a number, not as a text
  assert blend[0]["path"].startswith("s3://b/")


def test_streaming_says_where_a_stream_is(manifest):
  spec = json.loads(streaming.export(made(manifest)).text)
  assert spec["epoch_size"] == 54 and {tuple(s) for s in spec["streams"]} == {
    ("local", "proportion")
  }
  exported = streaming.export(made(manifest, "s3://b/{name}"), samples=1000)
  spec = json.loads(exported.text)
  assert spec["epoch_size"] == 1000 and spec["streams"][0]["remote"].startswith("s3://b/")
  assert exported.notes == ("an epoch of 1000 samples has less than one of maps/ocr",)


def llava_rows(text, rows):
  """How many rows of each file LLaVA-NeXT would train on, by its own rules said again."""
  taken: dict[str, int] = {}
  for entry in yaml.safe_load(text)["datasets"]:
    path, strategy = entry["json_path"], entry.get("sampling_strategy", "all")
    here = rows[path]
    if ":" in strategy:
      how, number = strategy.split(":")
      assert how in ("first", "end", "random")
      count = math.ceil(int(number.split("%")[0]) * here / 100) if "%" in number else int(number)
      here = min(here, count)
    taken[path] = taken.get(path, 0) + here
  return taken


@pytest.mark.parametrize("samples", [1, 20, 1000])
def test_llava_next_gets_whole_counts(manifest, samples):
  found = made(manifest, "{folder}.json")
  exported = llava_next.export(found, samples)
  taken = llava_rows(exported.text, {source.path: source.rows for source in found})
  assert sum(taken.values()) == samples == sum(exported.weights.values())
  for source in found:
    assert abs(taken.get(source.path, 0) - samples * source.weight) < 1
    assert taken.get(source.path, 0) == exported.weights[source.cell]
  assert any("none of" in note and "maps/ocr" in note for note in exported.notes)
  assert "&" not in exported.text  # no YAML anchors


def test_llava_next_refuses_what_its_reader_would(manifest):
  with pytest.raises(ValueError, match="give samples"):
    llava_next.export(made(manifest, "{folder}.json"))
  with pytest.raises(ValueError, match=r"\.json and \.jsonl files, not"):
    llava_next.export(made(manifest, "{folder}.parquet"), 10)
  with pytest.raises(ValueError, match="neither first nor random"):
    llava_next.export(made(manifest, "{folder}.json"), 10, "end")


def test_hugging_face_stops_where_the_samples_are_there(manifest):
  found = made(manifest, weights={"charts/caption": 0.5, "3d maps/vqa": 0.5})
  many = [sources.Source(s.cell, s.name, s.path, s.weight, 1000 * s.rows, 1.0) for s in found]
  spec = json.loads(hugging_face.export(many, samples=20_000).text)
  assert spec["interleave"]["stopping_strategy"] == "first_exhausted"  # 24,000 samples to its end
  assert spec["interleave"]["probabilities"] == [0.5, 0.5]
  for samples in (24_000, None):
    exported = hugging_face.export(many, samples)
    assert json.loads(exported.text)["interleave"]["stopping_strategy"] == "all_exhausted"
  assert "near 24000 samples, all_exhausted near 60000" in exported.notes[0]
  assert "in the same order, whenever it ends: 3d maps/vqa about 2.5 times" in exported.notes[1]
  assert hugging_face.export(many, 20_000).notes[1] == "first_exhausted repeats no row"


def test_levanter_weighs_tokens(manifest):
  exported = levanter.export(made(manifest))
  data = yaml.safe_load(exported.text)["data"]
  assert set(data["train_weights"]) == set(data["components"])
  raw = {cell: weight * (1 + LENGTHS[cell]) for cell, weight in WEIGHTS.items()}
  for name, cell in (("charts_ocr", "charts/ocr"), ("c_3d_maps_vqa", "3d maps/vqa")):
    assert data["train_weights"][name] == pytest.approx(raw[cell] / sum(raw.values()))
  assert data["components"]["charts_ocr"]["source"]["train_urls"] == ["charts/ocr"]
  assert "none of maps/ocr" in exported.notes[0]


def run(tmp_path, **settings):
  settings = dict(recipe="", cells="", to="", path="", study="", samples=0) | settings
  export_job.main(settings | dict(extra_tokens=0.0, strategy="first"), str(tmp_path))


def test_the_job_writes_the_file_and_what_it_means(cells, tmp_path):
  recipe = tmp_path / "mixture.json"
  recipe.write_text(json.dumps(WEIGHTS))
  run(tmp_path, recipe=str(recipe), cells=str(cells), to="levanter", samples=80)
  about = json.loads((tmp_path / "levanter.yaml.about.json").read_text())
  assert about["unit"] == "sequences of tokens" and "maps/vqa" in about["left_out"]
  assert about["samples_weights"]["charts/caption"] == 0.5 < about["weights"]["charts/caption"]
  assert about["epochs"]["charts/ocr"] == 3
  assert about["cells_sha256"] == shards.read_manifest(cells)["sha256"]
  for to in export_job.TRAINERS:
    run(tmp_path, recipe="natural", cells=str(cells), to=to, samples=80)
    assert (tmp_path / export_job.TRAINERS[to].FILE).stat().st_size > 100
  assert (
    "about 60 samples"
    in maxtext.export(
      made(shards.read_manifest(cells), weights={c: n / 60 for c, n in ROWS.items()})
    ).notes[0]
  )


def test_the_job_says_what_it_needs(cells, tmp_path):
  with pytest.raises(ValueError, match="to='llava' is none of maxtext, energon"):
    run(tmp_path, to="llava", recipe="natural", cells=str(cells))
  with pytest.raises(ValueError, match="needs recipe=FILE"):
    run(tmp_path, to="maxtext", cells=str(cells))
  for to in export_job.TRAINERS:
    with pytest.raises(ValueError, match="samples is -5: give how many the run will draw"):
      run(tmp_path, to=to, recipe="natural", cells=str(cells), samples=-5)
  for trainer in (maxtext, streaming, hugging_face):
    with pytest.raises(ValueError, match="samples is 0: give how many"):
      trainer.export(made(shards.read_manifest(cells)), samples=0)
  with pytest.raises(ValueError, match="give study=RUN/study"):
    run(tmp_path, to="olmix")
  with pytest.raises(FileNotFoundError, match="no study in"):
    run(tmp_path, to="olmix", study=str(tmp_path))


def test_olmix_gets_the_study(finished, tmp_path):
  run(tmp_path, to="olmix", study=str(finished / "study"))
  header = (tmp_path / "ratios.csv").read_text().splitlines()[0].split(",")
  manifest = shards.read_manifest(finished / "atlas" / "cells")
  assert set(header[3:]) <= set(manifest["cells"])
  columns = np.genfromtxt(tmp_path / "ratios.csv", delimiter=",", skip_header=1)[:, 3:]
  np.testing.assert_allclose(columns.sum(1), 1, atol=1e-9)
  assert all(cell.split("/")[1] in tasks.TASKS for cell in header[3:])
