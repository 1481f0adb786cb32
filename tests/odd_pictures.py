"""Real files of the kinds that stop other loaders: READABLE ones and BROKEN ones, by name."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def encoded(image, kind="PNG", **options):
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def picture(size=(40, 30), mode="RGB", seed=0):
  """A smooth picture, so that JPEG keeps it; size is (height, width)."""
  rng = np.random.default_rng(seed)
  small = Image.fromarray(rng.integers(0, 256, (3, 3, 3), np.uint8))
  return small.resize(size[::-1], Image.Resampling.BICUBIC).convert(mode)


def claiming(width, height):
  """A PNG of one pixel whose header claims another size."""
  whole = encoded(Image.new("RGB", (1, 1)))
  header = b"IHDR" + struct.pack(">II", width, height) + whole[24:29]
  return whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:]


SIXTEEN_BITS = np.linspace(0, 0xFFFF, 40 * 30).reshape(40, 30).astype(np.uint16)
_JPEG = encoded(picture((200, 160)), "JPEG", quality=95)

READABLE = {
  "cmyk": encoded(picture(mode="CMYK"), "JPEG"),
  "palette": encoded(picture(mode="P")),
  "transparent": encoded(picture(mode="RGBA")),
  "16-bit": encoded(Image.fromarray(SIXTEEN_BITS)),
  "animated": encoded(
    picture(seed=1), "GIF", save_all=True, append_images=[picture(seed=2), picture(seed=3)]
  ),
  "strip": encoded(picture((2, 300))),
}

BROKEN = {
  "zero bytes": b"",
  "no picture": b"<html>not found</html>",
  "truncated": _JPEG[: len(_JPEG) // 3],
  "bomb": claiming(100_000, 100_000),
  "large": claiming(8_000, 7_000),
  "aspect 300": encoded(picture((2, 600))),
  "floats": encoded(Image.fromarray(np.ones((5, 5), np.float32)), "TIFF"),
}
