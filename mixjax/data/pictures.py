"""Encoded pictures as 8-bit images: what can be read is read, anything else is a BadRecord.

Of an animation the first frame counts. Palettes, CMYK and transparency are left to `tiles.rgb`.
"""

import dataclasses
import io

from PIL import Image

from mixjax.corpus.pixels import eight_bits
from mixjax.data.bad_records import BadRecord
from mixjax.data.tiles import size_of
from mixjax.models.anyres import Size


@dataclasses.dataclass(frozen=True)
class PictureLimits:
  """What a picture may be. Both are judged by the file's header, before anything is decoded.

  `pixels` bounds memory and time (a file of a few kB can claim gigapixels); `aspect` is of the long
  side to the short one: the close-up of a longer strip has not one row of patches.
  """

  pixels: int = 50_000_000
  aspect: float = 200.0


LIMITS = PictureLimits()


def header(encoded: bytes, limits: PictureLimits) -> Image.Image:
  """The picture with its size known and its pixels not yet decoded. Raises BadRecord."""
  if not encoded:
    raise BadRecord("picture of zero bytes")
  try:
    image = Image.open(io.BytesIO(encoded))
    height, width = size_of(image)
  except Image.DecompressionBombError as error:
    raise BadRecord(f"decompression bomb: {error}") from error
  except Exception as error:  # Pillow's readers raise whatever their formats made them
    raise BadRecord(f"no picture: {type(error).__name__}") from error
  if min(height, width) < 1:
    raise BadRecord(f"picture of {width} x {height} pixels")
  if height * width > limits.pixels:
    raise BadRecord(f"decompression bomb: {width} x {height} pixels, over {limits.pixels}")
  if max(height, width) > limits.aspect * min(height, width):
    raise BadRecord(f"aspect ratio of {width} x {height}, over {limits.aspect:g}")
  return image


def read(encoded: bytes, limits: PictureLimits) -> Image.Image:
  """The decoded picture, 8 bits a channel. Raises BadRecord."""
  image = header(encoded, limits)
  try:
    image.load()
  except Exception as error:
    # Some messages tell the address of an object: the kind of error is enough, and stays the same.
    kind = "truncated picture" if "truncated" in str(error) else "damaged picture"
    raise BadRecord(f"{kind}: {type(error).__name__}") from error
  try:
    return eight_bits(image)
  except ValueError as error:
    raise BadRecord(str(error)) from error


def measure(encoded: bytes, limits: PictureLimits, decode: bool) -> Size:
  """(height, width); with `decode`, of a picture that can be read to its end. Raises BadRecord."""
  return size_of(read(encoded, limits) if decode else header(encoded, limits))
