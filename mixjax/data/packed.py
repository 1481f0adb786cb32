"""The shapes of a packed batch: what the loader makes and the train step takes.

A row holds several examples one after another, pictures included. Everything is static, so that one
compiled step takes every batch.
"""

import dataclasses
from typing import Any

import numpy as np

PADDING = 0  # the segment of places that hold no token


@dataclasses.dataclass(frozen=True)
class PackedShape:
  """Sizes of a batch of b rows of t tokens, its tiles in g groups of b / g neighbouring rows.

  `rows` is b and `length` t; `image_tokens` (m) is the most image tokens of a row; `tiles` (n) are
  the slots of a group, for tiles of `side` (s) pixels. A device along `data` takes one, or as
  many as the parts its rows pass in.

  Raises ValueError for a size under 1, or where groups do not divide rows.
  """

  rows: int
  length: int
  image_tokens: int
  tiles: int
  groups: int
  side: int = 336

  def __post_init__(self):
    for name, size in vars(self).items():
      if size < 1:
        raise ValueError(f"{name} is {size}: it must be at least 1")
    if self.rows % self.groups:
      raise ValueError(f"groups={self.groups} does not divide rows={self.rows}")

  @property
  def row_tiles(self) -> int:
    """The most tiles of one row: a group then has slots for all tiles of its rows."""
    return self.tiles // (self.rows // self.groups)

  def arrays(self) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """(dtype, shape) of each array of a batch.

    ids: the tokens. positions: 0, 1, 2, ... from the start of each example, 0 in padding. segments:
    1, 2, ... by example within its row, PADDING elsewhere. loss_mask: whether this token is to be
    predicted, from the state before it. tiles: as `tiles.stack` lays them. index: which patch or
    newline each image token shows (`Anyres.index`).
    """
    row = (self.rows, self.length)
    return {
      "ids": (np.int32, row),
      "positions": (np.int32, row),
      "segments": (np.int32, row),
      "loss_mask": (np.bool_, row),
      "tiles": (np.uint8, (self.groups, self.tiles, self.side, self.side, 3)),
      "index": (np.int32, (self.rows, self.image_tokens)),
    }

  def part(self, process_count: int) -> "PackedShape":
    """One host's part of the batch. Raises ValueError unless each host gets whole groups."""
    if process_count < 1 or self.groups % process_count:
      raise ValueError(
        f"{self.groups} groups cannot be dealt to {process_count} processes: make groups a "
        "multiple of the processes"
      )
    rows, groups = self.rows // process_count, self.groups // process_count
    return dataclasses.replace(self, rows=rows, groups=groups)
