"""Encoded pictures: which are read, as what, and why the others are not.

Lint, atlas, labellers and loaders all open pictures here and under the same limits, so that what
one of them reads the others read. Of an animation the first frame counts.
"""

import dataclasses
import io
import re

import numpy as np
from PIL import Image, UnidentifiedImageError

EMPTY, TRUNCATED, UNREADABLE = "zero bytes", "truncated", "unreadable"
TOO_LARGE, TOO_LONG, NO_RANGE = "too many pixels", "aspect ratio", "unknown range"

WHITE = (255, 255, 255, 255)


class BadPicture(ValueError):
  """A picture that cannot be used; `kind` is one of this module's reasons."""

  def __init__(self, kind: str, detail: str):
    super().__init__(f"{kind}: {detail}")
    self.kind, self.detail = kind, detail


@dataclasses.dataclass(frozen=True)
class PictureLimits:
  """What a picture may be. Both are judged by the file's header, before anything is decoded.

  `pixels` bounds memory and time (a file of a few kB can claim gigapixels); `aspect` is of the long
  side to the short one: the close-up of a longer strip has not one row of patches.
  """

  pixels: int = 50_000_000
  aspect: float = 200.0


LIMITS = PictureLimits()


def header(data: bytes, limits: PictureLimits = LIMITS) -> Image.Image:
  """The picture with its size known and its pixels not yet decoded. Raises BadPicture."""
  if not data:
    raise BadPicture(EMPTY, "the file is missing or empty")
  try:
    image = Image.open(io.BytesIO(data))
  except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
    raise BadPicture(TOO_LARGE, str(error)) from error
  except UnidentifiedImageError as error:
    raise BadPicture(UNREADABLE, f"no picture begins with {data[:16]!r}") from error
  except Exception as error:  # Pillow's readers raise whatever their formats made them
    raise _unreadable(error) from error
  width, height = image.size
  said = f"{width} x {height}"
  if min(width, height) < 1:
    raise BadPicture(UNREADABLE, f"{said} pixels")
  if width * height > limits.pixels:
    raise BadPicture(TOO_LARGE, f"{said}, over {limits.pixels}, in {len(data)} bytes")
  if max(width, height) > limits.aspect * min(width, height):
    raise BadPicture(TOO_LONG, f"{said}, over {limits.aspect:g}")
  return image


def decoded(image: Image.Image) -> Image.Image:
  """A picture of `header`, read to its end, 8 bits a channel. Raises BadPicture."""
  try:
    image.load()
  except Exception as error:
    raise _unreadable(error) from error
  return _eight_bits(image)


def read(data: bytes, limits: PictureLimits = LIMITS) -> Image.Image:
  """The decoded picture, 8 bits a channel; `rgb` makes colours of it. Raises BadPicture."""
  return decoded(header(data, limits))


def size_of(image: Image.Image) -> tuple[int, int]:
  """(height, width), which PIL has the other way round."""
  return image.height, image.width


def measure(data: bytes, limits: PictureLimits, decode: bool) -> tuple[int, int]:
  """(height, width); with `decode`, of a picture that can be read to its end. Raises BadPicture."""
  return size_of(read(data, limits) if decode else header(data, limits))


def rgb(image: Image.Image) -> Image.Image:
  """Red, green and blue, of palettes and CMYK too; transparency is laid over white."""
  if "A" in image.getbands() or image.info.get("transparency") is not None:
    image = image.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image)
  return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
  """The picture as it is, or its 16 bits as 8: Pillow would clip them, and turn most of it white.

  Raises BadPicture for pixels whose range is not known: floating point, or beyond 16 bits.
  """
  if image.mode == "F":
    raise BadPicture(NO_RANGE, "pixels in floating point")
  if image.mode.startswith("I"):
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 0xFFFF:
      raise BadPicture(NO_RANGE, "pixels of 32 bits")
    return Image.fromarray((values >> 8).astype(np.uint8), "L")
  return image


def _unreadable(error: Exception) -> BadPicture:
  # Some messages tell the address of an object: a ledger is to be the same each time.
  said = re.sub(r"\s*<[^<>]* at 0x\w+>", "", f"{type(error).__name__}: {error}").removesuffix(": ")
  cut = any(word in said.lower() for word in ("truncated", "end of", "broken data stream", "eof"))
  return BadPicture(TRUNCATED if cut else UNREADABLE, said)
