"""A corpus as numbered rows that any worker can read some of, and what a first reading finds.

The parts of the corpus are numbered in their order, and so are its rows. The first reading leaves
a listing a part; all of them together say, in arrays with an element a row, which distinct picture
is a row's first and which task it has.
"""

import dataclasses
import functools
import json
import pickle
from collections.abc import Iterable, Iterator

import apache_beam as beam
import numpy as np
from etils import epath
from jaxtyping import Bool, Int

from mixjax.corpus import readers
from mixjax.corpus.corpus import Corpus
from mixjax.corpus.example import Example
from mixjax.corpus.readers import Fault
from mixjax.corpus.tasks import TASKS
from mixjax.jobs.workdir import write_whole

_PARTS, _LISTINGS = "parts.pickle", "listings"


@dataclasses.dataclass(frozen=True)
class Shared:
  """What workers need to read rows: a folder that they all see, and how rows are made."""

  folder: epath.Path
  reader: readers.Reader

  def rows(self, part: int) -> Iterator[Example | Fault]:
    """The rows of a part, and a Fault for each that cannot be used."""
    return iter(self.reader(_parts(self.folder / _PARTS)[part]))

  def examples(self, parts: Iterable[int]) -> Iterator[Example]:
    """The rows of some parts that can be used."""
    for part in parts:
      yield from (row for row in self.rows(part) if isinstance(row, Example))

  def save(self, name: str, array: np.ndarray) -> None:
    """Writes an array with an element a row, or a part, for workers to look up."""
    with (self.folder / f"{name}.npy").open("wb") as file:
      np.save(file, array)

  def load(self, name: str) -> np.ndarray:
    """What `save` wrote, of which no more is read than is used."""
    return np.load(self.folder / f"{name}.npy", mmap_mode="r")

  def listing(self, part: int) -> epath.Path:
    return self.folder / _LISTINGS / f"{part:08d}.json"


@functools.lru_cache(maxsize=2)
def _parts(path: epath.Path) -> list:
  return pickle.loads(path.read_bytes())


def share(corpus: Corpus, folder: epath.Path) -> tuple[Shared, int]:
  """Writes down the parts of the corpus; returns what reads them, and how many they are."""
  folder.mkdir(parents=True, exist_ok=True)
  found = list(readers.parts(corpus.path, corpus.reading))
  (folder / f".{_PARTS}.partial").write_bytes(pickle.dumps(found))
  (folder / f".{_PARTS}.partial").replace(folder / _PARTS)
  return Shared(folder, readers.Reader(corpus.reading, corpus.label)), len(found)


class List(beam.DoFn):
  """Part -> its listing, unless it is there: pictures, tasks and domains of rows, and faults."""

  def __init__(self, shared: Shared):
    self._shared = shared

  def process(self, part: int):
    path = self._shared.listing(part)
    if path.exists():
      return
    rows, faults = [], []
    for row in self._shared.rows(part):
      if isinstance(row, Example):
        rows.append((row.image_key, TASKS.index(row.task), row.domain))
      else:
        faults.append(dataclasses.astuple(row))
    write_whole(path, json.dumps({"rows": rows, "faults": faults}))


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
  """All listings together.

  start int64[parts + 1]: the number of each part's first row, and of all rows.
  image int32[rows]: which distinct picture is a row's first, in their order; -1 for text alone.
  first bool[rows]: whether the row is the first with that picture.
  task int8[rows]: its place in tasks.TASKS.
  """

  start: Int[np.ndarray, " p"]
  image: Int[np.ndarray, " n"]
  first: Bool[np.ndarray, " n"]
  task: Int[np.ndarray, " n"]
  images: list[str]
  faults: list[Fault]

  @classmethod
  def gather(cls, shared: Shared, parts: int) -> "Found":
    """Reads the listings in the order of the parts."""
    start, image, task, faults = np.zeros(parts + 1, np.int64), [], [], []
    number: dict[str, int] = {"": -1}
    for part in range(parts):
      listing = json.loads(shared.listing(part).read_text())
      rows = listing["rows"]
      start[part + 1] = start[part] + len(rows)
      keys = (number.setdefault(key, len(number) - 1) for key, _, _ in rows)
      image.append(np.fromiter(keys, np.int32, len(rows)))
      task.append(np.array([task for _, task, _ in rows], np.int8))
      faults += [Fault(*fault) for fault in listing["faults"]]
    image, task = (np.concatenate(x) if x else np.zeros(0, np.int8) for x in (image, task))
    first = np.zeros(len(image), bool)
    first[np.unique(image, return_index=True)[1]] = True
    first &= image >= 0
    return cls(start, image, first, task, list(number)[1:], faults)
