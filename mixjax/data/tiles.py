"""Pictures as the tiles that LLaVA-NeXT sees, equal to transformers' LlavaNextImageProcessorPil.

Tiles stay bytes until they are on the device, where `clip.preprocess` normalises them: a quarter of
the traffic. Padding is black before normalisation, as in the reference.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from mixjax.corpus.pixels import rgb, size_of
from mixjax.models.anyres import Anyres, Size, grouped


def cut(image: Image.Image, geometry: Anyres) -> UInt8[np.ndarray, "n s s 3"]:
  """The base view, then the close-up's tiles row by row. What is transparent turns white."""
  image, side = rgb(image), geometry.tile
  height, width = geometry.resolution(size_of(image))
  close = resized(image, geometry.fitted(size_of(image)))
  top, left = (height - close.shape[0]) // 2, (width - close.shape[1]) // 2
  canvas = np.zeros((height, width, 3), np.uint8)
  canvas[top : top + close.shape[0], left : left + close.shape[1]] = close
  tiles = canvas.reshape(height // side, side, width // side, side, 3).swapaxes(1, 2)
  base = resized(image, (side, side))
  return np.concatenate([base[None], tiles.reshape(-1, side, side, 3)])


def stack(
  rows: Sequence[Sequence[Shaped[np.ndarray, "_ ..."]]],
  shape: tuple[int, ...],
  dtype: type = np.uint8,
) -> Shaped[np.ndarray, "g n ..."]:
  """The tiles of a batch, or their features, as `Anyres.index` counts them; empty slots are zero.

  rows: an array for each picture of each row, its first axis over tiles.
  shape: groups of rows, tiles that a group has room for, then the shape of a tile.

  Raises ValueError if a group has more tiles, or if the groups do not divide the rows.
  """
  stacked = np.zeros(shape, dtype)
  for group, members in enumerate(grouped(rows, shape[0])):
    end = 0
    for picture in (picture for row in members for picture in row):
      start, end = end, end + len(picture)
      if end > shape[1]:
        raise ValueError(
          f"group {group} of {shape[0]} has more tiles than its {shape[1]} slots: make more slots, "
          "or groups of fewer rows"
        )
      stacked[group, start:end] = picture
  return stacked


def resized(image: Image.Image, size: Size) -> UInt8[np.ndarray, "h w 3"]:
  """Bicubic, to (height, width)."""
  return np.asarray(image.resize(size[::-1], Image.Resampling.BICUBIC))
