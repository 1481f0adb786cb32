"""What a picture is, told at the least cost: its size, kind and a hash of what it looks like."""

import dataclasses
import io

import numpy as np
from PIL import Image, UnidentifiedImageError

MISSING, EMPTY, TRUNCATED = "missing file", "zero bytes", "truncated"
BOMB, UNREADABLE = "too many pixels", "unreadable"

MAX_PIXELS = 100_000_000  # decoded; more is taken for a decompression bomb
_MARGIN = 4  # of 255: what differs by less is flat, and noise would decide
_PLAIN = 6  # bits: with no more of them set, any picture looks like an empty one
_VIEW = 256  # pixels a side that decoding may be cut down to
_THUMBNAIL = 112


class BadPicture(ValueError):
  """A picture that cannot be used; `kind` is one of this module's reasons."""

  def __init__(self, kind: str, detail: str):
    super().__init__(f"{kind}: {detail}")
    self.kind, self.detail = kind, detail


@dataclasses.dataclass(frozen=True)
class Facts:
  """size: (height, width); kind: format and mode, as in "JPEG RGB"; looks: 128 bits of dHash.

  plain: too flat for `looks` to mean anything.
  """

  size: tuple[int, int]
  kind: str
  frames: int
  looks: tuple[int, int]
  plain: bool


def inspect(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[Facts, Image.Image]:
  """The facts, and a small view of the picture. All of its data is decoded, once.

  Raises BadPicture, whatever is wrong with the data.
  """
  if not data:
    raise BadPicture(EMPTY, "no data")
  try:
    image = _opened(data)
    size = image.height, image.width
    if size[0] * size[1] > max_pixels:
      raise BadPicture(BOMB, f"{size[1]} x {size[0]} pixels in {len(data)} bytes")
    kind, frames = f"{image.format} {image.mode}", getattr(image, "n_frames", 1)
    image.draft("RGB", (_VIEW, _VIEW))  # a JPEG is decoded at an eighth of its size where it can be
    image.load()
    view = _rgb(image)
  except BadPicture:
    raise
  except UnidentifiedImageError as error:
    raise BadPicture(UNREADABLE, f"no picture begins with {data[:16]!r}") from error
  except Exception as error:  # decoders raise whatever they like
    said = f"{type(error).__name__}: {error}"
    cut = any(word in said.lower() for word in ("truncated", "end of", "broken data stream", "eof"))
    raise BadPicture(TRUNCATED if cut else UNREADABLE, said) from error
  view.thumbnail((_VIEW, _VIEW), Image.Resampling.BOX)
  looks = difference_hash(view)
  plain = sum(word.bit_count() for word in looks) <= _PLAIN
  return Facts(size, kind, frames, looks, plain), view


def _opened(data: bytes) -> Image.Image:
  """The picture before anything is decoded, however large it says it is."""
  limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
  try:
    return Image.open(io.BytesIO(data))
  finally:
    Image.MAX_IMAGE_PIXELS = limit


def _rgb(image: Image.Image) -> Image.Image:
  if image.mode.startswith("I;16") or image.mode in ("I", "F"):
    pixels = np.asarray(image, np.float32)
    top = 65535 if image.mode != "F" else max(float(pixels.max()), 1e-9)
    image = Image.fromarray((np.clip(pixels / top, 0, 1) * 255).astype(np.uint8))
  if "A" in image.getbands() or "transparency" in image.info:
    image = image.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, (255,) * 4), image)
  return image.convert("RGB")


def difference_hash(image: Image.Image) -> tuple[int, int]:
  """Two words of 64 bits: whether each of 8 x 8 places is darker than its right neighbour, and than
  the one below, by more than a margin.

  dHash, in both directions. Of the gallery's pictures (128 pixels, much of them flat: a hard case)
  90% to 100% stay within 6 bits of themselves as a JPEG of quality 40, at half and at 2.3 times
  their size; without the margin, and across only, 67% to 98% stay within 3 bits of 64, with more
  false matches.
  """
  gray = image.convert("L")
  across = np.asarray(gray.resize((9, 8), Image.Resampling.BOX), np.int16)
  down = np.asarray(gray.resize((8, 9), Image.Resampling.BOX), np.int16)
  darker = (across[:, :-1] + _MARGIN < across[:, 1:], down[:-1] + _MARGIN < down[1:])
  first, second = (int.from_bytes(np.packbits(bits).tobytes()) for bits in darker)
  return first, second


def thumbnail(view: Image.Image) -> bytes:
  """A small JPEG."""
  small = view.copy()
  small.thumbnail((_THUMBNAIL, _THUMBNAIL))
  out = io.BytesIO()
  small.save(out, "JPEG", quality=70)
  return out.getvalue()
