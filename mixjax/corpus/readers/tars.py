"""WebDataset: tars in which the files of a row follow one another under one name.

The name goes up to the first dot of the file's name; what follows says what the file is. A json
holds the row's fields, a txt its text, and the pictures come in the order of their extensions
(`img2.jpg` before `img10.jpg`).
"""

import dataclasses
import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from mixjax.corpus.readers.fault import BAD_UTF8, MALFORMED, Fault
from mixjax.corpus.readers.reading import Reading, look_up
from mixjax.corpus.readers.row import Row
from mixjax.corpus.readers.walk import under

PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "img", "image", "ppm", "jp2")
TEXTS = ("txt", "text", "caption", "transcript")

_DIGITS = re.compile(r"(\d+)")


@dataclasses.dataclass(frozen=True)
class Tar:
  """One tar.

  fields: {field: where}, as Energon's field_map has it; empty to go by the extensions.
  raw: the rows' files themselves are their fields, which the reading knows.
  drop: names of rows to leave out.
  task: of all rows, where the data set says it.
  """

  path: str
  stem: str  # the tar's name within the corpus
  source: str = ""
  fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
  raw: bool = False
  drop: frozenset[str] = frozenset()
  task: str = ""

  @property
  def name(self) -> str:
    return self.stem

  def rows(self) -> Iterator[Row | Fault]:
    """The rows; a Fault for one whose files cannot be read, or for all from a broken end on."""
    folder = epath.Path(self.path).parent
    for name, files in self._grouped():
      if isinstance(files, Fault):
        yield files
      elif name not in self.drop:
        where = f"{self.stem}, {name}"
        try:
          yield Row(where, name, self._fields(files), folder, self.source, self.task)
        except UnicodeDecodeError as error:
          yield Fault(where, BAD_UTF8, str(error))
        except ValueError as error:
          yield Fault(where, MALFORMED, str(error))

  def _grouped(self) -> Iterator[tuple[str, dict[str, bytes] | Fault]]:
    """(name, {extension: content}) of each row, in the tar's order."""
    name, files = "", {}
    try:
      with (
        epath.Path(self.path).open("rb") as opened,
        tarfile.open(fileobj=opened, mode="r|") as tar,
      ):
        for member in tar:
          if not member.isfile():
            continue
          base = member.name.rpartition("/")[2]
          stem = member.name[: len(member.name) - len(base)] + base.split(".", 1)[0]
          if stem != name and files:
            yield name, files
            files = {}
          name = stem
          files[base.partition(".")[2].lower()] = tar.extractfile(member).read()
        # A tar that was cut between two files would end without a word.
        if tar.offset and not _ended(self.path):
          raise tarfile.ReadError("the tar has no end: it was cut")
    except (OSError, tarfile.TarError, EOFError) as error:
      # The row that the end cuts through is not whole.
      yield "", Fault(f"{self.stem}, from {name or 'its beginning'}", MALFORMED, str(error))
      return
    if files:
      yield name, files

  def _fields(self, files: Mapping[str, bytes]) -> dict[str, Any]:
    record = {extension: _decoded(extension, data) for extension, data in files.items()}
    if self.raw:
      return record
    if self.fields:
      return {field: look_up(record, where) for field, where in self.fields.items()}
    return by_extension(record)


def _ended(path: str) -> bool:
  with epath.Path(path).open("rb") as file:
    file.seek(-tarfile.BLOCKSIZE, 2)
    return not any(file.read())


def _decoded(extension: str, data: bytes) -> Any:
  kind = extension.rpartition(".")[2]
  if kind in ("json", "jsn"):
    return json.loads(data)
  if kind in TEXTS:
    return data.decode()
  return data


def by_extension(record: Mapping[str, Any]) -> dict[str, Any]:
  """The fields of a row whose files say by their extensions what they are."""
  fields: dict[str, Any] = {}
  for value in record.values():
    if isinstance(value, dict):
      fields |= value
    elif isinstance(value, list):
      fields["messages"] = value
    elif isinstance(value, str) and "text" not in fields:
      fields["text"] = value
  shown = [e for e in record if e.rpartition(".")[2] in PICTURES]
  shown.sort(key=lambda e: [int(p) if p.isdigit() else p for p in _DIGITS.split(e)])
  named = fields.get("name")  # LLaVA-OneVision-1.5's own order
  if isinstance(named, list) and sorted(named) == sorted(shown):
    shown = named
  for name in ("image", "images"):
    fields.pop(name, None)  # a path to where the picture was before it went into the tar
  fields["images"] = [record[extension] for extension in shown]
  if shown and "text" in fields:
    fields["caption"] = fields.pop("text")
  return fields


def parts(path: epath.Path, reading: Reading) -> Iterator[Tar]:
  """A tar, or all tars under a folder, sorted."""
  root = path if path.is_dir() else path.parent
  for file in under(path, (".tar",)) if path.is_dir() else [path]:
    stem = str(file.relative_to(root).with_suffix(""))
    yield Tar(str(file), stem, raw=bool(reading.fields))
