"""The images of a corpus, embedded part by part: many hosts, any end, memory for one part.

    parts/000001024-000002048.{embeddings.npy, features.npy, json}

A part is a range of the corpus's distinct images in their order; a host embeds every so-manieth of
them. Its card is written last and has the checksums: a part with a card that fits is not embedded
again. When all parts are there they are joined into one file each of embeddings and features.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator

import numpy as np
from etils import epath
from jaxtyping import Float, UInt8

from mixjax.atlas import embed
from mixjax.corpus.example import Example
from mixjax.corpus.pixels import BadPicture

SIZE = 8 * embed.BATCH  # images a part: full batches, so that parts change no bits
_ARRAYS = ("embeddings", "features")


@dataclasses.dataclass(frozen=True)
class Origin:
  """What a part was made from; parts of another origin are made again."""

  corpus: str  # hash of the corpus
  encoder: str  # hash of the tower
  features: bool = True  # whether patch tokens are kept


@dataclasses.dataclass(frozen=True)
class Card:
  """What a part holds: keys and true domains ("" if unknown) of its images, and what it lacks."""

  images: list[str]
  domains: list[str]
  unreadable: dict[str, str]  # image key -> why
  sha256: dict[str, str]  # of each array
  origin: Origin


def distinct(examples: Iterable[Example]) -> Iterator[Example]:
  """The first example of each first picture; rows without pictures have none."""
  seen: set[str] = set()
  for example in examples:
    if example.image_key and example.image_key not in seen:
      seen.add(example.image_key)
      yield example


def part_name(start: int, stop: int) -> str:
  """Of the part with the distinct images `start`, ... up to `stop`."""
  return f"{start:09d}-{stop:09d}"


def write(
  embedder: embed.Embedder,
  examples: Iterable[Example],
  folder: epath.PathLike,
  origin: Origin,
  size: int = SIZE,
  process_index: int = 0,
  process_count: int = 1,
) -> list[str]:
  """Embeds this host's parts that are not there yet; returns the names of all hosts' parts.

  Args:
    embedder: the tower.
    examples: all rows of the corpus, the same on every host.
    folder: where parts are written.
    origin: what they are made from.
    size: images a part, unreadable ones included.
    process_index, process_count: this host among all.
  """
  folder = epath.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  names, part = [], None
  for ordinal, example in enumerate(distinct(examples)):
    number, place = divmod(ordinal, size)
    if not place:
      if part is not None:
        part.close()
      names.append(part_name(number * size, (number + 1) * size))
      part = None
      if number % process_count == process_index and not finished(folder, names[-1], origin):
        part = _Part(folder, names[-1], embedder, origin)
    if part is not None:
      part.add(example)
  if part is not None:
    part.close()
  return names


def write_one(
  embedder: embed.Embedder,
  examples: Iterable[Example],
  folder: epath.PathLike,
  name: str,
  origin: Origin,
) -> None:
  """Embeds the first picture of each example as one part, unless it is there."""
  if finished(folder, name, origin):
    return
  epath.Path(folder).mkdir(parents=True, exist_ok=True)
  part = _Part(epath.Path(folder), name, embedder, origin)
  for example in examples:
    part.add(example)
  part.close()


class _Part:
  """One part being embedded, a batch at a time."""

  def __init__(self, folder: epath.Path, name: str, embedder: embed.Embedder, origin: Origin):
    self._folder, self._name, self._embedder, self._origin = folder, name, embedder, origin
    self._waiting: list[UInt8[np.ndarray, "s s 3"]] = []
    self._found: dict[str, list[np.ndarray]] = {array: [] for array in _ARRAYS}
    self._images: list[str] = []
    self._domains: list[str] = []
    self._unreadable: dict[str, str] = {}

  def add(self, example: Example):
    try:
      self._waiting.append(embed.decode(example.image, self._embedder.size))
    except BadPicture as error:
      self._unreadable[example.image_key] = str(error)
      return
    self._images.append(example.image_key)
    self._domains.append(example.domain)
    if len(self._waiting) == embed.BATCH:
      self._embed()

  def _embed(self):
    embeddings, features = self._embedder(self._waiting)
    self._found["embeddings"].append(embeddings)
    if self._origin.features:
      self._found["features"].append(features)
    self._waiting = []

  def close(self):
    """Writes the arrays and then the card; a part without a readable image has no arrays."""
    if self._waiting:
      self._embed()
    sums = {}
    for array, found in self._found.items():
      if found:
        partial = self._folder / f".{self._name}.{array}.partial"
        with partial.open("wb") as file:
          np.save(file, np.concatenate(found))
        sums[array] = _sha256(partial)
        partial.replace(_array(self._folder, self._name, array))
    card = Card(self._images, self._domains, self._unreadable, sums, self._origin)
    partial = self._folder / f".{self._name}.json.partial"
    partial.write_text(json.dumps(dataclasses.asdict(card)))
    partial.replace(self._folder / f"{self._name}.json")


def finished(folder: epath.PathLike, name: str, origin: Origin) -> Card | None:
  """The card of a part that is whole and of this origin; None for one to be made (again)."""
  folder = epath.Path(folder)
  path = folder / f"{name}.json"
  if not path.exists():
    return None
  try:
    content = json.loads(path.read_text())
    card = Card(**content | {"origin": Origin(**content["origin"])})
  except (ValueError, TypeError, KeyError):
    return None
  if card.origin != origin:
    return None
  for array, digest in card.sha256.items():
    path = _array(folder, name, array)
    if not path.exists() or _sha256(path) != digest:
      return None
  return card


def join(
  folder: epath.PathLike, names: Iterable[str], origin: Origin, target: epath.PathLike
) -> Card:
  """Joins parts into `target`/{embeddings, features}.npy, one part in memory at a time.

  Returns one card for all. Raises ValueError naming a part that is not there, or not whole.
  """
  folder, target = epath.Path(folder), epath.Path(target)
  names, cards = list(names), []
  for name in names:
    card = finished(folder, name, origin)
    if card is None:
      raise ValueError(f"part {name} in {folder} is missing or damaged: run the same command again")
    cards.append(card)
  sums = {}
  for array in _ARRAYS if origin.features else _ARRAYS[:1]:
    with_it = [name for name, card in zip(names, cards, strict=True) if array in card.sha256]
    if with_it:
      sums[array] = _join([_array(folder, name, array) for name in with_it], target, array)
  return Card(
    [key for card in cards for key in card.images],
    [domain for card in cards for domain in card.domains],
    {key: why for card in cards for key, why in card.unreadable.items()},
    sums,
    origin,
  )


def _join(paths: list[epath.Path], target: epath.Path, array: str) -> str:
  """Writes what np.save would of all parts at once; returns its checksum."""
  shapes = [_load(path).shape for path in paths]
  rows = sum(shape[0] for shape in shapes)
  partial = target / f".{array}.npy.partial"
  with partial.open("wb") as file:
    header = {
      "descr": np.lib.format.dtype_to_descr(_load(paths[0]).dtype),
      "fortran_order": False,
      "shape": (rows, *shapes[0][1:]),
    }
    np.lib.format.write_array_header_1_0(file, header)
    for path in paths:
      file.write(_load(path).tobytes())
  digest = _sha256(partial)
  partial.replace(target / f"{array}.npy")
  return digest


def _load(path: epath.Path) -> Float[np.ndarray, "n ..."]:
  with path.open("rb") as file:
    return np.load(file)


def _array(folder: epath.Path, name: str, array: str) -> epath.Path:
  return folder / f"{name}.{array}.npy"


def _sha256(path: epath.Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
