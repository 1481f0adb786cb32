"""From a row, whatever its corpus calls its fields, to an Example.

A container (a json, a parquet, a tar, ...) gives rows as mappings, whose texts `said` knows.
"""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from mixjax.corpus import tasks
from mixjax.corpus.example import Example, Turn
from mixjax.corpus.readers.fault import BAD_TASK, MALFORMED, BadRow
from mixjax.corpus.readers.reading import Reading, look_up
from mixjax.corpus.readers.said import conversation, normalised

Label = Callable[[Sequence[Turn], bool], tuple[str, str]]  # -> (task, who says so)

_KEYS = ("key", "id", "question_id")
_SOURCES = ("source", "data_source", "dataset")


@dataclasses.dataclass(frozen=True)
class Row:
  """A row as its container holds it.

  where: what errors call it, such as "train.json, row 12".
  key: for rows that have none of their own; unique within the corpus.
  fields: what it holds.
  folder: what image paths are relative to.
  source: for rows that do not name theirs.
  task: where the container itself says it.
  within: the folder as seen from the corpus, where a corpus has several: the same path in two of
    them is two pictures.
  """

  where: str
  key: str
  fields: Mapping[str, Any]
  folder: epath.Path
  source: str = ""
  task: str = ""
  within: str = ""


@dataclasses.dataclass(frozen=True)
class Picture:
  """`data` is empty for a file that is missing, and for one that is empty."""

  key: str
  data: bytes
  missing: bool = False


def example(row: Row, reading: Reading, label: Label, shown: Sequence[Picture]) -> Example:
  """The row as an Example, with the pictures that `pictures` gives. `label` is asked for the task
  where neither the row nor its source gives one. Raises BadRow.
  """
  fields = stated(row, reading)
  said, implied = conversation(fields)
  turns = normalised(said, len(shown))
  task, by = _given_task(fields, row, reading, implied)
  if not task:
    task, by = label(turns, bool(shown))
  return Example(
    key=_key(fields, row),
    task=task,
    turns=turns,
    images=tuple(picture.data for picture in shown),
    image_keys=tuple(picture.key for picture in shown),
    domain=str(fields.get("domain") or ""),
    label=by,
  )


def _key(fields: Mapping[str, Any], row: Row) -> str:
  for name in _KEYS:
    if fields.get(name) is not None:
      # Ids of several files may be the same.
      return f"{row.source}/{fields[name]}" if row.source and "id" in name else str(fields[name])
  return row.key


def stated(row: Row, reading: Reading) -> Mapping[str, Any]:
  """The row's fields; where the reading states what they are, those alone."""
  if not reading.fields:
    return row.fields
  return {name: look_up(row.fields, where) for name, where in reading.fields.items()}


def _given_task(
  fields: Mapping[str, Any], row: Row, reading: Reading, implied: str
) -> tuple[str, str]:
  """(task, who says so): a task that a labeller gave comes with its name. Empty for no task."""
  by = "data"
  if task := fields.get("task"):
    by = fields["label"] if isinstance(fields.get("label"), str) else by
  else:
    task = row.task or reading.tasks.get(source_of(fields, row), implied)
  if task and task not in tasks.TASKS:
    raise BadRow(BAD_TASK, f"task {task!r}; known: {', '.join(tasks.TASKS)}")
  return task, by


def source_of(fields: Mapping[str, Any], row: Row) -> str:
  """The name of the data set that a row comes from; empty where nothing says it."""
  for name in _SOURCES:
    if isinstance(fields.get(name), str):
      return fields[name]
  texts = fields.get("texts")
  if isinstance(texts, list) and texts and isinstance(texts[0], Mapping):
    return str(texts[0].get("source") or row.source)
  return row.source


def pictures(row: Row, reading: Reading) -> list[Picture]:
  """The pictures of a row, in order: bytes, {"bytes", "path"}, or the path of a file.

  Raises BadRow for what is none of them; a file that cannot be read is a Picture without bytes.
  """
  fields = stated(row, reading)
  # Some corpora write "" where a row has no picture.
  value = next(
    (v for n in ("image", "images", "img") if (v := fields.get(n)) not in (None, "")), []
  )
  found = [_picture(v, i, row) for i, v in enumerate(value if isinstance(value, list) else [value])]
  names = fields.get("image_keys")  # our own cells
  if isinstance(names, list) and len(names) == len(found):
    found = [dataclasses.replace(p, key=str(n)) for p, n in zip(found, names, strict=True)]
  return found


def _picture(value: Any, index: int, row: Row) -> Picture:
  path = None
  if isinstance(value, Mapping):
    value, path = value.get("bytes"), value.get("path")
  if isinstance(value, str):
    value, path = None, value
  if isinstance(value, bytes):
    # Its content is its name: in a corpus of bytes, paths repeat from shard to shard.
    digest = hashlib.blake2b(value, digest_size=12).hexdigest()
    return Picture(digest if value else f"{row.where}, image {index}", value)
  if not isinstance(path, str) or not path:
    raise BadRow(MALFORMED, f"image {index} is {type(value).__name__}: not bytes, not a path")
  data = _content(row.folder / path)
  return Picture(os.path.join(row.within, path), data or b"", missing=data is None)


def seen_from(root: epath.Path, folder: epath.Path) -> str:
  """A folder's path relative to that of the corpus; empty where they are the same."""
  path = os.path.relpath(os.fspath(folder), os.fspath(root))
  return "" if path == os.curdir else path


@functools.lru_cache(maxsize=2)  # rows of one image follow one another
def _content(path: epath.Path) -> bytes | None:
  try:
    return path.read_bytes()
  except (OSError, ValueError):  # ValueError: a NUL in the path
    return None
