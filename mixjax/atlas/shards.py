"""Cells on disk: one TFDS dataset in ArrayRecord per concept x task, under one manifest.

A folder of cells looks like this, and plain TFDS reads it, with or without mixjax:

    cells/manifest.json
    cells/chart_bars/caption/1.0.0/{dataset_info.json, features.json, *.array_record-*}

    tfds.data_source("chart_bars/caption", data_dir="cells", split="train")

TFDS allows only letters, digits and underscores in a data set's name, so the manifest says which
dataset holds which cell. The bytes written depend on the examples and on nothing else.
"""

import functools
import hashlib
import io
import json
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from mixjax.corpus.example import Example, Turn
from mixjax.corpus.tasks import TASKS

FORMAT = 2
MANIFEST = "manifest.json"
_VERSION = "1.0.0"
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_TEXTS = ("key", "task", "domain", "label")
_DECODED = tfds.features.Image(shape=(None, None, 3))
_ENCODED = tfds.features.Text()  # the same bytes on disk


class DamagedCellsError(ValueError):
  """A file of a cells folder is missing or is not what was written."""


def features(image: tfds.features.FeatureConnector = _DECODED) -> tfds.features.FeaturesDict:
  """The TFDS features of a row, whose pictures are read as `image` says."""
  text = tfds.features.Text()
  return tfds.features.FeaturesDict(
    {name: text for name in _TEXTS}
    | {
      "turns": tfds.features.Sequence({name: text for name in Turn._fields}),
      "image_keys": tfds.features.Sequence(text),
      "images": tfds.features.Sequence(image),
    }
  )


def dataset_name(concept: str, taken: Iterable[str] = ()) -> str:
  """A valid TFDS name for a concept that none of `taken` has yet: "3d-maps" becomes "c_3d_maps"."""
  name = re.sub(r"[^a-z0-9_]", "_", concept.lower())
  name = name if name[:1].isalpha() else f"c_{name}"
  taken, candidate, suffix = set(taken), name, 2
  while candidate in taken:
    candidate, suffix = f"{name}_{suffix}", suffix + 1
  return candidate


class _Writer:
  """One cell being written: its array records, and the token lengths seen."""

  def __init__(self, folder: pathlib.Path, split: str, token_count: Callable[[str], int] | None):
    folder.mkdir(parents=True)
    self.folder, self._split, self._token_count = folder, split, token_count
    self._features = features()
    name = folder.parent.parent.name
    path = folder / f"{name}-{split}.array_record-00000-of-00001"
    # A group of one record is what makes random access cheap.
    self._records = ArrayRecordWriter(os.fspath(path), "group_size:1")
    self.rows = self._bytes = 0
    self._tokens = {"prompt": [0, 0], "answer": [0, 0]}  # sum and maximum

  def write(self, example: Example):
    row = {name: getattr(example, name) for name in (*_TEXTS, "image_keys")}
    row["turns"] = [turn._asdict() for turn in example.turns]
    row["images"] = [io.BytesIO(image) for image in example.images]
    record = self._features.serialize_example(self._features.encode_example(row))
    self._records.write(record)
    self.rows += 1
    self._bytes += len(record)
    if self._token_count is not None:
      for name, tally in self._tokens.items():
        length = sum(self._token_count(getattr(turn, name)) for turn in example.turns)
        tally[0] += length
        tally[1] = max(tally[1], length)

  def abandon(self):
    """Lets go of the file, for a folder that is about to be removed."""
    if self._records.is_open():
      self._records.close()

  def close(self) -> dict:
    """Closes the records, writes TFDS's metadata and returns the cell's manifest entry."""
    self._records.close()
    split = tfds.core.SplitInfo(name=self._split, shard_lengths=[self.rows], num_bytes=self._bytes)
    tfds.folder_dataset.write_metadata(
      data_dir=os.fspath(self.folder),
      features=self._features,
      split_infos=[split],
      filename_template=_TEMPLATE,
      check_data=False,
    )
    entry = {"rows": self.rows}
    if self._token_count is not None:
      for name, (total, longest) in self._tokens.items():
        entry[f"{name}_tokens"] = {"mean": round(total / self.rows, 3), "max": longest}
    return entry


def write_cells(
  examples: Iterable[Example],
  concept_of: Callable[[Example], str] | Mapping[str, str],
  folder: str | os.PathLike,
  split: str = "train",
  token_count: Callable[[str], int] | None = None,
  concepts: Sequence[str] = (),
) -> dict:
  """Writes every example into its cell `<concept>/<task>` and returns the manifest.

  The folder appears whole or not at all: everything is written beside it and renamed at the end.

  Args:
    examples: rows; within a cell they keep the order in which they come.
    concept_of: an example's concept, as a function or as a mapping from `image_key`.
    folder: the folder to create.
    split: the TFDS split's name.
    token_count: a text's length in tokens; where given, the manifest has each cell's mean and
      maximum lengths of prompts and answers.
    concepts: names to list even where no example falls under them.

  Raises:
    FileExistsError: the folder is already there.
    ValueError: an unknown task, a concept with "/" in it, or an image key without a concept.
  """
  folder = pathlib.Path(folder)
  if folder.exists():
    raise FileExistsError(f"{folder} already exists; remove it, or write the cells elsewhere")
  partial = folder.with_name(f".{folder.name}.partial")
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  # Names are given to declared concepts first, so that they do not depend on the rows' order.
  names: dict[str, str] = {}
  for concept in concepts:
    names[concept] = dataset_name(concept, names.values())
  writers: dict[str, _Writer] = {}
  try:
    for example in examples:
      concept = _concept(example, concept_of)
      if concept not in names:
        names[concept] = dataset_name(concept, names.values())
      cell = f"{concept}/{example.task}"
      if cell not in writers:
        place = partial / names[concept] / example.task / _VERSION
        writers[cell] = _Writer(place, split, token_count)
      writers[cell].write(example)
    manifest = _manifest(names, writers, partial, split)
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    os.replace(partial, folder)
  except BaseException:
    for writer in writers.values():
      writer.abandon()
    shutil.rmtree(partial, ignore_errors=True)
    raise
  return manifest


def _concept(example: Example, concept_of: Callable[[Example], str] | Mapping[str, str]) -> str:
  if example.task not in TASKS:
    raise ValueError(
      f"row {example.key!r} has the unknown task {example.task!r}; tasks are {', '.join(TASKS)}"
    )
  if callable(concept_of):
    concept = concept_of(example)
  elif example.image_key in concept_of:
    concept = concept_of[example.image_key]
  else:
    raise ValueError(
      f"row {example.key!r}: its image {example.image_key!r} has no concept; leave out the row or "
      "assign the image"
    )
  if not concept or "/" in concept:
    raise ValueError(
      f"row {example.key!r} has the concept {concept!r}: a name may not be empty or hold '/'"
    )
  return concept


def _manifest(
  names: Mapping[str, str], writers: Mapping[str, _Writer], root: pathlib.Path, split: str
) -> dict:
  """Closes every cell and lists all of concepts x tasks, empty cells included."""
  cells = {}
  for concept, name in names.items():
    for task in TASKS:
      cell = f"{concept}/{task}"
      if cell not in writers:
        cells[cell] = {"rows": 0, "folder": None, "files": {}}
        continue
      entry = writers[cell].close()
      place = root / name / task / _VERSION
      files = {
        path.relative_to(root).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(place.iterdir())
      }
      cells[cell] = entry | {"folder": f"{name}/{task}", "files": files}
  manifest = {
    "format": FORMAT,
    "split": split,
    "rows": sum(cell["rows"] for cell in cells.values()),
    "cells": cells,
  }
  return manifest | {"sha256": _digest(manifest)}


def sha256(path: pathlib.Path) -> str:
  """Hex digest of a file's bytes."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(manifest: Mapping) -> str:
  """Of the manifest's own content, its "sha256" left out."""
  content = {key: value for key, value in manifest.items() if key != "sha256"}
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: str | os.PathLike) -> dict:
  """The manifest of a cells folder. Raises DamagedCellsError where it was changed or is no JSON."""
  path = pathlib.Path(folder) / MANIFEST
  if not path.exists():
    raise FileNotFoundError(f"{path} is missing: {folder} is not a folder of cells")
  try:
    manifest = json.loads(path.read_text())
    intact = manifest["sha256"] == _digest(manifest)
  except (ValueError, KeyError, TypeError):
    intact = False
  if not intact:
    raise DamagedCellsError(f"{path} is not what was written; write the cells again")
  if manifest["format"] != FORMAT:
    raise ValueError(f"{path} has format {manifest['format']}, this code reads format {FORMAT}")
  return manifest


def verify(folder: str | os.PathLike) -> dict:
  """Checks every file against the manifest, which it returns.

  Raises:
    DamagedCellsError: names the first file that is missing or whose bytes changed, and its cell.
  """
  folder = pathlib.Path(folder)
  manifest = read_manifest(folder)
  for cell, entry in manifest["cells"].items():
    for name, written in entry["files"].items():
      path = folder / name
      if not path.exists():
        problem = "is missing"
      elif path.stat().st_size != written["bytes"]:
        problem = f"has {path.stat().st_size} bytes, {written['bytes']} were written"
      elif sha256(path) != written["sha256"]:
        problem = "has changed since it was written (its checksum differs)"
      else:
        continue
      raise DamagedCellsError(f"{path} of cell {cell!r} {problem}; write the cells again")
  return manifest


class CellRows(Sequence[Example]):
  """Random access to the rows of one cell; nothing is opened before the first row is asked for."""

  def __init__(self, folder: pathlib.Path | None, split: str, rows: int):
    self._folder, self._split, self._rows = folder, split, rows

  @functools.cached_property
  def _source(self) -> ArrayRecordDataSource:
    split = tfds.builder_from_directory(os.fspath(self._folder)).info.splits[self._split]
    return ArrayRecordDataSource([os.fspath(path) for path in split.filepaths])

  def __len__(self) -> int:
    return self._rows

  def __getitem__(self, row: int) -> Example:
    if not -self._rows <= row < self._rows:
      raise IndexError(f"row {row} of {self._rows}")
    # Pictures stay encoded: whoever wants pixels decodes them, once.
    record = _row_features().deserialize_example_np(self._source[row % self._rows])
    turns = zip(*(record["turns"][name] for name in Turn._fields), strict=True)
    return Example(
      turns=tuple(Turn(*(text.decode() for text in turn)) for turn in turns),
      image_keys=tuple(key.decode() for key in record["image_keys"]),
      images=tuple(record["images"]),
      **{name: record[name].decode() for name in _TEXTS},
    )


@functools.cache
def _row_features() -> tfds.features.FeaturesDict:
  return features(_ENCODED)


class Cells(Mapping[str, CellRows]):
  """Cell name -> its rows, empty cells included, in the manifest's order.

  `manifest` is the dict that `write_cells` returned; `rows` is {cell: number of rows}.
  """

  def __init__(self, folder: pathlib.Path, manifest: dict):
    self.folder, self.manifest = folder, manifest
    self.rows = {cell: entry["rows"] for cell, entry in manifest["cells"].items()}
    self._cells = {
      cell: CellRows(
        entry["folder"] and folder / entry["folder"] / _VERSION, manifest["split"], entry["rows"]
      )
      for cell, entry in manifest["cells"].items()
    }

  def __getitem__(self, cell: str) -> CellRows:
    return self._cells[cell]

  def __iter__(self) -> Iterator[str]:
    return iter(self._cells)

  def __len__(self) -> int:
    return len(self._cells)


def open_cells(folder: str | os.PathLike) -> Cells:
  """Opens a folder that `write_cells` made; checks the manifest (use `verify` for the files)."""
  folder = pathlib.Path(folder)
  return Cells(folder, read_manifest(folder))
