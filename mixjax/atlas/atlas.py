"""An atlas: named visual concepts, each a direction in an image encoder's space (paper, 3.1)."""

import collections
import dataclasses
import hashlib
import io
import json
import math
import re
from collections.abc import Iterator, Sequence

import numpy as np
from etils import epath
from jaxtyping import Float, Int, UInt8
from PIL import Image
from scipy.optimize import linear_sum_assignment
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
from sklearn.metrics import normalized_mutual_info_score

from mixjax.atlas import kmeans

FORMAT = 1
CARD, CENTROIDS = "atlas.json", "centroids.npy"
_HELP = "concepts may be renamed here: the cells take the new names when they are next written"


@dataclasses.dataclass(frozen=True, eq=False)
class Atlas:
  """K concepts: their names, their centroids float32[k, e], and the encoder that embedded them.

  Raises ValueError for names that are not unique, are empty or hold a "/", or are not K.
  """

  names: tuple[str, ...]
  centroids: Float[np.ndarray, "k e"]
  encoder: str = ""  # which encoder the centroids belong to: an id or a hash

  def __post_init__(self):
    if len(self.names) != len(self.centroids):
      raise ValueError(f"{len(self.names)} concept names for {len(self.centroids)} centroids")
    for name, count in collections.Counter(self.names).items():
      if count > 1:
        raise ValueError(f"{count} concepts are called {name!r}: names must be unique")
      if not isinstance(name, str) or not name.strip() or "/" in name:
        raise ValueError(f"{name!r} cannot name a concept: a name is not empty and holds no '/'")

  @property
  def k(self) -> int:
    return len(self.names)

  @classmethod
  def fit(
    cls,
    embeddings: Float[np.ndarray, "n e"],
    captions: Sequence[str],
    k: int,
    seed: int,
    encoder: str = "",
  ) -> "Atlas":
    """Clusters images and names the clusters after their captions; raises as `kmeans.fit` does.

    Args:
      embeddings: float[n, e] of unit norm, one row an image.
      captions: one text an image, "" where there is none.
      k: number of concepts.
      seed: of the clustering.
      encoder: id or hash of the encoder the embeddings come from.
    """
    if len(captions) != len(embeddings):
      raise ValueError(f"{len(captions)} captions for {len(embeddings)} embeddings")
    centroids, cluster, _ = kmeans.fit(embeddings, k, seed)
    return cls(concept_names(captions, cluster, k), centroids, encoder)

  def assign(self, embeddings: Float[np.ndarray, "n e"]) -> Int[np.ndarray, " n"]:
    """The concept int32[n] of every image."""
    return kmeans.assign(embeddings, self.centroids)

  def match(self, old: "Atlas") -> "Atlas":
    """This atlas under the names of `old`: concepts are paired so as to be most alike in total.

    Paired concepts take the old ones' names and order; others follow under their own names, with a
    number where the name is taken. Raises ValueError where the encoders differ: their directions
    cannot be compared.
    """
    if self.encoder != old.encoder or self.centroids.shape[1] != old.centroids.shape[1]:
      raise ValueError(
        f"this atlas belongs to encoder {self.encoder!r} and the old one to {old.encoder!r}: "
        "embed the images with the same encoder to keep the names"
      )
    ours, theirs = linear_sum_assignment(-self.centroids @ old.centroids.T)
    pairs = sorted(zip(theirs, ours, strict=True))
    names = [old.names[their] for their, _ in pairs]
    order = [our for _, our in pairs]
    for our in range(self.k):
      if our not in order:
        names.append(_untaken(self.names[our], {*names, *old.names}))
        order.append(our)
    return dataclasses.replace(self, names=tuple(names), centroids=self.centroids[order])

  def save(self, folder: epath.PathLike) -> None:
    """Writes `atlas.json`, whose names may be edited by hand, and `centroids.npy`."""
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.save(buffer, self.centroids)
    card = {
      "format": FORMAT,
      "help": _HELP,
      "names": list(self.names),
      "encoder": self.encoder,
      "centroids_sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
    }
    # The card last: where it is, the atlas is complete.
    for name, data in ((CENTROIDS, buffer.getvalue()), (CARD, json.dumps(card, indent=2).encode())):
      partial = folder / f".{name}.partial"
      partial.write_bytes(data)
      partial.replace(folder / name)

  @classmethod
  def load(cls, folder: epath.PathLike) -> "Atlas":
    """Reads what `save` wrote; raises ValueError naming the file that cannot be used, and why."""
    folder = epath.Path(folder)
    card_path = folder / CARD
    if not card_path.exists():
      raise FileNotFoundError(f"{card_path} is missing: {folder} holds no atlas")
    try:
      card = json.loads(card_path.read_text())
      wanted = card["format"], card["names"], card["encoder"], card["centroids_sha256"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
      raise ValueError(f"{card_path} is not an atlas card: {error!r}") from error
    if wanted[0] != FORMAT:
      raise ValueError(f"{card_path} has format {wanted[0]}, this code reads format {FORMAT}")
    data = (folder / CENTROIDS).read_bytes()
    if hashlib.sha256(data).hexdigest() != wanted[3]:
      raise ValueError(f"{folder / CENTROIDS} is not what was written: fit the atlas again")
    try:
      return cls(tuple(wanted[1]), np.load(io.BytesIO(data)), wanted[2])
    except ValueError as error:
      raise ValueError(f"{card_path}: {error}") from error


# Words that say nothing about what a picture shows.
_COMMON = ENGLISH_STOP_WORDS | {"image", "photo", "picture", "shows", "showing", "shown", "visible"}


def concept_names(
  captions: Sequence[str], cluster: Int[np.ndarray, " n"], k: int
) -> tuple[str, ...]:
  """A name a cluster: its two most distinctive caption words, as in "bar-chart".

  Distinctive by class-based tf-idf (Grootendorst, 2022): a word's share of its cluster's words
  times log(1 + words a cluster / occurrences anywhere); a caption counts a word once. Names hold
  a-z, 0-9 and "-" and are unique; a cluster without words is called "concept-<index>".
  """
  counts = [collections.Counter() for _ in range(k)]
  for caption, c in zip(captions, cluster, strict=True):
    counts[c].update({w for w in re.findall(r"[a-z][a-z0-9]+", caption.lower())} - _COMMON)
  overall = sum(counts, collections.Counter())
  mean = overall.total() / k
  names: list[str] = []
  for c, mine in enumerate(counts):
    score = {w: n / mine.total() * math.log(1 + mean / overall[w]) for w, n in mine.items()}
    ranked = sorted(score, key=lambda w: (-score[w], w))
    free = (name for name in _two_words(ranked) if name not in names)
    # "text" is where rows without pictures go.
    taken = {*names, "text"}
    names.append(next(free, None) or _untaken(ranked[0] if ranked else f"concept-{c}", taken))
  return tuple(names)


def _two_words(ranked: Sequence[str]) -> Iterator[str]:
  """Pairs of the best word with the next ones, leaving out forms of the same word."""
  for other in ranked[1:]:
    if other[:4] != ranked[0][:4]:
      yield f"{ranked[0]}-{other}"


def _untaken(name: str, taken) -> str:
  candidate, number = name, 2
  while candidate in taken:
    candidate, number = f"{name}-{number}", number + 1
  return candidate


def agreement(assignments: Sequence[int], domains: Sequence[str]) -> float:
  """Normalised mutual information of concepts and true domains: 1 where they are one to one."""
  return float(normalized_mutual_info_score(list(domains), np.asarray(assignments)))


def contact_sheet(
  images: Sequence[UInt8[np.ndarray, "h w 3"]], columns: int, gap: int = 2
) -> bytes:
  """A PNG of images in rows of `columns`, `gap` white pixels apart, tiled by the biggest one.

  Raises ValueError where there are no images.
  """
  if not images:
    raise ValueError("a contact sheet needs at least one image")
  height = gap + max(image.shape[0] for image in images)
  width = gap + max(image.shape[1] for image in images)
  rows = -(-len(images) // columns)
  across = min(columns, len(images))
  sheet = np.full((rows * height + gap, across * width + gap, 3), 255, np.uint8)
  for i, image in enumerate(images):
    y, x = gap + i // columns * height, gap + i % columns * width
    sheet[y : y + image.shape[0], x : x + image.shape[1]] = image
  buffer = io.BytesIO()
  Image.fromarray(sheet).save(buffer, "PNG")
  return buffer.getvalue()
