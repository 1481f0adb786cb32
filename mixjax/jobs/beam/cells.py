"""Cells written by TFDS's own Beam writer, one split a cell, and each of its files read back.

TFDS sorts what it writes by keys. A row's key is its number within its cell, in the order of the
corpus: so row n of a cell is the same on any number of workers, and the same that
`atlas.shards.write_cells` makes row n.
"""

import contextlib
import io
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Sequence

import apache_beam as beam
import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from etils import epath
from jaxtyping import Int
from tensorflow_datasets.core import registered

from mixjax.atlas import shards
from mixjax.atlas.addition import Addition
from mixjax.data import encode
from mixjax.jobs.beam.rows import Found, Shared
from mixjax.jobs.beam.workers import Workers
from mixjax.jobs.workdir import write_whole

_START, _CELL, _NUMBER = "start", "cell", "number"
_AT_ONCE = 16  # records


def write(
  addition: Addition,
  workers: Workers,
  shared: Shared,
  found: Found,
  cells: Sequence[str],
  cell: Int[np.ndarray, " n"],
  tokenizer: epath.Path,
) -> None:
  """Writes the rows of a corpus into an addition to a folder of cells.

  Args:
    addition: what is added to; what it needs before it is published is filled in.
    workers, shared, found: who reads and writes, and what the rows are.
    cells: names of cells, each with a row at least.
    cell: int32[n], for each row its place among them, or -1 for a row that is left out.
    tokenizer: a folder; its tokens are counted.
  """
  shared.save(_START, found.start)
  shared.save(_CELL, cell)
  shared.save(_NUMBER, _numbers(cell))
  staging = addition.partial / "tfds"
  builder = _Builder(shared, len(found.start) - 1, len(cells), data_dir=os.fspath(staging))
  tfds.disable_progress_bar()
  with contextlib.redirect_stdout(io.StringIO()):  # it tells of downloads: there are none
    builder.download_and_prepare(download_config=workers.download_config())
  files = []  # (cell, path)
  for number, name in enumerate(cells):
    for n, path in enumerate(builder.info.splits[_split(number)].filepaths):
      target = addition.file(name, n)
      os.replace(path, target)
      files.append((name, target))
  shutil.rmtree(staging)
  checked = [shared.folder / "checked" / f"{i:08d}.json" for i in range(len(files))]
  pieces = [(os.fspath(path), out) for (_, path), out in zip(files, checked, strict=True)]
  workers.each("read back", ReadBack(tokenizer), pieces)
  for (name, path), out in zip(files, checked, strict=True):
    entry = json.loads(out.read_text())
    addition.hashes[path] = entry.pop("sha256")
    addition.written.setdefault(name, []).append(entry)
  for number, name in enumerate(cells):
    read, wanted = sum(e["rows"] for e in addition.written[name]), int((cell == number).sum())
    if read != wanted:
      raise ValueError(f"cell {name!r} has {read} of its {wanted} rows: run the same command again")


def _numbers(cell: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
  """Of each row its number within its cell, from 1 on: TFDS cannot spread a greatest key of 0."""
  order = np.argsort(cell, kind="stable")
  of = cell[order]
  number = np.empty(len(cell), np.int64)
  number[order] = np.arange(len(cell)) - np.searchsorted(of, of) + 1
  return number


def _split(cell: int) -> str:
  return f"cell{cell}"


class _Rows(beam.DoFn):
  """Part of the corpus -> (key, fields) of its rows, each under the name of its cell's split."""

  def __init__(self, shared: Shared):
    self._shared = shared

  def process(self, part: int):
    mine = slice(*self._shared.load(_START)[part : part + 2])
    cells, numbers = (self._shared.load(name)[mine] for name in (_CELL, _NUMBER))
    rows = self._shared.examples([part])
    for row, cell, number in zip(rows, cells, numbers, strict=True):
      if cell >= 0:
        yield beam.pvalue.TaggedOutput(_split(cell), (int(number), shards.fields(row)))


class _CanonicalWriter(tfds.core.ExampleWriter):
  """Writes the bytes that `shards.write_cells` writes, whichever process serialised them."""

  def write(self, path, examples):
    return super().write(path, ((key, shards.canonical(record)) for key, record in examples))


with registered.skip_registration():

  class _Builder(tfds.core.GeneratorBasedBuilder):
    """All cells as one data set of TFDS's, which is never seen under this name."""

    name = "cells"
    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, shared: Shared, parts: int, cells: int, **where):
      self._shared, self._parts, self._cells = shared, parts, cells
      super().__init__(file_format="array_record", **where)

    def _info(self) -> tfds.core.DatasetInfo:
      # Sorted by the key itself rather than by its hash.
      return tfds.core.DatasetInfo(builder=self, features=shards.features(), disable_shuffling=True)

    def _split_generators(self, dl_manager, pipeline: beam.Pipeline) -> dict:
      splits = [_split(cell) for cell in range(self._cells)]
      rows = (
        pipeline
        | "parts" >> beam.Create(range(self._parts))
        | "spread" >> beam.Reshuffle()
        | "rows" >> beam.ParDo(_Rows(self._shared)).with_outputs(*splits)
      )
      return {split: rows[split] for split in splits}

    def _generate_examples(self):
      raise AssertionError("splits are made of a shared reading")

    def _example_writer(self) -> tfds.core.ExampleWriter:
      return _CanonicalWriter(self.info.file_format)


class ReadBack(beam.DoFn):
  """(file of records, where to say so) -> its rows, bytes, tokens and SHA-256, as read from it."""

  def __init__(self, tokenizer: epath.Path):
    self._tokenizer = tokenizer

  def setup(self):
    self._count: Callable[[str], int] = encode.Encoder(encode.load_tokenizer(self._tokenizer)).count

  def process(self, piece: tuple[str, epath.Path]):
    path, out = piece
    lengths, rows, size = shards.Lengths(self._count), 0, 0
    reader = ArrayRecordReader(path)
    total = reader.num_records()
    for first in range(0, total, _AT_ONCE):
      for record in reader.read(range(first, min(first + _AT_ONCE, total))):
        lengths.add(shards.parse(record))
        rows, size = rows + 1, size + len(record)
    reader.close()
    entry = {"rows": rows, "num_bytes": size} | lengths.entry()
    write_whole(out, json.dumps(entry | {"sha256": shards.sha256(pathlib.Path(path))}))
