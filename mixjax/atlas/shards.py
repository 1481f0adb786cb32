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

import bisect
import io
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from mixjax.atlas.addition import VERSION, adding, dataset_name
from mixjax.atlas.cell_files import OpenFiles, RecordFiles
from mixjax.atlas.manifest import DamagedCellsError, read_manifest, sha256, verify
from mixjax.corpus.example import Example, Turn
from mixjax.corpus.tasks import TASKS

__all__ = [
  "CellRows",
  "Cells",
  "DamagedCellsError",
  "Lengths",
  "canonical",
  "dataset_name",
  "features",
  "fields",
  "open_cells",
  "parse",
  "read_manifest",
  "sha256",
  "verify",
  "write_cells",
]

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


def fields(example: Example) -> dict:
  """An example as those features encode it."""
  row = {name: getattr(example, name) for name in (*_TEXTS, "image_keys")}
  row["turns"] = [turn._asdict() for turn in example.turns]
  row["images"] = [io.BytesIO(image) for image in example.images]
  return row


def canonical(record: bytes) -> bytes:
  """The same record with its fields in the order of their names, which otherwise differs from
  process to process.
  """
  return tf_example_pb2.Example.FromString(record).SerializeToString(deterministic=True)


def parse(record: bytes) -> Example:
  """The example of a record. Pictures stay encoded: whoever wants pixels decodes them, once."""
  # Read as the bytes they are, in an eighth of the time that TFDS's own reader takes.
  held = tf_example_pb2.Example.FromString(record).features.feature
  turns = (held[f"turns/{name}"].bytes_list.value for name in Turn._fields)
  return Example(
    turns=tuple(Turn(*(text.decode() for text in turn)) for turn in zip(*turns, strict=True)),
    image_keys=tuple(key.decode() for key in held["image_keys"].bytes_list.value),
    images=tuple(held["images"].bytes_list.value),
    **{name: held[name].bytes_list.value[0].decode() for name in _TEXTS},
  )


class Lengths:
  """Sums and maxima of the tokens of rows' prompts and answers."""

  def __init__(self, token_count: Callable[[str], int]):
    self._count = token_count
    self._tokens = {"prompt": [0, 0], "answer": [0, 0]}  # sum and maximum

  def add(self, example: Example):
    for name, tally in self._tokens.items():
      length = sum(self._count(getattr(turn, name)) for turn in example.turns)
      tally[0] += length
      tally[1] = max(tally[1], length)

  def entry(self) -> dict:
    """As the manifest has them of a shard."""
    return {
      f"{name}_tokens": {"sum": total, "max": longest}
      for name, (total, longest) in self._tokens.items()
    }


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
  of_row = features()
  cells: dict[str, _Tally] = {}
  with adding(folder, split, of_row, concepts, source) as addition:
    files = RecordFiles(addition.partial)
    try:
      for example in examples:
        cell = f"{_concept(example, concept_of)}/{example.task}"
        if cell not in cells:
          cells[cell] = _Tally(addition.file(cell, 0), token_count)
        record = canonical(of_row.serialize_example(of_row.encode_example(fields(example))))
        cells[cell].add(example, record)
        files.write(cells[cell].path, record)
      files.close()
      addition.written = {cell: [tally.entry()] for cell, tally in cells.items()}
    finally:
      files.abandon()
  return addition.manifest


class _Tally:
  """One source's rows of one cell, counted as they are written."""

  def __init__(self, path: pathlib.Path, token_count: Callable[[str], int] | None):
    self.path, self._rows, self._bytes = path, 0, 0
    self._lengths = None if token_count is None else Lengths(token_count)

  def add(self, example: Example, record: bytes):
    self._rows += 1
    self._bytes += len(record)
    if self._lengths is not None:
      self._lengths.add(example)

  def entry(self) -> dict:
    """How many rows there are, what TFDS counts as their bytes, and their tokens."""
    entry = {"rows": self._rows, "num_bytes": self._bytes}
    return entry if self._lengths is None else entry | self._lengths.entry()


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


class CellRows(Sequence[Example]):
  """Random access to the rows of one cell; nothing is opened before the first row is asked for."""

  def __init__(self, files: Mapping[pathlib.Path, int], opened: OpenFiles):
    """files: how many rows each has, in their order."""
    # With that, a file is opened once, to be read, and not a time before to count its records.
    self._files = tuple(f"{path}[0:{rows}]" for path, rows in files.items())
    self._starts = list(itertools.accumulate(files.values(), initial=0))
    self._opened = opened

  def __len__(self) -> int:
    return self._starts[-1]

  def __getitem__(self, row: int) -> Example:
    if not -len(self) <= row < len(self):
      raise IndexError(f"row {row} of {len(self)}")
    row %= len(self)
    file = bisect.bisect_right(self._starts, row) - 1
    return parse(self._opened.source(self._files[file])[row - self._starts[file]])


class Cells(Mapping[str, CellRows]):
  """Cell name -> its rows, empty cells included, in the manifest's order.

  `manifest` is the dict that `write_cells` returned; `rows` is {cell: number of rows}.
  """

  def __init__(self, folder: pathlib.Path, manifest: dict):
    self.folder, self.manifest = folder, manifest
    self.rows = {cell: entry["rows"] for cell, entry in manifest["cells"].items()}
    opened = OpenFiles()
    self._cells = {
      cell: CellRows(
        {
          folder / entry["folder"] / VERSION / shard["file"]: shard["rows"]
          for shard in entry.get("shards", ())
        },
        opened,
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
