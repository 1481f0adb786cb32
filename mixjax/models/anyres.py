"""LLaVA-NeXT's geometry: into which tiles a picture is cut, and which patches the model reads.

A picture is seen twice: whole, squeezed into one square tile (the base view), and close up: fitted
into the best of a few resolutions, padded to it, and cut into tiles row by row. The language model
reads the patches of the base view, then those of the close-up without rows or columns of padding,
and a learnt newline after each row.

All of this is integer arithmetic on the host, rounded as transformers 5.23 rounds. What the device
gets is an array of indices of one shape, whatever the pictures. Sizes are (height, width).
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

Size = tuple[int, int]

PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))

# What an image token shows where it is not a patch.
NEWLINE, NOTHING = -1, -2


@dataclasses.dataclass(frozen=True)
class Anyres:
  """Tiles of `tile` pixels a side, patches of `patch` pixels, and the close-up's resolutions."""

  tile: int = 336
  patch: int = 14
  pinpoints: tuple[Size, ...] = PINPOINTS

  def __post_init__(self):
    if self.tile % self.patch:
      raise ValueError(f"tile={self.tile} is not a multiple of patch={self.patch}")
    if not self.pinpoints:
      raise ValueError("image_grid_pinpoints is empty: give at least one (height, width)")
    for size in self.pinpoints:
      if len(size) != 2 or min(size) < 1 or size[0] % self.tile or size[1] % self.tile:
        raise ValueError(
          f"image_grid_pinpoints holds {size}: height and width must be multiples of {self.tile}, "
          "the side of a tile"
        )

  @property
  def side(self) -> int:
    """Patches along a tile."""
    return self.tile // self.patch

  @property
  def max_tiles(self) -> int:
    """The most tiles that one picture can take."""
    return 1 + max(height * width for height, width in self.pinpoints) // self.tile**2

  @property
  def max_tokens(self) -> int:
    """The most image tokens that one picture can take."""
    shapes = ((height // self.patch, width // self.patch) for height, width in self.pinpoints)
    return self.side**2 + max(rows * (columns + 1) for rows, columns in shapes)

  def resolution(self, size: Size) -> Size:
    """The resolution that keeps most of a picture's pixels; of equal ones, the smallest.

    Raises ValueError for a size without pixels.
    """
    if min(size) < 1:
      raise ValueError(f"a picture of {size} (height, width) has no pixels")

    def merit(resolution: Size) -> Size:
      scale = min(resolution[1] / size[1], resolution[0] / size[0])
      kept = min(int(size[1] * scale) * int(size[0] * scale), size[0] * size[1])
      return kept, -resolution[0] * resolution[1]

    return max(self.pinpoints, key=merit)

  def fitted(self, size: Size) -> Size:
    """The close-up's size before it is padded, in the middle, to its resolution."""
    height, width = self.resolution(size)
    down, across = height / size[0], width / size[1]
    if across < down:
      return min(math.ceil(size[0] * across), height), width
    return height, min(math.ceil(size[1] * down), width)

  def grid(self, size: Size) -> Size:
    """Tiles of the close-up, down and across."""
    height, width = self.resolution(size)
    return height // self.tile, width // self.tile

  def num_tiles(self, size: Size) -> int:
    """Tiles of a picture, base view included."""
    down, across = self.grid(size)
    return 1 + down * across

  def margins(self, size: Size) -> Size:
    """Patches of the close-up that are padding alone: rows above (and below), columns on the left
    (and on the right). One of the two is zero.
    """
    rows, columns = (self.side * tiles for tiles in self.grid(size))
    if size[1] / size[0] > columns / rows:
      return (rows - int(round(size[0] * (columns / size[1]), 7))) // 2, 0
    return 0, (columns - int(round(size[1] * (rows / size[0]), 7))) // 2

  def num_tokens(self, size: Size) -> int:
    """Image tokens of a picture."""
    rows, columns = (self.side * tiles for tiles in self.grid(size))
    above, left = self.margins(size)
    return self.side**2 + (rows - 2 * above) * (columns - 2 * left + 1)

  def tokens(self, size: Size) -> Int[np.ndarray, " m"]:
    """The patch that each image token of a picture shows, or NEWLINE.

    Patches count row by row within a tile and on from tile to tile.
    """
    down, across = self.grid(size)
    base, side = self.side**2, self.side
    patches = np.arange(base, base * (1 + down * across), dtype=np.int32)
    patches = patches.reshape(down, across, side, side).swapaxes(1, 2)
    patches = patches.reshape(down * side, across * side)
    above, left = self.margins(size)
    patches = patches[above : len(patches) - above, left : patches.shape[1] - left]
    lines = np.pad(patches, ((0, 0), (0, 1)), constant_values=NEWLINE)
    return np.concatenate([np.arange(base, dtype=np.int32), lines.ravel()])

  def index(
    self, rows: Sequence[Sequence[Size]], length: int, groups: int = 1
  ) -> Int[np.ndarray, "b {length}"]:
    """The patch that each image token of a batch shows, NEWLINE, or NOTHING after the last one.

    rows: the sizes of each row's pictures in the order of their tokens; a row may have none.
    length: image tokens that a row has room for.
    groups: rows are split into so many groups of neighbours. Patches count from 0 in each group,
      through its pictures one after another (`data.tiles.stack` lays them so), which lets the
      groups lie on different devices.

    Raises ValueError if a row has more tokens than `length`, or `groups` does not divide the rows.
    """
    index = np.full((len(rows), length), NOTHING, np.int32)
    for group in grouped(range(len(rows)), groups):
      first = 0
      for row in group:
        parts = [np.zeros(0, np.int32)]
        for size in rows[row]:
          tokens = self.tokens(size)
          parts.append(np.where(tokens < 0, tokens, tokens + first))
          first += self.num_tiles(size) * self.side**2
        tokens = np.concatenate(parts)
        if len(tokens) > length:
          raise ValueError(
            f"row {row} has {len(tokens)} image tokens of pictures {list(rows[row])} and room for "
            f"{length}: raise `length` (one picture takes at most {self.max_tokens})"
          )
        index[row, : len(tokens)] = tokens
    return index


def grouped(rows: Sequence, groups: int) -> list[Sequence]:
  """Rows in equal groups of neighbours. Raises ValueError if `groups` does not divide them."""
  if groups < 1 or not rows or len(rows) % groups:
    raise ValueError(f"{len(rows)} rows do not make {groups} equal groups")
  size = len(rows) // groups
  return [rows[start : start + size] for start in range(0, len(rows), size)]
