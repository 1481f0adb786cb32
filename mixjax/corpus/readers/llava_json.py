"""LLaVA's json (a list of rows) or jsonl (a row a line) beside an image folder, and LLaVA-NeXT's
YAML lists of them.

Images are named by paths. A file is cut into blocks of rows by where they lie in it, so that any
block can be read alone and nothing of a file is held but a block.
"""

import dataclasses
import json
import math
import re
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import yaml
from etils import epath

from mixjax.corpus.readers.fault import MALFORMED, Fault
from mixjax.corpus.readers.reading import Reading
from mixjax.corpus.readers.row import Row, seen_from

BLOCK = 256  # rows
_CHUNK = 1 << 22  # bytes read at once
_BETWEEN = re.compile(r"[\s,]*")


@dataclasses.dataclass(frozen=True)
class Block:
  """Rows `first`, ... of a file, from byte `start` up to `stop`.

  keep: which of them are wanted, counted from the block's first row; None for all.
  within: see Row.
  """

  path: str
  start: int
  stop: int
  first: int
  folder: str
  source: str = ""
  keep: tuple[int, ...] | None = None
  within: str = ""

  @property
  def name(self) -> str:
    return f"{self.path}, rows from {self.first}"

  def rows(self) -> Iterator[Row | Fault]:
    """The rows; a Fault for each that is not a mapping."""
    path = epath.Path(self.path)
    with path.open("rb") as file:
      file.seek(self.start)
      data = file.read(self.stop - self.start)
    # What is not UTF-8 is kept as lone surrogates, which tell the row that holds it.
    text = data.decode("utf-8", "surrogateescape")
    for i, value in enumerate(_lines(text) if _by_line(path) else json.loads(f"[{text}]")):
      if self.keep is not None and i not in self.keep:
        continue
      where = f"{path.name}, row {self.first + i}"
      if isinstance(value, dict):
        key = f"{path.stem}:{self.first + i}"
        folder = epath.Path(self.folder)
        yield Row(where, key, value, folder, self.source, within=self.within)
      else:
        yield Fault(where, MALFORMED, f"{str(value)[:80]!r} is not a row of LLaVA's")


def _by_line(path: epath.Path) -> bool:
  return path.suffix == ".jsonl"


def _lines(text: str) -> Iterator[Any]:
  """The value of each line; a line that is no JSON stands for itself."""
  for line in text.split("\n"):
    if line.strip():
      try:
        yield json.loads(line)
      except ValueError:
        yield line


def blocks(
  path: epath.Path, reading: Reading, source: str = "", within: str = ""
) -> Iterator[Block | Fault]:
  """The blocks of a file, as they are found; a Fault for what follows a broken end.

  Raises ValueError if the file is no list.
  """
  folder = reading.images or str(path.parent)
  spans = _line_spans(path) if _by_line(path) else _array_spans(path)
  first, start, stop, count = 0, 0, 0, 0
  for span in spans:
    if isinstance(span, Fault):
      yield span
      continue
    if count == 0:
      start = span[0]
    stop, count = span[1], count + 1
    if count == BLOCK:
      yield Block(str(path), start, stop, first, folder, source, within=within)
      first, count = first + count, 0
  if count:
    yield Block(str(path), start, stop, first, folder, source, within=within)


def _line_spans(path: epath.Path) -> Iterator[tuple[int, int]]:
  with path.open("rb") as file:
    position = 0
    for line in file:
      if line.strip():
        yield position, position + len(line)
      position += len(line)


def _array_spans(path: epath.Path) -> Iterator[tuple[int, int] | Fault]:
  """(first byte, byte after the last) of each item of a JSON list."""
  decoder = json.JSONDecoder()
  with path.open("rb") as file:
    # One character a byte: only the structure is read here, and that is ASCII.
    text, base, ended = file.read(_CHUNK).decode("latin-1"), 0, False
    position = _BETWEEN.match(text).end()
    if text[:3] == "\xef\xbb\xbf":  # a byte-order mark
      position = 3
    if text[position : position + 1] != "[":
      raise ValueError(
        f"{path} is not a list of rows: it begins with {text[:30]!r}; a file with a row a line is "
        "called .jsonl"
      )
    position += 1
    while True:
      position = _BETWEEN.match(text, position).end()
      if text[position : position + 1] == "]":
        return
      try:
        _, end = decoder.raw_decode(text, position)
        complete = ended or end < len(text)  # a number may go on in the next chunk
      except ValueError:
        complete = False
      if complete:
        yield base + position, base + end
        position = end
        continue
      if ended:
        yield Fault(
          f"{path.name}, byte {base + position}", MALFORMED, "no JSON from here to the end"
        )
        return
      # Twice as much each time, so that a long row is not parsed too often.
      more = file.read(max(_CHUNK, len(text) - position)).decode("latin-1")
      ended = not more
      text, base, position = text[position:] + more, base + position, 0


# ---- LLaVA-NeXT's lists ----


def listed(path: epath.Path, reading: Reading) -> Iterator[Block | Fault]:
  """The blocks of all files of a list, each cut down as its `sampling_strategy` says.

  `random:N` draws the same rows each time, and keeps their order. Row ids gain the file's name:
  those of two files may be the same. Raises as `entries`.
  """
  for file, strategy in entries(path):
    yield from _sampled(file, strategy, path, reading)


def entries(path: epath.Path) -> Iterator[tuple[epath.Path, str]]:
  """(file, sampling_strategy) of each entry of a list.

  Raises ValueError for what is no such list, FileNotFoundError for a file that is not there.
  """
  try:
    content = yaml.safe_load(path.read_text())
  except yaml.YAMLError as error:
    raise ValueError(f"{path} is no YAML: {error}") from error
  datasets = content.get("datasets") if isinstance(content, dict) else None
  if isinstance(content, dict) and "splits" in content and datasets is None:
    raise ValueError(
      f"{path} is an Energon metadataset, which mixes data sets: give the folder of each"
    )
  if not isinstance(datasets, list) or not all(isinstance(d, dict) for d in datasets):
    has = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
    raise ValueError(
      f"{path} is not a LLaVA-NeXT list: it has no `datasets:` with a list under it, but {has}"
    )
  for entry in datasets:
    if "json_path" not in entry:
      raise ValueError(f"{path}: {entry} has no json_path")
    file = path.parent / entry["json_path"]
    if file.suffix not in (".json", ".jsonl"):
      raise ValueError(f"{path}: {file.name} is neither a .json nor a .jsonl")
    if not file.exists():
      raise FileNotFoundError(f"{path} lists {file}, which is not there")
    yield file, str(entry.get("sampling_strategy", "all"))


def _sampled(
  file: epath.Path, strategy: str, path: epath.Path, reading: Reading
) -> Iterator[Block | Fault]:
  source = file.stem
  # Images are beside their own file, and two files' may have the same path from there.
  within = "" if reading.images else seen_from(path.parent, file.parent)
  kind, _, amount = strategy.partition(":")
  number = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", amount)
  if kind == "all" and not amount:
    yield from blocks(file, reading, source, within)
    return
  if kind not in ("first", "end", "random") or not number or not (number[2] or amount.isdigit()):
    raise ValueError(
      f"{path}: sampling_strategy {strategy!r} of {file.name}; known: all, first:N, end:N, "
      "random:N, each also with a percentage as in random:10%"
    )
  found = list(blocks(file, reading, source, within))
  yield from (fault for fault in found if isinstance(fault, Fault))
  found = [block for block in found if isinstance(block, Block)]
  total = _count(found)
  # A percentage is rounded up, as LLaVA-NeXT does.
  wanted = math.ceil(float(number[1]) * total / 100) if number[2] else int(number[1])
  wanted = min(wanted, total)
  if kind == "random":
    rng = np.random.default_rng(zlib.crc32(f"{file.name} {strategy}".encode()))
    chosen = np.sort(rng.permutation(total)[:wanted])
  else:
    chosen = np.arange(wanted) + (0 if kind == "first" else total - wanted)
  for block in found:
    low, high = np.searchsorted(chosen, [block.first, block.first + BLOCK])
    if low < high:
      yield dataclasses.replace(block, keep=tuple((chosen[low:high] - block.first).tolist()))


def _count(found: list[Block]) -> int:
  """Rows of a file: all its blocks but the last are full."""
  if not found:
    return 0
  path = epath.Path(found[-1].path)
  with path.open("rb") as file:
    file.seek(found[-1].start)
    text = file.read(found[-1].stop - found[-1].start).decode("utf-8", "surrogateescape")
  last = _lines(text) if _by_line(path) else json.loads(f"[{text}]")
  return found[-1].first + sum(1 for _ in last)
