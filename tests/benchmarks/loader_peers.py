"""Loaders of other projects on the corpus of loader_bench.py, each as its own documentation has it.

Runs under an interpreter of its own, for MosaicML streaming wants an older numpy and transformers
than mixjax: see requirements-loaders.txt. All do the same work: rows of 50 cells mixed by weight,
shuffled within each cell, pictures decoded by Pillow to uint8, lists of 64; one process, no worker.
"""

import argparse
import importlib.machinery
import io
import json
import os
import pathlib
import pickle
import resource
import shutil
import sys
import tarfile
import time
import types

import numpy as np
from PIL import Image

BATCH = 64
FAR = 1_000_000  # the sample to resume at
SAVED = 6400  # samples read before a state is saved, where only a saved one can be resumed


def decode(picture):
  """uint8[h, w, 3], or None for a row of text."""
  return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")) if picture else None


def cell_of(text):
  return int(text[:5])


class Streaming:
  """MosaicML streaming, `proportion`; an epoch that holds the whole run."""

  def __init__(self, folder, weights):
    try:
      import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
      _stand_in_for_torchvision()
    self.folder, self.weights = folder, weights

  def write(self, cells):
    from streaming import MDSWriter

    columns = {"picture": "bytes", "text": "str"}
    for i, rows in enumerate(cells):
      with MDSWriter(out=str(self.folder / f"{i:05}"), columns=columns) as writer:
        for picture, text in rows:
          writer.write({"picture": picture, "text": text})

  def batches(self, start=0):
    from streaming import Stream, StreamingDataLoader, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    streams = [
      Stream(local=str(self.folder / f"{i:05}"), proportion=float(weight))
      for i, weight in enumerate(self.weights)
    ]
    data = StreamingDataset(
      streams=streams, epoch_size=2 * FAR, shuffle=True, batch_size=BATCH, num_canonical_nodes=1
    )
    loader = StreamingDataLoader(
      data,
      batch_size=BATCH,
      collate_fn=lambda rows: [(decode(r["picture"]), r["text"]) for r in rows],
    )
    if start:
      loader.load_state_dict(data.state_dict(start, from_beginning=True))
    return iter(loader)


def _stand_in_for_torchvision():
  """Streaming's picture datasets, not used here, want two names of it; there is no build of
  torchvision for every CPU build of torch."""
  names = ("torchvision", "torchvision.datasets", "torchvision.transforms")
  for name in (*names, "torchvision.transforms.functional"):
    module = sys.modules[name] = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
  sys.modules["torchvision.datasets"].VisionDataset = object
  sys.modules["torchvision.transforms.functional"].to_tensor = None


def write_tars(folder, cells, shards=2):
  """Each cell as WebDataset tars."""
  for i, rows in enumerate(cells):
    (folder / f"{i:05}").mkdir(parents=True)
    for shard in range(shards):
      with tarfile.open(folder / f"{i:05}" / f"{shard:05}.tar", "w") as tar:
        for row in range(shard, len(rows), shards):
          for kind, content in zip(("jpg", "txt"), rows[row], strict=True):
            if content:
              content = content.encode() if isinstance(content, str) else content
              info = tarfile.TarInfo(f"{row:08}.{kind}")
              info.size = len(content)
              tar.addfile(info, io.BytesIO(content))


class WebDataset:
  """RandomMix over repeated tars, shuffled through a buffer of 100 rows a cell."""

  def __init__(self, folder, weights):
    self.folder, self.weights = folder, weights

  def write(self, cells):
    write_tars(self.folder, cells)

  def batches(self, start=0):
    import webdataset as wds

    if start:
      raise NotImplementedError("WebDataset starts again and reads up to there")

    def one(i):
      tars = sorted(map(str, (self.folder / f"{i:05}").glob("*.tar")))
      return wds.WebDataset(tars, shardshuffle=len(tars), seed=0).repeat().shuffle(100)

    mix = wds.RandomMix([one(i) for i in range(len(self.weights))], probs=list(self.weights))
    batch = []
    for row in mix:
      batch.append((decode(row.get("jpg")), row["txt"].decode()))
      if len(batch) == BATCH:
        yield batch
        batch = []


class Energon:
  """A blend by weight, the samples' own decoder to uint8."""

  def __init__(self, folder, weights):
    self.folder, self.weights = folder, weights

  def write(self, cells):
    from megatron.energon.flavors import BaseWebdatasetFactory

    write_tars(self.folder, cells)
    sample, fields = "TextSample", "  text: txt\n"
    if cells[0][0][0]:
      sample, fields = "CaptioningSample", "  image: jpg\n  caption: txt\n"
    blend = ""
    for i, weight in enumerate(self.weights):
      place = self.folder / f"{i:05}"
      tars = sorted(path.name for path in place.glob("*.tar"))
      BaseWebdatasetFactory.prepare_dataset(
        place, tars, split_parts_ratio=[("train", 1.0)], workers=1
      )
      (place / ".nv-meta" / "dataset.yaml").write_text(
        f"sample_type:\n  __module__: megatron.energon\n  __class__: {sample}\nfield_map:\n{fields}"
      )
      blend += f"    - weight: {float(weight)}\n      path: ./{i:05}\n"
    (self.folder / "mix.yaml").write_text(
      "__module__: megatron.energon\n__class__: MetadatasetV2\n"
      f"splits:\n  train:\n    blend:\n{blend}"
    )

  def loader(self):
    from megatron import energon

    class Rows(energon.DefaultTaskEncoder):
      decoder = energon.SampleDecoder(image_decode="rgb8")

      def encode_sample(self, sample):
        return sample

      def batch(self, samples):
        return [(getattr(s, "image", None), getattr(s, "caption", None) or s.text) for s in samples]

      def encode_batch(self, batch):
        return batch

    data = energon.get_train_dataset(
      str(self.folder / "mix.yaml"),
      worker_config=energon.WorkerConfig(rank=0, world_size=1, num_workers=0),
      batch_size=BATCH,
      shuffle_buffer_size=100,
      max_samples_per_sequence=100,
      task_encoder=Rows(),
    )
    return energon.get_savable_loader(data)

  def batches(self):
    return iter(self.loader())

  def resumed(self):
    """A function that builds the loader anew and goes on from a state that was saved."""
    loader = self.loader()
    rows = iter(loader)
    for _ in range(SAVED // BATCH):
      next(rows)
    state = loader.save_state_rank()

    def resume():
      again = self.loader()
      again.restore_state_rank(state)
      return iter(again)

    return resume


PEERS = {"streaming": Streaming, "webdataset": WebDataset, "energon": Energon}


def measure(loader, what, samples):
  """What one process finds out about a loader; seconds without those of importing."""
  if what == "resume":
    if hasattr(loader, "resumed"):
      resume, of_saved = loader.resumed(), True
    else:
      resume, of_saved = (lambda: loader.batches(FAR)), False
      next(iter(loader.batches()))  # everything is imported
    began, cpu = time.perf_counter(), time.process_time()
    next(iter(resume()))
    return {
      "resume_seconds": time.perf_counter() - began,
      "resume_cpu": time.process_time() - cpu,
      "of_saved": of_saved,
    }
  rows = iter(loader.batches())
  for _ in range(5):
    next(rows)
  cells = []
  began, cpu = time.perf_counter(), time.process_time()
  for _ in range(samples // BATCH):
    cells.extend(cell_of(text) for _, text in next(rows))
  seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
  return {
    "per_second": len(cells) / seconds,
    "per_cpu_second": len(cells) / cpu,
    "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
  }


def order(loader, ends, cells):
  """How far realised proportions are from those asked for, after so many samples."""
  rows = iter(loader.batches())
  counts, done, figures, began = np.zeros(cells), 0, {}, time.perf_counter()
  while done < max(ends):
    for _, text in next(rows):
      counts[cell_of(text)] += 1
      done += 1
      if done in ends:
        missed = counts - done * np.asarray(loader.weights)
        figures[str(done)] = {
          "worst": float(np.abs(missed).max()),
          "variation": float(np.abs(missed).sum() / 2 / done),
        }
  return figures | {"seconds": time.perf_counter() - began}


def main(loaders):
  parser = argparse.ArgumentParser()
  parser.add_argument("name")
  parser.add_argument("what", choices=("write", "speed", "order", "resume"))
  parser.add_argument("folder", type=pathlib.Path)
  parser.add_argument("--samples", type=int, default=6400)
  args = parser.parse_args()
  weights = np.load(args.folder / "weights.npy")
  loader = loaders[args.name](args.folder / args.name, weights)
  if args.what == "write":
    shutil.rmtree(args.folder / args.name, ignore_errors=True)
    (args.folder / args.name).mkdir()
    loader.write(pickle.loads((args.folder / "rows.pkl").read_bytes()))
    found = {}
  elif args.what == "order":
    found = order(loader, (512, 5000, 50_000), len(weights))
  else:
    found = measure(loader, args.what, args.samples)
  print("\n" + json.dumps(found), flush=True)
  os._exit(0)  # whatever threads a loader has left


if __name__ == "__main__":
  main(PEERS)
