"""The pixels that the drawn domains share: named colours, free places on the canvas, blending."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

from mixjax.corpus import tasks
from mixjax.corpus.gallery import picture

COLORS = {
  "red": (214, 62, 58),
  "orange": (240, 150, 50),
  "yellow": (246, 220, 90),
  "green": (92, 172, 84),
  "blue": (72, 122, 214),
  "purple": (146, 88, 190),
  "gray": (140, 142, 146),
  "white": (244, 244, 242),
}


def color_shade(
  name: str, rng: np.random.Generator, spread: float = 12.0
) -> Float[np.ndarray, "3"]:
  """A named colour, every channel moved by up to `spread` of 255."""
  return np.clip(np.array(COLORS[name]) + rng.uniform(-spread, spread, 3), 0, 255)


def sheet(color: Float[np.ndarray, "3"], rng: np.random.Generator) -> Float[np.ndarray, "s s 3"]:
  """A canvas in one colour that grows slightly lighter or darker in a random direction."""
  slope = rng.uniform(-12, 12, 2)
  line = np.linspace(-1, 1, picture.SIZE)
  light = slope[0] * line[:, None] + slope[1] * line[None, :]
  return np.clip(color + light[:, :, None], 0, 255)


def scatter(
  sizes: Sequence[tuple[int, int]], rng: np.random.Generator, gap: int = 2
) -> list[tuple[int, int]] | None:
  """Top-left corners for (height, width) rectangles that do not touch; None when luck runs out."""
  placed: list[tuple[int, int, int, int]] = []
  for height, width in sizes:
    for _ in range(60):
      y = int(rng.integers(0, picture.SIZE - height + 1))
      x = int(rng.integers(0, picture.SIZE - width + 1))
      if all(
        y + height + gap <= top or bottom + gap <= y or x + width + gap <= left or right + gap <= x
        for top, left, bottom, right in placed
      ):
        placed.append((y, x, y + height, x + width))
        break
    else:
      return None
  return [(y, x) for y, x, _, _ in placed]


def blend(
  canvas: Float[np.ndarray, "s s 3"],
  color: Float[np.ndarray, "h w 3"] | Float[np.ndarray, "3"],
  alpha: Float[np.ndarray, "h w"],
  corner: tuple[int, int],
) -> None:
  """Lays `color` over the canvas in place, `alpha` in [0, 1]."""
  (y, x), (height, width) = corner, alpha.shape
  part = canvas[y : y + height, x : x + width]
  part += alpha[:, :, None] * (color - part)


def share_box(corner: tuple[int, int], size: tuple[int, int]) -> tasks.Box:
  """The box in shares of the image for a rectangle in pixels."""
  (y, x), (height, width) = corner, size
  return tuple(c / picture.SIZE for c in (y, x, y + height, x + width))


def finish(canvas: Float[np.ndarray, "s s 3"]) -> UInt8[np.ndarray, "s s 3"]:
  return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
