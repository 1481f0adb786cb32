"""Packed batches from pixels, as a pure function of (weights, cells, seed, shape, step).

The sampler says which row of which cell the n-th sample is, the lengths say which samples share a
row of the batch (`data.packing`), and what a host keeps is read, decoded, cut and tokenised when it
is asked for. The state of the stream is one integer, the step.
"""

import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping

import grain
import numpy as np
from jaxtyping import Int

from mixjax.data import tiles as tiles_lib
from mixjax.data.lengths import (
  IMAGE_TOKENS,
  LOSS_TOKENS,
  SOURCE,
  TILES,
  TOKENS,
  MeasuredCells,
)
from mixjax.data.packed import PADDING, PackedShape
from mixjax.data.packing import BLOCK, Packing
from mixjax.data.records import Records
from mixjax.data.sampler import Sampler
from mixjax.data.stages import Stages

_CHUNK = 1 << 16  # samples counted at a time


class PackedLoader:
  """The batches of one run; see `batch`."""

  def __init__(
    self,
    measured: MeasuredCells,
    weights: Mapping[str, float] | Stages,
    seed: int,
    shape: PackedShape,
    block: int = BLOCK,
    max_bad: float = 0.01,
    failures: str | os.PathLike | None = None,
  ):
    """
    Args:
      measured: the cells and their lengths; their encoder's limits must be within `shape`.
      weights: shares of samples by cell, or stages of such, as `Sampler` takes them.
      seed: of the order of rows.
      shape: what a global batch looks like.
      block: samples packed together, after each of which the mixture is exact.
      max_bad: as `Records` takes it, and `failures` too; by default that file is `failures.jsonl`
        beside the lengths.

    Raises ValueError if the cells were measured for larger rows or for other tiles.
    """
    encoder = measured.encoder
    room = (shape.length, shape.image_tokens, shape.row_tiles)
    measured_for = (encoder.length, encoder.image_tokens, encoder.tiles)
    if any(np.greater(measured_for, room)) or encoder.geometry.tile != shape.side:
      raise ValueError(
        f"the cells were measured for rows of {measured_for} tokens, image tokens and tiles of "
        f"{encoder.geometry.tile} pixels; {shape} has room for {room}: measure them for this shape"
      )
    self.measured, self.shape = measured, shape
    self.records = Records(measured, failures or measured.folder / "failures.jsonl", max_bad)
    self.sampler = Sampler(weights, measured.rows, seed)
    self.packing = Packing(self._lengths, shape, seed, block, self._cache(seed, block))

  def _cache(self, seed: int, block: int) -> pathlib.Path:
    """The file for what is known of the packing of these samples."""
    stages = [[stage.start, dict(stage.weights)] for stage in self.sampler.stages]
    room = (self.shape.length, self.shape.image_tokens, self.shape.row_tiles)
    identity = json.dumps([self.measured.fingerprint, stages, seed, room, block])
    name = hashlib.sha256(identity.encode()).hexdigest()[:32]
    return self.measured.folder / "packed" / f"{name}.npy"

  def batch(
    self, step: int, process_index: int = 0, process_count: int = 1
  ) -> dict[str, np.ndarray]:
    """Batch `step`, or one host's part of it: the parts in host order make up the batch.

    Returns the arrays of `PackedShape.arrays`, for `shape.part(process_count)`. Raises ValueError
    unless the hosts divide the groups, and where too many records fail.
    """
    shape = self.shape.part(process_count)
    first = int(step) * self.shape.rows + process_index * shape.rows
    rows = [self._flat(positions) for positions in self.packing.rows(first, shape.rows)]
    loaded = iter(self.records.load(np.concatenate(rows)))
    rows = [[one for one in (next(loaded) for _ in row) if one] for row in rows]

    encoder = self.measured.encoder
    arrays = {name: np.zeros(size, dtype) for name, (dtype, size) in shape.arrays().items()}
    arrays["ids"][:] = encoder.pad_id
    arrays["segments"][:] = PADDING
    for i, row in enumerate(rows):
      end = 0
      for segment, (said, _) in enumerate(row, start=1):
        start, end = end, end + len(said.ids)
        arrays["ids"][i, start:end] = said.ids
        arrays["positions"][i, start:end] = np.arange(end - start)
        arrays["segments"][i, start:end] = segment
        arrays["loss_mask"][i, start:end] = said.loss_mask
    arrays["index"] = encoder.geometry.index(
      [[size for said, _ in row for size in said.sizes] for row in rows],
      shape.image_tokens,
      shape.groups,
    )
    arrays["tiles"] = tiles_lib.stack(
      [[tiles for _, shown in row for tiles in shown] for row in rows], arrays["tiles"].shape
    )
    return arrays

  def dataset(
    self,
    steps: int,
    start: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    threads: int = 2,
    ahead: int = 2,
  ) -> grain.IterDataset:
    """The batches start ... start + steps - 1 in order, prepared ahead.

    Args:
      steps: how many batches.
      start: the first.
      process_index: which host this is.
      process_count: how many hosts there are.
      workers: processes that prepare batches; 0 does it in this one. They need absl's flags parsed.
      threads: batches under way at a time, in each process.
      ahead: batches ready before they are asked for, in each process.
    """
    self.packing.locate(start * self.shape.rows)  # found once, not in every worker
    self.packing.keep()
    batch = functools.partial(self.batch, process_index=process_index, process_count=process_count)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(ahead, threads))
    batches = grain.MapDataset.range(start, start + steps).map(batch).to_iter_dataset(options)
    if workers:
      processes = grain.MultiprocessingOptions(workers, per_worker_buffer_size=1)
      batches = batches.mp_prefetch(processes)
    return batches

  def change(self, step: int, weights: Mapping[str, float]) -> int:
    """New weights from about batch `step` on, for mixers that find them during the run.

    They hold from `start_of` that step on, which is returned. A dataset that is being read keeps to
    the old weights: make another, from `step` on. Raises ValueError as `Sampler.append` does.
    """
    start = self.start_of(step)
    self.append(start, weights)
    return start

  def start_of(self, step: int) -> int:
    """The first sample of the first block of which no batch before `step` has a row."""
    block, row = self.packing.locate(step * self.shape.rows)
    return (block + (row > 0)) * self.packing.block

  def step_of(self, sample: int, steps: int) -> int | None:
    """The first batch with rows of a sample's block; None where the first `steps` have none."""
    block = sample // self.packing.block
    if self.packing.reach(block, steps * self.shape.rows):
      return None
    return self.packing.before(block) // self.shape.rows

  def append(self, start: int, weights: Mapping[str, float]):
    """New weights from sample `start` on; a loader made with this one's `sampler.stages` makes the
    same batches. Rows of the block of that sample, and of later ones, are others then.

    Raises ValueError as `Sampler.append` does.
    """
    self.packing.keep()
    self.sampler.append(start, weights)
    block = self.packing.block
    self.packing.forget(start // block, self._cache(self.sampler.seed, block))

  def counts(self, steps: int) -> dict[str, dict[str, float]]:
    """What the first `steps` batches hold of each cell.

    By cell: `requested` (what the weights ask of so many samples, a real number), `realised`
    samples, `epochs` (realised samples per row), `tokens`, `image_tokens`, `loss_tokens`, and
    `replaced`: the samples among them that stand in for a bad record. Over all hosts, as the cells
    were measured.
    """
    columns = {"tokens": TOKENS, "image_tokens": IMAGE_TOKENS, "loss_tokens": LOSS_TOKENS}
    tally = {
      name: np.zeros(len(self.measured.rows), np.int64)
      for name in ("realised", *columns, "replaced")
    }
    samples = 0
    for positions in self._positions(steps * self.shape.rows):
      flat = self._flat(positions)
      cell = self.measured.cell_of(flat)
      samples += len(positions)
      np.add.at(tally["realised"], cell, 1)
      for name, column in columns.items():
        np.add.at(tally[name], cell, self.measured.table[flat, column])
      bad = self.measured.table[flat, SOURCE] != flat - self.measured.starts[cell]
      np.add.at(tally["replaced"], cell, bad)
    requested = self.sampler.quotas(samples)
    return {
      name: {"requested": float(requested[i]), "epochs": tally["realised"][i] / max(rows, 1)}
      | {counted: int(values[i]) for counted, values in tally.items()}
      for i, (name, rows) in enumerate(self.measured.rows.items())
    }

  def fill(self, steps: int) -> dict[str, float]:
    """The share of all places that the first `steps` batches use: of `tokens`, of `image_tokens`
    (the rest of the index says nothing) and of `tiles`, whose empty slots are computed too."""
    used = np.zeros(3, np.int64)
    for positions in self._positions(steps * self.shape.rows):
      lengths = self.measured.table[self._flat(positions)][:, [TOKENS, IMAGE_TOKENS, TILES]]
      used += lengths.sum(axis=0, dtype=np.int64)
    shape = self.shape
    places = (
      shape.rows * shape.length,
      shape.rows * shape.image_tokens,
      shape.groups * shape.tiles,
    )
    return {
      name: float(count / (steps * size))
      for name, count, size in zip(("tokens", "image_tokens", "tiles"), used, places, strict=True)
    }

  def _positions(self, rows: int):
    """The samples of the first `rows` rows, a bounded number at a time."""
    before, rest = self.packing.samples(rows)
    for start in range(0, before, _CHUNK):
      yield np.arange(start, min(start + _CHUNK, before))
    yield rest

  def _lengths(self, start: int, count: int) -> Int[np.ndarray, "n 3"]:
    flat = self._flat(np.arange(start, start + count))
    return self.measured.table[flat][:, [TOKENS, IMAGE_TOKENS, TILES]]

  def _flat(self, positions: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Where in the table the samples at some positions of the run are."""
    if not len(positions):
      return positions
    first = int(positions.min())
    cell, row = self.sampler.rows(first, int(positions.max()) - first + 1)
    return (self.measured.starts[cell] + row)[positions - first]
