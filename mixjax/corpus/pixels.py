"""Pictures of more than eight bits a channel, as the eight that every reader of pixels takes."""

import numpy as np
from PIL import Image


def eight_bits(image: Image.Image) -> Image.Image:
  """The picture as it is, or its 16 bits as 8: Pillow would clip them, and turn most of it white.

  Raises ValueError for pixels whose range is not known: floating point, or beyond 16 bits.
  """
  if image.mode == "F":
    raise ValueError("picture of floating-point pixels: their range is not known")
  if image.mode.startswith("I"):
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 0xFFFF:
      raise ValueError("picture of 32-bit pixels: their range is not known")
    return Image.fromarray((values >> 8).astype(np.uint8), "L")
  return image
