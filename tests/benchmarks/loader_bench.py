"""mixjax's cells, sampler and reading beside other loaders, on one corpus of 50 cells, in one run.

  python -m venv peers && peers/bin/pip install -r requirements-loaders.txt
  python tests/benchmarks/loader_bench.py --peers peers/bin/python

Small JPEGs (64 to 256 pixels a side) with text, then text alone. Each measurement is a process of
its own, one loader after the other, round by round: samples a second of wall and of CPU time, and
the most memory it ever had. Then how far the realised proportions are from the weights, and how
long from nothing to the batch at sample 1,000,000. Prints tables in Markdown.
"""

import argparse
import io
import json
import pathlib
import pickle
import subprocess
import sys
import tempfile

import loader_peers
import numpy as np
from loader_peers import BATCH, FAR, SAVED, cell_of, decode
from PIL import Image

NAMES = {
  "mixjax": "mixjax",
  "grain_map": "grain `MapDataset.mix`",
  "grain_iter": "grain `IterDataset.mix`",
  "streaming": "MosaicML streaming",
  "webdataset": "WebDataset `RandomMix`",
  "energon": "Megatron Energon",
}


class Ours:
  """Cells on disk, `Sampler`, grain."""

  def __init__(self, folder, weights):
    self.folder, self.weights = folder.with_name("mixjax") / "cells", weights

  def write(self, cells):
    from mixjax.atlas import shards
    from mixjax.corpus.example import Example

    shards.write_cells(
      (
        Example.single(f"{i}-{j}", picture and f"{i}-{j}", picture, "vqa", "What?", text)
        for i, rows in enumerate(cells)
        for j, (picture, text) in enumerate(rows)
      ),
      lambda example: f"c{example.key.split('-')[0]}",
      self.folder,
      concepts=[f"c{i}" for i in range(len(cells))],
    )

  def cells(self):
    from mixjax.atlas import shards

    cells = shards.open_cells(self.folder)
    return [cells[f"c{i}/vqa"] for i in range(len(self.weights))]

  def batches(self, start=0):
    import grain

    from mixjax.data.sampler import Sampler

    cells = self.cells()
    names = [f"c{i}" for i in range(len(cells))]
    sampler = Sampler(
      dict(zip(names, self.weights.tolist(), strict=True)),
      {name: len(cell) for name, cell in zip(names, cells, strict=True)},
      seed=0,
    )

    def batch(step):
      rows = [
        cells[cell][row] for cell, row in zip(*sampler.rows(step * BATCH, BATCH), strict=True)
      ]
      return [(decode(row.image), row.answer) for row in rows]

    steps = grain.MapDataset.range(start // BATCH, 10**9).map(batch)
    return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))


class GrainMap(Ours):
  """The same cells under grain's own shuffle, repeat and mix."""

  def parts(self):
    import grain

    return [
      grain.MapDataset.source(cell).seed(i).shuffle().repeat().map(
        lambda row: (decode(row.image), row.answer)
      )
      for i, cell in enumerate(self.cells())
    ]  # fmt: skip

  def batches(self, start=0):
    import grain

    mix = grain.MapDataset.mix(self.parts(), list(self.weights)).batch(BATCH, batch_fn=list)
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    rows = iter(mix.to_iter_dataset(options))
    if start:
      rows.set_state({"next_index": start // BATCH})
    return rows


class GrainIter(GrainMap):
  """The mix that MaxText uses."""

  def batches(self):
    import grain

    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    parts = [part.to_iter_dataset(options) for part in self.parts()]
    return iter(grain.IterDataset.mix(parts, list(self.weights)).batch(BATCH, batch_fn=list))

  def resumed(self):
    """A function that builds the loader anew and goes on from a state that was saved."""
    rows = self.batches()
    for _ in range(SAVED // BATCH):
      next(rows)
    state = rows.get_state()

    def resume():
      again = self.batches()
      again.set_state(state)
      return again

    return resume


OURS = {"mixjax": Ours, "grain_map": GrainMap, "grain_iter": GrainIter}


def make_corpus(folder, cells, rows, pictures):
  """`rows` a cell on average, between a third and three times as many; weights unlike them."""
  random = np.random.default_rng(0)
  folder.mkdir(parents=True)
  weights = random.dirichlet(np.ones(cells))
  np.save(folder / "weights.npy", weights)
  corpus = []
  some = [_jpeg(random) if pictures else b"" for _ in range(1000)]
  for cell in range(cells):
    count = int(rows * random.uniform(1 / 3, 5 / 3))
    texts = [f"{cell:05} {row:06} {'text ' * random.integers(2, 60)}" for row in range(count)]
    corpus.append([(some[random.integers(len(some))], text) for text in texts])
    assert cell_of(texts[0]) == cell
  (folder / "rows.pkl").write_bytes(pickle.dumps(corpus))


def _jpeg(random):
  coarse = Image.fromarray(random.integers(0, 256, (12, 12, 3), dtype=np.uint8))
  file = io.BytesIO()
  size = tuple(int(side) for side in random.integers(64, 257, 2))
  coarse.resize(size, Image.BICUBIC).save(file, "JPEG", quality=85)
  return file.getvalue()


def run(peers, name, what, folder, samples=0):
  """One process; None where it fails, with its last words."""
  script = pathlib.Path(__file__)
  python = (
    [sys.executable, script] if name in OURS else [peers, script.with_name("loader_peers.py")]
  )
  command = [*map(str, python), name, what, str(folder), f"--samples={samples}"]
  done = subprocess.run(command, capture_output=True, text=True, cwd=script.parents[2])
  if done.returncode:
    print(f"{name} {what}: {done.stderr[-2000:]}", file=sys.stderr)
    return None
  return json.loads(done.stdout.splitlines()[-1])


def spread(values):
  """Median, and the range."""
  return f"{np.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def compare(peers, names, folder, rounds, samples):
  """A table of speeds and memory: ratios are round by round."""
  found = {name: [] for name in names}
  for _ in range(rounds):
    for name in names:
      found[name].append(run(peers, name, "speed", folder, samples))
  print("| loader | samples/s | samples per CPU second | mixjax's / its own (CPU) | peak MiB |")
  print("|---|---|---|---|---|")
  for name, each in found.items():
    wall, cpu = ([figures[k] for figures in each] for k in ("per_second", "per_cpu_second"))
    ratios = [a["per_cpu_second"] / b for a, b in zip(found["mixjax"], cpu, strict=True)]
    peak = max(figures["peak_mib"] for figures in each)
    print(
      f"| {NAMES[name]} | {np.median(wall):.0f} | {np.median(cpu):.0f} | {spread(ratios)} "
      f"| {peak:.0f} |",
      flush=True,
    )


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--peers", required=True, help="Python of requirements-loaders.txt")
  parser.add_argument("--cells", type=int, default=50)
  parser.add_argument("--rows", type=int, default=1000)
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--samples", type=int, default=6400)
  parser.add_argument("--only", nargs="*", default=list(NAMES))
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    for kind in ("pictures", "text"):
      place = pathlib.Path(folder) / kind
      make_corpus(place, args.cells, args.rows, kind == "pictures")
      writers = [name for name in args.only if not name.startswith("grain")]
      ready = {name: run(args.peers, name, "write", place) is not None for name in writers}
      names = [name for name in args.only if ready.get(name, ready["mixjax"])]
      samples = args.samples if kind == "pictures" else 5 * args.samples
      print(f"\n{kind}, {args.rounds} rounds of {samples} samples\n")
      compare(args.peers, names, place, args.rounds, samples)
    print("\n| loader | 512 | 5,000 | 50,000 | variation at 50,000 | seconds to sample 1,000,000 |")
    print("|---|---|---|---|---|---|")
    for name in names:
      print(f"| {NAMES[name]} | {exactness(args.peers, name, place, args.rounds)} |", flush=True)


def exactness(peers, name, folder, rounds):
  """A row of the table of errors and of resuming."""
  found = run(peers, name, "order", folder)
  cells = [f"{found[end]['worst']:.1f}" for end in ("512", "5000", "50000")]
  cells.append(f"{100 * found['50000']['variation']:.3f}%")
  again = [run(peers, name, "resume", folder) for _ in range(rounds)]
  if again[0] is None:
    cells.append(f"replay, extrapolated: {found['seconds'] * FAR / 50_000:.0f}")
  else:
    seconds, cpu = ([x[k] for x in again] for k in ("resume_seconds", "resume_cpu"))
    saved = f"; of a state saved after {SAVED}" if again[0]["of_saved"] else ""
    cells.append(f"{spread(seconds)}, CPU {np.median(cpu):.2f}{saved}")
  return " | ".join(cells)


if __name__ == "__main__":
  if len(sys.argv) > 1 and sys.argv[1] in OURS:
    sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
    loader_peers.main(OURS)
  else:
    main()
