"""Encoded pictures: which are read, as what, and which are refused, and why."""

import contextlib
import io

import numpy as np
import odd_pictures
import pytest
from PIL import Image

from mixjax.atlas import embed
from mixjax.data import pictures, tiles
from mixjax.data.bad_records import BadRecord
from mixjax.data.pictures import LIMITS, PictureLimits

REASONS = {
  "zero bytes": "zero bytes",
  "no picture": "no picture: UnidentifiedImageError",
  "truncated": "truncated picture: OSError",
  "bomb": "decompression bomb",
  "large": "decompression bomb: 8000 x 7000 pixels, over 50000000",
  "aspect 300": "aspect ratio of 600 x 2, over 200",
  "floats": "floating-point",
}


@pytest.mark.parametrize("name", odd_pictures.READABLE)
def test_odd_pictures_are_read(name):
  image = pictures.read(odd_pictures.READABLE[name], LIMITS)
  assert tiles.rgb(image).size == image.size
  assert pictures.measure(odd_pictures.READABLE[name], LIMITS, decode=False) == tiles.size_of(image)


@pytest.mark.parametrize("name", odd_pictures.BROKEN)
def test_broken_pictures_are_refused(name):
  with pytest.raises(BadRecord, match=REASONS[name]):
    pictures.read(odd_pictures.BROKEN[name], LIMITS)


@pytest.mark.parametrize("name", ["bomb", "large", "aspect 300", "zero bytes", "no picture"])
def test_most_are_refused_by_their_header(name, monkeypatch):
  monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
  with pytest.raises(BadRecord, match=REASONS[name]):
    pictures.header(odd_pictures.BROKEN[name], LIMITS)


def test_the_limits_are_the_users():
  small = PictureLimits(pixels=1000, aspect=100)
  for name in ("palette", "strip"):
    with pytest.raises(BadRecord):
      pictures.read(odd_pictures.READABLE[name], small)
  assert pictures.read(odd_pictures.BROKEN["aspect 300"], PictureLimits(aspect=300)).size == (
    600,
    2,
  )


def test_16_bits_keep_their_shades():
  image = pictures.read(odd_pictures.READABLE["16-bit"], LIMITS)
  shades = np.asarray(tiles.rgb(image))
  np.testing.assert_array_equal(shades[..., 0], odd_pictures.SIXTEEN_BITS >> 8)


def test_cmyk_and_the_first_frame_keep_their_colours():
  for name, seed in (("cmyk", 0), ("animated", 1)):
    image = tiles.rgb(pictures.read(odd_pictures.READABLE[name], LIMITS))
    expected = np.asarray(odd_pictures.picture(seed=seed), np.int64)
    assert np.abs(np.asarray(image, np.int64) - expected).mean() < 12


def test_every_end_of_a_jpeg_is_read_or_refused():
  """Wherever a file was cut, the outcome is a picture or a BadRecord."""
  whole = odd_pictures.encoded(odd_pictures.picture((64, 48)), "JPEG")
  for end in range(0, len(whole) - 2, 7):
    with pytest.raises(BadRecord):
      pictures.read(whole[:end], LIMITS)
  rng = np.random.default_rng(0)
  for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"):
    whole = odd_pictures.encoded(odd_pictures.picture((64, 48)), kind)
    for _ in range(20):
      damaged = bytearray(whole)
      for at in rng.integers(0, len(whole), 5):
        damaged[at] = rng.integers(256)
      with contextlib.suppress(BadRecord):
        tiles.rgb(pictures.read(bytes(damaged), LIMITS))


def test_sixteen_bits_look_alike_to_the_atlas_and_to_the_loader():
  ramp = (np.linspace(0, 1, 64 * 64).reshape(64, 64) * 65535).astype(np.uint16)
  buffer = io.BytesIO()
  Image.fromarray(ramp).save(buffer, "PNG")
  seen = embed.decode(buffer.getvalue(), 64)
  np.testing.assert_array_equal(seen[..., 0], ramp >> 8)
  np.testing.assert_array_equal(np.asarray(pictures.read(buffer.getvalue(), LIMITS)), ramp >> 8)
