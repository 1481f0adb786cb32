"""How long every row of the cells is, found once and kept; broken records are found on the way.

A folder of lengths looks like this:

    lengths/index.json               which rows-... and ledger-... hold for which cells
    lengths/rows-<digest>.npy        int32[rows of all cells, 5], memory-mapped: see COLUMNS
    lengths/ledger-<digest>.jsonl    a line for each record replaced or shortened
    lengths/shards/<digest>.{npy,jsonl}  what was found in one shard of a cell

A shard's digest is of its file, of the tokenizer and of all limits. So a source that is added, or
scanning that was killed, costs no more than what is new; each file is written whole or not at all.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import multiprocessing
import os
import pathlib
import uuid
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int

from mixjax.atlas.shards import Cells
from mixjax.corpus import pixels
from mixjax.corpus.pixels import LIMITS, PictureLimits
from mixjax.data.bad_records import BadRecord, replacements
from mixjax.data.conversation import ConversationEncoder

FORMAT = 1
INDEX = "index.json"
# `source` is the row of the same cell that is read: itself, or the one that stands in for it.
COLUMNS = TOKENS, IMAGE_TOKENS, TILES, LOSS_TOKENS, SOURCE = range(5)
_CHUNK = 128  # rows that a worker measures at a time


@dataclasses.dataclass(frozen=True)
class MeasuredCells:
  """The cells, and how long each of their rows is.

  `rows` is {cell: number of rows}; cell i owns table[starts[i] : starts[i + 1]]. `report` holds by
  cell how many records were replaced and how many conversations shortened; `ledger` has a line for
  each. `fingerprint` is of everything that the table depends on.
  """

  cells: Cells
  encoder: ConversationEncoder
  limits: PictureLimits
  folder: pathlib.Path
  rows: dict[str, int]
  starts: Int[np.ndarray, " k_plus_1"]
  table: Int[np.ndarray, "n 5"]
  report: dict[str, dict[str, int]]
  ledger: pathlib.Path
  fingerprint: str


def measure_cells(
  cells: Cells,
  encoder: ConversationEncoder,
  folder: str | os.PathLike,
  limits: PictureLimits = LIMITS,
  decode: bool = True,
  workers: int = 0,
  max_bad_of_cell: float = 0.5,
  max_bad: float = 0.05,
) -> MeasuredCells:
  """Lengths of all rows, from `folder` as far as they are there.

  A record that cannot be used is replaced in place by the next good one of its cell. Where many
  hosts share a folder, let one of them go first.

  Args:
    cells: the rows.
    encoder: how they become tokens, and the room there is for them.
    folder: where lengths are kept.
    limits: what a picture may be.
    decode: whether each picture is read to its end. Without it only headers are: many times
      faster, but a truncated picture is then found when it is loaded.
    workers: processes to share the work; 0 does it in this one.
    max_bad_of_cell: the largest share of a cell's records that may be bad.
    max_bad: the largest share of all records that may be bad.

  Raises:
    ValueError: names a cell of which too many records are bad, or of which none is good, and the
      ledger that lists them.
  """
  folder = pathlib.Path(folder)
  (folder / "shards").mkdir(parents=True, exist_ok=True)
  shards = [shard for cell in cells for shard in _shards(cells, cell, encoder, limits, decode)]
  known = [(shard.cell, shard.start, shard.digest) for shard in shards]
  fingerprint = hashlib.sha256(json.dumps([FORMAT, cells.rows, known]).encode()).hexdigest()
  missing = [shard for shard in shards if not shard.place(folder).exists()]
  for shard, lengths, notes in _measured(cells, missing, encoder, limits, decode, workers):
    # The array last: it says that both are there.
    _write(shard.place(folder).with_suffix(".jsonl"), _lines(notes))
    _write(shard.place(folder), lengths)

  ledger = folder / f"ledger-{fingerprint[:16]}.jsonl"
  table = folder / f"rows-{fingerprint[:16]}.npy"
  index = {}
  if (folder / INDEX).exists():
    index = json.loads((folder / INDEX).read_text())
  if index.get("fingerprint") != fingerprint or not table.exists():
    report = _join(cells, shards, folder, table, ledger)
    index = {"fingerprint": fingerprint, "decode": decode, "cells": report}
    _write(folder / INDEX, (json.dumps(index, indent=2) + "\n").encode())
  _check_shares(cells.rows, index["cells"], max_bad_of_cell, max_bad, ledger)
  return MeasuredCells(
    cells=cells,
    encoder=encoder,
    limits=limits,
    folder=folder,
    rows=dict(cells.rows),
    starts=np.concatenate([[0], np.cumsum(list(cells.rows.values()), dtype=np.int64)]),
    table=np.load(table, mmap_mode="r"),
    report=index["cells"],
    ledger=ledger,
    fingerprint=fingerprint,
  )


@dataclasses.dataclass(frozen=True)
class _Shard:
  """The rows start ... stop - 1 of a cell, which are one file."""

  cell: str
  start: int
  stop: int
  digest: str

  def place(self, folder: pathlib.Path) -> pathlib.Path:
    return folder / "shards" / f"{self.digest[:32]}.npy"


def _shards(cells: Cells, cell: str, encoder, limits: PictureLimits, decode: bool) -> list[_Shard]:
  found, stop = [], 0
  entry = cells.manifest["cells"][cell]
  for shard in entry.get("shards", ()):
    (file,) = (info for name, info in entry["files"].items() if name.endswith(f"/{shard['file']}"))
    said = [FORMAT, file["sha256"], encoder.fingerprint, dataclasses.asdict(limits), decode]
    start, stop = stop, stop + shard["rows"]
    found.append(_Shard(cell, start, stop, hashlib.sha256(json.dumps(said).encode()).hexdigest()))
  return found


def _measured(
  cells: Cells, shards: list[_Shard], encoder, limits: PictureLimits, decode: bool, workers: int
) -> Iterator[tuple[_Shard, Int[np.ndarray, "n 4"], list[dict]]]:
  """(shard, lengths of its rows, notes on those bad or shortened), shard after shard.

  Notes count rows from the shard's first.
  """
  chunks = [
    [
      (shard.cell, start, min(start + _CHUNK, shard.stop))
      for start in range(shard.start, shard.stop, _CHUNK)
    ]
    for shard in shards
  ]
  work = list(itertools.chain.from_iterable(chunks))
  measure = functools.partial(_measure, cells, encoder, limits, decode)
  with contextlib.ExitStack() as stack:
    found = map(measure, work)
    if workers and work:
      context = multiprocessing.get_context("spawn")  # a fork would copy threads' locks
      pool = concurrent.futures.ProcessPoolExecutor(workers, context, _start, (measure,))
      found = stack.enter_context(pool).map(_work, work)
    for shard, parts in zip(shards, chunks, strict=True):
      lengths, notes = zip(*itertools.islice(found, len(parts)), strict=True)
      notes = [
        note | {"row": note["row"] - shard.start} for note in itertools.chain.from_iterable(notes)
      ]
      yield shard, np.concatenate(lengths), notes


def _start(measure):
  """In a worker process: the cells and the tokenizer travel once."""
  global _work_of_process
  _work_of_process = measure


def _work(chunk):
  return _work_of_process(chunk)


def _measure(
  cells: Cells,
  encoder: ConversationEncoder,
  limits: PictureLimits,
  decode: bool,
  chunk: tuple[str, int, int],
) -> tuple[Int[np.ndarray, "n 4"], list[dict]]:
  """Lengths of the rows start ... stop - 1 of a cell; zeros for a record that cannot be used."""
  cell, start, stop = chunk
  lengths = np.zeros((stop - start, SOURCE), np.int32)
  rows, examples, sizes, notes = [], [], [], []
  for row in range(start, stop):
    key = ""
    try:
      example = cells[cell][row]
      key = example.key
      size = [pixels.measure(image, limits, decode) for image in example.images]
    except ValueError as error:  # a BadPicture, or a record that is no Example
      notes.append({"row": row, "key": key, "bad": _reason(error)})
      continue
    rows.append(row)
    examples.append(example)
    sizes.append(size)
  for row, example, found in zip(rows, examples, encoder.encode_many(examples, sizes), strict=True):
    if isinstance(found, BadRecord):
      notes.append({"row": row, "key": example.key, "bad": str(found)})
      continue
    tiles = sum(map(encoder.geometry.num_tiles, found.sizes))
    image_tokens = sum(map(encoder.geometry.num_tokens, found.sizes))
    lengths[row - start] = len(found.ids), image_tokens, tiles, found.loss_mask.sum()
    dropped = len(example.turns) - found.turns
    if dropped or found.cut:
      kept = {"turns_dropped": dropped, "tokens_cut": found.cut}
      notes.append({"row": row, "key": example.key, "shortened": kept})
  return lengths, sorted(notes, key=lambda note: note["row"])


def _reason(error: ValueError) -> str:
  return "bad UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)


def _join(
  cells: Cells,
  shards: list[_Shard],
  folder: pathlib.Path,
  table: pathlib.Path,
  ledger: pathlib.Path,
) -> dict[str, dict[str, int]]:
  """Writes the table and the ledger of all cells; returns the report."""
  lengths = {cell: [np.zeros((0, SOURCE), np.int32)] for cell in cells}
  notes = {cell: [] for cell in cells}
  for shard in shards:
    lengths[shard.cell].append(np.load(shard.place(folder)))
    for line in shard.place(folder).with_suffix(".jsonl").read_text().splitlines():
      note = json.loads(line)
      notes[shard.cell].append(note | {"row": note["row"] + shard.start})
  report, parts, lines = {}, [], []
  for cell, rows in cells.rows.items():
    faults = {note["row"]: note["bad"] for note in notes[cell] if "bad" in note}
    replaced = replacements(cell, rows, faults, functools.partial(_key, cells, cell))
    shortened = [note for note in notes[cell] if "shortened" in note]
    lines += replaced.values()
    lines += [
      {"cell": cell, "row": note["row"], "key": note["key"], "reason": "shortened"}
      | note["shortened"]
      for note in shortened
    ]
    report[cell] = {"rows": rows, "replaced": len(replaced), "shortened": len(shortened)}
    source = np.arange(rows, dtype=np.int32)
    source[list(replaced)] = [line["replaced_by_row"] for line in replaced.values()]
    parts.append(np.column_stack([np.concatenate(lengths[cell])[source], source]))
  _write(ledger, _lines(lines))
  _write(table, np.concatenate(parts))
  return report


def _key(cells: Cells, cell: str, row: int) -> str:
  """A record's key, "" where the record itself cannot be read."""
  try:
    return cells[cell][row].key
  except ValueError:
    return ""


def _check_shares(rows, report, max_bad_of_cell: float, max_bad: float, ledger: pathlib.Path):
  bad = {cell: entry["replaced"] for cell, entry in report.items()}
  worst = max(bad, key=lambda cell: bad[cell] / max(rows[cell], 1), default=None)
  if worst is not None and bad[worst] > max_bad_of_cell * rows[worst]:
    raise ValueError(
      f"cell {worst!r}: {bad[worst]} of its {rows[worst]} records cannot be used, over a share of "
      f"{max_bad_of_cell:g}; {ledger} says why. Repair them, or raise max_bad_of_cell"
    )
  if sum(bad.values()) > max_bad * sum(rows.values()):
    reasons = collections.Counter(
      line["reason"].split(":")[0]
      for line in map(json.loads, ledger.read_text().splitlines())
      if "replaced_by" in line
    )
    common = ", ".join(f"{count} x {reason}" for reason, count in reasons.most_common(3))
    raise ValueError(
      f"{sum(bad.values())} of {sum(rows.values())} records cannot be used ({common}, ...), over a "
      f"share of {max_bad:g}; {ledger} says why. Repair them, or raise max_bad"
    )


def _lines(notes) -> bytes:
  return "".join(json.dumps(note) + "\n" for note in notes).encode()


def _write(path: pathlib.Path, content: bytes | np.ndarray):
  """Whole or not at all, whoever else may write the same."""
  partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
  with open(partial, "wb") as file:
    if isinstance(content, bytes):
      file.write(content)
    else:
      np.save(file, content)
  os.replace(partial, path)
