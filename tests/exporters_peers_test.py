"""Exports read by the other trainers' own code, and the shares that come out of it.

Each needs its package, which nothing else here does; the reasons say how to get it. Drawing by
chance is held to five standard deviations, drawing by count to one sample.
"""

import collections
import json

import pytest
import yaml

from mixjax.recipes.exporters import energon, hugging_face, levanter, sources, streaming

SHARES = {"charts/caption": 0.62, "maps/ocr": 0.3, "emoji/vqa": 0.079, "code/ocr": 0.001}
ROWS = {"charts/caption": 300, "maps/ocr": 50, "emoji/vqa": 90, "code/ocr": 20}
TOKENS = {"charts/caption": 80.0, "maps/ocr": 20.0, "emoji/vqa": 5.0, "code/ocr": 300.0}
DRAWN = 4000


def made(path):
  entries = {
    cell: {
      "rows": rows,
      "folder": cell,
      "prompt_tokens": {"mean": 0.0},
      "answer_tokens": {"mean": TOKENS[cell]},
    }
    for cell, rows in ROWS.items()
  }
  unused = {"code/vqa": {"rows": 9, "folder": "code/vqa"}, "code/caption": {"rows": 0}}
  return sources.sources(SHARES, {"cells": entries | unused}, str(path))


def assert_by_chance(drawn):
  counts, n = collections.Counter(drawn), len(drawn)
  assert n >= 2000 and set(counts) <= set(SHARES)
  for cell, share in SHARES.items():
    assert abs(counts[cell] - n * share) < 5 * (n * share * (1 - share)) ** 0.5, (cell, counts)


@pytest.mark.parametrize("lazy", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_hugging_face_interleaves(tmp_path, lazy):
  datasets = pytest.importorskip("datasets", reason="pip install datasets==5.2.0")
  found = made(tmp_path / "{name}.jsonl")
  for source in found:
    rows = (json.dumps({"cell": source.cell, "row": i}) for i in range(source.rows))
    (tmp_path / f"{source.name}.jsonl").write_text("\n".join(rows))
  spec = json.loads(hugging_face.export(found, samples=DRAWN).text)
  parts = [
    datasets.load_dataset(
      "json", data_files=path, split="train", cache_dir=str(tmp_path / "cache"), streaming=lazy
    )
    for path in spec["paths"]
  ]
  mixed = datasets.interleave_datasets(parts, **spec["interleave"])
  drawn = [row for _, row in zip(range(DRAWN), mixed, strict=False)]
  assert_by_chance([row["cell"] for row in drawn])
  # As the note says: a part begins again at its first row, in the same order.
  maps = [row["row"] for row in drawn if row["cell"] == "maps/ocr"]
  assert maps == [i % ROWS["maps/ocr"] for i in range(len(maps))] and len(maps) > 10 * 50


@pytest.mark.slow
def test_streaming_chooses_by_count(tmp_path):
  try:
    from streaming import MDSWriter, Stream, StreamingDataset
  except (ImportError, RuntimeError):  # RuntimeError: torchvision is of another torch
    pytest.skip(
      "pip install mosaicml-streaming==0.13.0, with torchvision of the torch that is here"
    )
  found = made(tmp_path / "{name}")
  for source in found:
    with MDSWriter(out=source.path, columns={"cell": "str"}) as writer:
      for _ in range(source.rows):
        writer.write({"cell": source.cell})
  spec = json.loads(streaming.export(found, samples=DRAWN).text)
  streams = [Stream(**stream) for stream in spec["streams"]]
  dataset = StreamingDataset(streams=streams, epoch_size=spec["epoch_size"], batch_size=1)
  drawn = collections.Counter(row["cell"] for row in dataset)
  assert drawn.total() == DRAWN
  for cell, share in SHARES.items():
    assert abs(drawn[cell] - DRAWN * share) <= 1


@pytest.mark.slow
def test_energon_blends(tmp_path):
  megatron = pytest.importorskip("megatron.energon", reason="pip install megatron-energon==7.4.1")
  from megatron.energon.flavors.jsonl.crude_jsonl_dataset import CrudeJsonlDatasetFactory

  found = made("{name}.jsonl")
  for source in found:
    path = tmp_path / source.path
    path.write_text("".join(json.dumps({"row": i}) + "\n" for i in range(source.rows)))
    CrudeJsonlDatasetFactory.prepare_dataset(path)
  (tmp_path / energon.FILE).write_text(energon.export(found).text)

  class Encoder(megatron.DefaultTaskEncoder):
    cookers = (megatron.Cooker(megatron.stateless(lambda sample: sample)),)

  dataset = megatron.get_train_dataset(
    tmp_path / energon.FILE,
    worker_config=megatron.WorkerConfig(rank=0, world_size=1, num_workers=0),
    batch_size=None,
    shuffle_buffer_size=None,
    max_samples_per_sequence=None,
    task_encoder=Encoder(),
  )
  loader = megatron.get_loader(dataset)
  drawn = [sample["__subflavors__"]["cell"] for _, sample in zip(range(DRAWN), loader)]  # noqa: B905
  assert_by_chance(drawn)


@pytest.mark.slow
def test_levanter_mixes_sequences(tmp_path):
  reason = "pip install marin-levanter==0.2.20.dev202606180959"
  mixture = pytest.importorskip("levanter.data.mixture", reason=reason)
  from levanter.data import ListAsyncDataset

  found = made("{name}.jsonl")
  data = yaml.safe_load(levanter.export(found).text)["data"]
  assert set(data["train_weights"]) <= set(data["components"])  # as LmDataConfig asks
  cell_of = {source.name: source.cell for source in found}
  parts = {name: ListAsyncDataset([name] * ROWS[cell_of[name]]) for name in data["components"]}
  mixed = mixture.MixtureDataset(
    parts, data["train_weights"], block_size=data["mixture_block_size"], key=0
  )
  block = data["mixture_block_size"]
  drawn = collections.Counter(mixed.as_sync_dataset().get_batch(list(range(block))))
  # A sequence is as many tokens of any cell, so samples are sequences over tokens a sample.
  samples = {cell: drawn[name] / TOKENS[cell] for name, cell in cell_of.items()}
  total = sum(samples.values())
  for cell, share in SHARES.items():
    assert samples[cell] / total == pytest.approx(share, rel=2e-2), cell
