"""Cells on disk: one TFDS dataset in ArrayRecord per concept x task, under one manifest.

A folder of cells looks like this, and plain TFDS reads it, with or without mixjax:

    cells/manifest.json
    cells/chart_bars/caption/1.0.0/{dataset_info.json, features.json, *.array_record-*}

    tfds.data_source("chart_bars/caption", data_dir="cells", split="train")

TFDS allows only letters, digits and underscores in a data set's name, so the manifest says which
dataset holds which cell. The bytes written depend on the examples and on nothing else.

A source that is added later is one more shard of each cell it has rows for, behind all others: rows
keep their numbers, and files that hold rows are never touched again.
"""

import functools
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
from tensorflow_datasets.proto import tf_example_pb2

from mixjax.atlas import manifest as manifests
from mixjax.atlas.manifest import (
  FORMAT,
  MANIFEST,
  DamagedCellsError,
  digest,
  read_manifest,
  sha256,
  verify,
)
from mixjax.corpus.example import Example, Turn
from mixjax.corpus.tasks import TASKS

__all__ = [
  "CellRows",
  "Cells",
  "DamagedCellsError",
  "dataset_name",
  "features",
  "open_cells",
  "read_manifest",
  "sha256",
  "verify",
  "write_cells",
]

_VERSION = "1.0.0"
# Without the number of shards: it grows, and files keep their names.
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}"
_TEXTS = ("key", "task", "domain", "label")


def features() -> tfds.features.FeaturesDict:
  """The TFDS features of a row."""
  text = tfds.features.Text()
  return tfds.features.FeaturesDict(
    {name: text for name in _TEXTS}
    | {
      "turns": tfds.features.Sequence({name: text for name in Turn._fields}),
      "image_keys": tfds.features.Sequence(text),
      "images": tfds.features.Sequence(tfds.features.Image(shape=(None, None, 3))),
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
  """One source's rows of one cell being written: its array records, and the token lengths seen."""

  def __init__(
    self,
    folder: pathlib.Path,
    split: str,
    token_count: Callable[[str], int] | None,
    source: str,
    before: Sequence[Mapping],
  ):
    """`before`: the manifest's entries of the shards that the cell has already."""
    folder.mkdir(parents=True)
    self.folder, self._split, self._token_count = folder, split, token_count
    self._source, self._before = source, before
    self._features = features()
    name = folder.parent.parent.name
    self._file = f"{name}-{split}.array_record-{len(before):05d}"
    # A group of one record is what makes random access cheap.
    self._records = ArrayRecordWriter(os.fspath(folder / self._file), "group_size:1")
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

  def close(self) -> list[dict]:
    """Closes the records, writes TFDS's metadata and returns the manifest's entries of all shards.

    An entry says whose rows they are, how many, in which file, and what TFDS counts as their bytes.
    """
    self._records.close()
    here = {"source": self._source, "rows": self.rows, "file": self._file, "num_bytes": self._bytes}
    if self._token_count is not None:
      for name, (total, longest) in self._tokens.items():
        here[f"{name}_tokens"] = {"sum": total, "max": longest}
    shards = [*self._before, here]
    template = tfds.core.ShardedFileTemplate(data_dir=self.folder, template=_TEMPLATE)
    split = tfds.core.SplitInfo(
      name=self._split,
      filename_template=template,
      shard_lengths=[shard["rows"] for shard in shards],
      num_bytes=sum(shard["num_bytes"] for shard in shards),
    )
    tfds.folder_dataset.write_metadata(
      data_dir=os.fspath(self.folder),
      features=self._features,
      split_infos=[split],
      filename_template=template,
      check_data=False,
    )
    return shards


def write_cells(
  examples: Iterable[Example],
  concept_of: Callable[[Example], str] | Mapping[str, str],
  folder: str | os.PathLike,
  split: str = "train",
  token_count: Callable[[str], int] | None = None,
  concepts: Sequence[str] = (),
  source: str = "",
) -> dict:
  """Writes every example into its cell `<concept>/<task>` and returns the manifest.

  The folder appears whole or not at all: everything is written beside it and renamed at the end.
  With a `source` the rows are added to a folder that is there, whole or not at all as well.

  Args:
    examples: rows; within a cell they keep the order in which they come.
    concept_of: an example's concept, as a function or as a mapping from `image_key`.
    folder: the folder to create, or to add to.
    split: the TFDS split's name.
    token_count: a text's length in tokens; where given, the manifest has each cell's mean and
      maximum lengths of prompts and answers.
    concepts: names to list even where no example falls under them.
    source: where the rows come from; a folder holds each source once.

  Raises:
    FileExistsError: the folder is already there and no source is named, or holds that source.
    ValueError: an unknown task, a concept with "/" in it, an image key without a concept, or
      another split than the folder has.
  """
  folder = pathlib.Path(folder)
  old = {"cells": {}, "sources": [], "split": split}
  if folder.exists():
    if not source:
      raise FileExistsError(
        f"{folder} already exists; remove it, write the cells elsewhere, or name the source to add"
      )
    old = manifests.settle(folder)
    if any(one["source"] == source for one in old["sources"]):
      raise FileExistsError(f"{folder} already holds the source {source!r}: give it another name")
    if old["split"] != split:
      raise ValueError(f"{folder} has the split {old['split']!r}; {split!r} cannot be added to it")
  partial = manifests.adding(folder)
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  # Names are given to known concepts first, so that they do not depend on the rows' order.
  names: dict[str, str] = {}
  for concept in (*(cell.split("/")[0] for cell in old["cells"]), *concepts):
    if concept not in names:
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
        before = old["cells"].get(cell, {}).get("shards", ())
        writers[cell] = _Writer(place, split, token_count, source, before)
      writers[cell].write(example)
    manifest = _manifest(names, writers, partial, old, source)
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    if folder.exists():
      manifests.publish(folder)
    else:
      os.replace(partial, folder)
  except BaseException:
    for writer in writers.values():
      writer.abandon()
    if folder.exists():
      manifests.settle(folder)
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
  names: Mapping[str, str],
  writers: Mapping[str, _Writer],
  root: pathlib.Path,
  old: Mapping,
  source: str,
) -> dict:
  """Closes every cell and lists all of concepts x tasks, empty cells included."""
  cells = {}
  for concept, name in names.items():
    for task in TASKS:
      cell = f"{concept}/{task}"
      cells[cell] = old["cells"].get(cell, {"rows": 0, "folder": None, "files": {}})
      if cell not in writers:
        continue
      shards = writers[cell].close()
      place = root / name / task / _VERSION
      files = {
        path.relative_to(root).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(place.iterdir())
      }
      cells[cell] = _entry(shards) | {
        "folder": f"{name}/{task}",
        "files": dict(sorted((cells[cell]["files"] | files).items())),
        "shards": shards,
      }
  added = {"source": source, "rows": sum(writer.rows for writer in writers.values())}
  manifest = {
    "format": FORMAT,
    "split": old["split"],
    "rows": sum(cell["rows"] for cell in cells.values()),
    "sources": [*old["sources"], added],
    "cells": cells,
  }
  return manifest | {"sha256": digest(manifest)}


def _entry(shards: Sequence[Mapping]) -> dict:
  """A cell's rows, and its mean and maximum lengths where all of its shards counted tokens."""
  rows = sum(shard["rows"] for shard in shards)
  entry = {"rows": rows}
  for name in ("prompt_tokens", "answer_tokens"):
    if all(name in shard for shard in shards):
      total = sum(shard[name]["sum"] for shard in shards)
      longest = max(shard[name]["max"] for shard in shards)
      entry[name] = {"mean": round(total / rows, 3), "max": longest}
  return entry


class CellRows(Sequence[Example]):
  """Random access to the rows of one cell; nothing is opened before the first row is asked for."""

  def __init__(self, files: Sequence[pathlib.Path], rows: int):
    self._files, self._rows = files, rows

  @functools.cached_property
  def _source(self) -> ArrayRecordDataSource:
    return ArrayRecordDataSource([os.fspath(path) for path in self._files])

  def __len__(self) -> int:
    return self._rows

  def __getitem__(self, row: int) -> Example:
    if not -self._rows <= row < self._rows:
      raise IndexError(f"row {row} of {self._rows}")
    # Read as the bytes they are, in an eighth of the time that TFDS's own reader takes. Pictures
    # stay encoded: whoever wants pixels decodes them, once.
    record = tf_example_pb2.Example.FromString(self._source[row % self._rows]).features.feature
    turns = (record[f"turns/{name}"].bytes_list.value for name in Turn._fields)
    return Example(
      turns=tuple(Turn(*(text.decode() for text in turn)) for turn in zip(*turns, strict=True)),
      image_keys=tuple(key.decode() for key in record["image_keys"].bytes_list.value),
      images=tuple(record["images"].bytes_list.value),
      **{name: record[name].bytes_list.value[0].decode() for name in _TEXTS},
    )


class Cells(Mapping[str, CellRows]):
  """Cell name -> its rows, empty cells included, in the manifest's order.

  `manifest` is the dict that `write_cells` returned; `rows` is {cell: number of rows}.
  """

  def __init__(self, folder: pathlib.Path, manifest: dict):
    self.folder, self.manifest = folder, manifest
    self.rows = {cell: entry["rows"] for cell, entry in manifest["cells"].items()}
    self._cells = {
      cell: CellRows(
        [folder / entry["folder"] / _VERSION / shard["file"] for shard in entry.get("shards", ())],
        entry["rows"],
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
