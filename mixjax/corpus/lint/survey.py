"""What a part of a corpus holds, and what is wrong with it; surveys of parts add up.

Nothing is kept of a picture but some numbers and its name, and of a row only that it was there.
"""

import collections
import dataclasses
import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from mixjax.corpus import boxes
from mixjax.corpus.example import Example
from mixjax.corpus.lint import languages, picture
from mixjax.corpus.pixels import BadPicture
from mixjax.corpus.readers import Part
from mixjax.corpus.readers.fault import BadRow, Fault
from mixjax.corpus.readers.reading import Reading
from mixjax.corpus.readers.row import Label, Picture, Row, example, pictures, source_of, stated

BAD_BOX, MISSING = "bad box", "missing file"
SHOWN = 24  # rows a task on its contact sheet
LISTED = 20  # broken records of a kind that are named
_TEXT = 160  # characters of a prompt or an answer on the contact sheet

# What is kept of a picture. `name`, `content` and the words of `looks` are 64-bit hashes.
PICTURE = np.dtype(
  [
    ("name", "u8"),
    ("content", "u8"),
    ("looks", "u8", 2),
    ("plain", "?"),
    ("height", "u4"),
    ("width", "u4"),
    ("frames", "u4"),
  ]
)


@dataclasses.dataclass(order=True)
class Shown:
  """A row on the contact sheet; rows with the smallest hashes are shown, whatever their order."""

  rank: int
  key: str
  thumbnail: bytes = dataclasses.field(compare=False)
  prompt: str = dataclasses.field(compare=False)
  answer: str = dataclasses.field(compare=False)


@dataclasses.dataclass
class Survey:
  """Counts, and one entry for each picture, broken record, and row to be shown."""

  rows: int = 0
  usable: int = 0
  turns: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  images_of_row: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  tasks: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  labels: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  languages: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  sources: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  broken: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  named: dict[str, list[tuple[str, str]]] = dataclasses.field(default_factory=dict)
  shown: dict[str, list[Shown]] = dataclasses.field(default_factory=dict)
  keys: list[int] = dataclasses.field(default_factory=list)
  pictures: list[tuple] = dataclasses.field(default_factory=list)
  names: list[str] = dataclasses.field(default_factory=list)
  kinds: list[str] = dataclasses.field(default_factory=list)

  def fault(self, where: str, kind: str, detail: str) -> None:
    self.broken[kind] += 1
    named = self.named.setdefault(kind, [])
    if len(named) < LISTED:
      named.append((where, printable(detail)[:300]))

  def show(self, task: str, shown: Shown) -> None:
    kept = self.shown.setdefault(task, [])
    kept.append(shown)
    kept.sort()
    del kept[SHOWN:]

  def wants(self, task: str, rank: int) -> bool:
    """Whether a row of this rank would be shown."""
    kept = self.shown.get(task, ())
    return len(kept) < SHOWN or rank < kept[-1].rank

  def add(self, other: "Survey") -> None:
    """Takes in the survey of the part that follows."""
    self.rows += other.rows
    self.usable += other.usable
    for name in ("turns", "images_of_row", "tasks", "labels", "languages", "sources", "broken"):
      getattr(self, name).update(getattr(other, name))
    for kind, named in other.named.items():
      mine = self.named.setdefault(kind, [])
      mine += named[: LISTED - len(mine)]
    for task, rows in other.shown.items():
      for row in rows:
        self.show(task, row)
    for name in ("keys", "pictures", "names", "kinds"):
      getattr(self, name).extend(getattr(other, name))


@dataclasses.dataclass(frozen=True)
class Surveyor:
  """Surveys a part; a class, for processes to pass on."""

  reading: Reading
  label: Label

  def __call__(self, part: Part | Fault) -> Survey:
    """Never stops at a bad record: each is counted under its reason."""
    survey = Survey()
    if isinstance(part, Fault):
      survey.fault(part.where, part.kind, part.detail)
      return survey
    seen = _Seen()
    try:
      for row in part.rows():
        if isinstance(row, Fault):
          survey.rows += 1
          survey.fault(row.where, row.kind, row.detail)
        else:
          self._row(row, survey, seen)
    except Exception as error:  # of a library, at a file like none before
      survey.fault(part.name, "unreadable file", f"{type(error).__name__}: {error}")
    return survey

  def _row(self, row: Row, survey: Survey, seen: "_Seen") -> None:
    survey.rows += 1
    fields = stated(row, self.reading)
    shown: list[Picture] = []
    found: Example | None = None
    good = True
    try:
      shown = pictures(row, self.reading)
      found = example(row, self.reading, self.label, shown)
    except BadRow as error:
      survey.fault(row.where, error.kind, error.detail)
      good = False
    for one in shown:
      good &= self._picture(one, row.where, survey, seen)
    sizes = [facts.size for one in shown if (facts := seen.facts.get(one.key))]
    for problem in box_problems(fields, found, sizes[0] if sizes else None):
      survey.fault(row.where, BAD_BOX, problem)
      good = False
    survey.usable += good
    if found is None:
      return
    survey.turns[len(found.turns)] += 1
    survey.images_of_row[len(found.images)] += 1
    survey.tasks[found.task] += 1
    survey.labels[found.label] += 1
    survey.languages[languages.detect(" ".join(f"{p} {a}" for p, a in found.turns))] += 1
    survey.sources[source_of(fields, row)] += 1
    key = digest(found.key.encode("utf-8", "surrogatepass"))
    survey.keys.append(key)
    if good and survey.wants(found.task, key):
      thumbnail = picture.thumbnail(self._view(shown[0], seen)) if shown else b""
      prompt, answer = (text[:_TEXT] for text in found.turns[0])
      survey.show(found.task, Shown(key, found.key, thumbnail, prompt, answer))

  def _picture(self, one: Picture, where: str, survey: Survey, seen: "_Seen") -> bool:
    """Enters a picture when it is met first, and its fault at every row; False for a bad one."""
    if one.key not in seen.facts:
      seen.facts[one.key], seen.problems[one.key] = None, (MISSING, one.key)
      if not one.missing:
        try:
          facts, view = picture.inspect(one.data)
        except BadPicture as error:
          seen.problems[one.key] = (error.kind, f"{one.key}: {error.detail}")
        else:
          seen.facts[one.key], seen.latest = facts, (one.key, view)
          name, content = digest(one.key.encode("utf-8", "surrogatepass")), digest(one.data)
          survey.pictures.append(
            (name, content, facts.looks, facts.plain, *facts.size, facts.frames)
          )
          survey.names.append(one.key)
          survey.kinds.append(facts.kind)
    if seen.facts[one.key] is None:
      survey.fault(where, *seen.problems[one.key])
      return False
    return True

  def _view(self, one: Picture, seen: "_Seen") -> Image.Image:
    if seen.latest[0] != one.key:
      seen.latest = (one.key, picture.inspect(one.data)[1])
    return seen.latest[1]


class _Seen:
  """The pictures of a part so far, and a view of the latest: rows of one follow one another."""

  def __init__(self):
    self.facts: dict[str, picture.Facts | None] = {}
    self.problems: dict[str, tuple[str, str]] = {}
    self.latest: tuple[str, Image.Image | None] = ("", None)


def digest(data: bytes) -> int:
  """64 bits of a cryptographic hash."""
  return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest())


def printable(text: str) -> str:
  """Without the halves of characters that are no UTF-8."""
  return text.encode("utf-8", "replace").decode()


def box_problems(
  fields: Mapping[str, Any], found: Example | None, size: tuple[int, int] | None
) -> list[str]:
  """What is wrong with the boxes of a row's fields and texts, the first of each.

  size: (height, width) of its picture, beyond which no box in pixels can reach.
  """
  problems = []
  for name in ("bbox", "bboxes", "boxes", "box", "objects"):
    if problem := next(filter(None, (_four(b, size) for b in _fours(fields.get(name)))), ""):
      problems.append(f"{name}: {problem}")
  for prompt, answer in found.turns if found else ():
    for text in (prompt, answer):
      for box in boxes.find(text):
        if box.problem:
          problems.append(f"{text[box.start : box.end]} is {box.problem}")
          break
  return problems


def _fours(value: Any) -> list[list[float]]:
  """Every list of four numbers within a value."""
  if isinstance(value, Mapping):
    return [four for name in value for four in _fours(value[name])]
  if not isinstance(value, list):
    return []
  if len(value) == 4 and all(isinstance(n, int | float) for n in value):
    return [value]
  return [four for item in value for four in _fours(item)]


def _four(box: list[float], size: tuple[int, int] | None) -> str:
  if not all(map(math.isfinite, box)):
    return f"{box} is not finite"
  if min(box) < 0:
    return f"{box} is below 0"
  if size and max(box) > max(*size, 1):
    return f"{box} reaches beyond a picture of {size[1]} x {size[0]}"
  return ""
