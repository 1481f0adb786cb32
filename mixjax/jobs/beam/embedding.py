"""The pictures of a corpus through CLIP on many workers, into the parts that `atlas.parts` joins.

A worker takes consecutive parts of the corpus with about a part's worth of pictures that are new in
them. So what it computes depends on the corpus, and not on how many workers there are.
"""

import dataclasses

import apache_beam as beam
import numpy as np
from apache_beam.utils.shared import Shared as OneAProcess
from etils import epath

from mixjax.atlas import embed, parts
from mixjax.jobs.beam.rows import Found, Shared
from mixjax.models import hf

_FIRST = "first"


@dataclasses.dataclass(frozen=True)
class Piece:
  """Parts and rows of the corpus, and the name of the part of pictures that they make."""

  parts: range
  rows: slice
  name: str


def pieces(found: Found, shared: Shared, size: int) -> list[Piece]:
  """Cuts the corpus into pieces with `size` new pictures or a little more."""
  shared.save(_FIRST, found.first)
  # Pictures that are new before each part, and in all of them.
  new = np.concatenate([[0], np.cumsum(found.first)])[found.start]
  cut, begin = [], 0
  for end in range(1, len(new)):
    if new[end] - new[begin] >= size or (end == len(new) - 1 and new[end] > new[begin]):
      name = parts.part_name(int(new[begin]), int(new[end]))
      rows = slice(int(found.start[begin]), int(found.start[end]))
      cut.append(Piece(range(begin, end), rows, name))
      begin = end
  return cut


class Embed(beam.DoFn):
  """Piece -> a part of embeddings, unless it is there."""

  def __init__(self, shared: Shared, clip: epath.Path, folder: epath.Path, origin: parts.Origin):
    self._shared, self._clip, self._folder, self._origin = shared, clip, folder, origin
    self._handle = OneAProcess()

  def setup(self):
    # Beam makes several of us in a process, one a thread: the tower is there once.
    self._embedder = self._handle.acquire(lambda: embed.Embedder(hf.load_clip(self._clip)))

  def process(self, piece: Piece):
    first = self._shared.load(_FIRST)[piece.rows]
    rows = self._shared.examples(piece.parts)
    new = (row for row, is_first in zip(rows, first, strict=True) if is_first)
    parts.write_one(self._embedder, new, self._folder, piece.name, self._origin)
