"""How long every row of the cells is, found once and kept; broken records are found on the way.

A folder of lengths looks like this:

    lengths/index.json               which rows-... and ledger-... hold for which cells
    lengths/rows-<digest>.npy        int32[rows of all cells, 5], memory-mapped: see COLUMNS
    lengths/ledger-<digest>.jsonl    a line for each record replaced or shortened
    lengths/shards/<digest>.{npy,jsonl}  what was found in one shard of a cell

A shard's digest is of its file, of the tokenizer and of all limits. So a source that is added, or
scanning that was killed, costs no more than what is new; each file is written whole or not at all.
How rows are measured is `data.measuring`'s.
"""

import collections
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import uuid

import numpy as np
from jaxtyping import Int

from mixjax.atlas.shards import Cells
from mixjax.corpus.pixels import LIMITS, PictureLimits
from mixjax.data.bad_records import none_good, replacements
from mixjax.data.conversation import ConversationEncoder
from mixjax.data.measuring import MEASURED, measure_spans

FORMAT = 1
INDEX = "index.json"
# `source` is the row of the same cell that is read: itself, or the one that stands in for it.
COLUMNS = TOKENS, IMAGE_TOKENS, TILES, LOSS_TOKENS, SOURCE = (*MEASURED, len(MEASURED))


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

  def cell_of(self, flat: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """The numbers of the cells that own some places of the table."""
    return np.searchsorted(self.starts, flat, side="right") - 1


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
  spans = [(shard.cell, shard.start, shard.stop) for shard in missing]
  found = measure_spans(cells, encoder, limits, decode, spans, workers)
  for shard, (lengths, notes) in zip(missing, found, strict=True):
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


def _join(
  cells: Cells,
  shards: list[_Shard],
  folder: pathlib.Path,
  table: pathlib.Path,
  ledger: pathlib.Path,
) -> dict[str, dict[str, int]]:
  """Writes the ledger and the table of all cells; returns the report."""
  lengths = {cell: [np.zeros((0, SOURCE), np.int32)] for cell in cells}
  notes = {cell: [] for cell in cells}
  for shard in shards:
    lengths[shard.cell].append(np.load(shard.place(folder)))
    for line in shard.place(folder).with_suffix(".jsonl").read_text().splitlines():
      note = json.loads(line)
      notes[shard.cell].append(note | {"row": note["row"] + shard.start})
  report, replaced, lines = {}, {}, []
  for cell, rows in cells.rows.items():
    faults = {note["row"]: note["bad"] for note in notes[cell] if "bad" in note}
    replaced[cell] = replacements(cell, rows, faults, functools.partial(_key, cells, cell))
    shortened = [note for note in notes[cell] if "shortened" in note]
    lines += replaced[cell].values()
    lines += [
      {"cell": cell, "row": note["row"], "key": note["key"], "reason": "shortened"}
      | note["shortened"]
      for note in shortened
    ]
    report[cell] = {"rows": rows, "replaced": len(replaced[cell]), "shortened": len(shortened)}
  _write(ledger, _lines(lines))  # first: it says why where the rest cannot be
  parts = []
  for cell, rows in cells.rows.items():
    if rows and len(replaced[cell]) == rows:
      raise ValueError(f"{none_good(cell, replaced[cell])}; {ledger} lists them")
    source = np.arange(rows, dtype=np.int32)
    source[list(replaced[cell])] = [line["replaced_by_row"] for line in replaced[cell].values()]
    parts.append(np.column_stack([np.concatenate(lengths[cell])[source], source]))
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
