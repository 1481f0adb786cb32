"""Encoded pictures: which are read, as what, and which are refused, and why."""

import io

import hypothesis
import numpy as np
import odd_pictures
import pytest
from hypothesis import strategies as st
from PIL import Image

from mixjax.atlas import embed
from mixjax.corpus import pixels
from mixjax.corpus.labellers.labeller import Refusal, opened
from mixjax.corpus.lint import picture
from mixjax.corpus.pixels import LIMITS, BadPicture, PictureLimits

REASONS = {
  "zero bytes": "zero bytes",
  "no picture": "unreadable: no picture begins with b'<html>",
  "truncated": "truncated: OSError: image file is truncated",
  "bomb": "too many pixels: Image size",
  "large": "too many pixels: 8000 x 7000, over 50000000, in",
  "aspect 300": "aspect ratio: 600 x 2, over 200",
  "floats": "unknown range: pixels in floating point",
}


@pytest.mark.parametrize("name", odd_pictures.READABLE)
def test_odd_pictures_are_read(name):
  image = pixels.read(odd_pictures.READABLE[name], LIMITS)
  assert pixels.rgb(image).size == image.size
  assert pixels.measure(odd_pictures.READABLE[name], LIMITS, decode=False) == pixels.size_of(image)


@pytest.mark.parametrize("name", odd_pictures.BROKEN)
def test_broken_pictures_are_refused(name):
  with pytest.raises(BadPicture, match=REASONS[name]):
    pixels.read(odd_pictures.BROKEN[name], LIMITS)


@pytest.mark.parametrize("name", ["bomb", "large", "aspect 300", "zero bytes", "no picture"])
def test_most_are_refused_by_their_header(name, monkeypatch):
  monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
  with pytest.raises(BadPicture, match=REASONS[name]):
    pixels.header(odd_pictures.BROKEN[name], LIMITS)


def test_the_limits_are_the_users():
  small = PictureLimits(pixels=1000, aspect=100)
  for name in ("palette", "strip"):
    with pytest.raises(BadPicture):
      pixels.read(odd_pictures.READABLE[name], small)
  assert pixels.read(odd_pictures.BROKEN["aspect 300"], PictureLimits(aspect=300)).size == (
    600,
    2,
  )


def test_16_bits_keep_their_shades():
  image = pixels.read(odd_pictures.READABLE["16-bit"], LIMITS)
  shades = np.asarray(pixels.rgb(image))
  np.testing.assert_array_equal(shades[..., 0], odd_pictures.SIXTEEN_BITS >> 8)


def test_cmyk_and_the_first_frame_keep_their_colours():
  for name, seed in (("cmyk", 0), ("animated", 1)):
    image = pixels.rgb(pixels.read(odd_pictures.READABLE[name], LIMITS))
    expected = np.asarray(odd_pictures.picture(seed=seed), np.int64)
    assert np.abs(np.asarray(image, np.int64) - expected).mean() < 12


def verdicts(data):
  """What loader, lint, atlas and labellers make of a picture: None, or what is wrong."""
  found = {}
  for name, door in DOORS.items():
    try:
      found[name] = door(data) and None
    except BadPicture as error:
      found[name] = str(error)
  refused = opened(data)
  found["labellers"] = (
    refused.reason.removeprefix("the picture cannot be read: ")
    if isinstance(refused, Refusal)
    else None
  )
  return found


DOORS = {
  "loader": lambda data: pixels.measure(data, LIMITS, decode=True),
  "lint": lambda data: picture.inspect(data),
  "atlas": lambda data: embed.decode(data, 16) is not None,
}
KINDS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP")
MODES = ("RGB", "L", "P", "RGBA", "LA", "CMYK", "1")


@pytest.mark.parametrize("name", [*odd_pictures.READABLE, *odd_pictures.BROKEN])
def test_every_door_takes_the_same_pictures_and_gives_the_same_reason(name):
  data = (odd_pictures.READABLE | odd_pictures.BROKEN)[name]
  (said,) = set(verdicts(data).values())
  assert (said is None) == (name in odd_pictures.READABLE)


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(
  kind=st.sampled_from(KINDS),
  mode=st.sampled_from(MODES),
  size=st.tuples(st.integers(1, 24), st.integers(1, 24) | st.integers(190, 260)),
  keep=st.floats(0, 1),
  damage=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=4),
  options=st.sampled_from([{}, {"progressive": True}, {"quality": 20}]),
)
def test_whatever_happened_to_a_file_every_door_takes_it_or_none_does(
  kind, mode, size, keep, damage, options
):
  """Cut anywhere, with any bytes changed: what lint passes is loaded, and what it names is not."""
  try:
    whole = odd_pictures.encoded(odd_pictures.picture(size, mode), kind, **options)
  except (OSError, ValueError):  # a mode that the format does not have
    return
  data = bytearray(whole if keep > 0.5 else whole[: int(2 * keep * len(whole))])
  for where, value in damage if data else ():
    data[int(where * len(data))] = value
  found = verdicts(bytes(data))
  assert len({said is None for said in found.values()}) == 1, found
  if found["loader"] is None:
    assert pixels.rgb(pixels.read(bytes(data))).mode == "RGB"


def test_a_jpeg_that_lacks_its_end_is_refused():
  whole = odd_pictures.encoded(odd_pictures.picture((64, 48)), "JPEG")
  for end in range(0, len(whole) - 2, 7):
    assert None not in verdicts(whole[:end]).values()


def test_transparency_is_white_to_the_atlas_too():
  clear = odd_pictures.encoded(Image.new("RGBA", (9, 9), (0, 0, 0, 0)))
  assert embed.decode(clear, 4).min() == 255


def test_sixteen_bits_look_alike_to_the_atlas_and_to_the_loader():
  ramp = (np.linspace(0, 1, 64 * 64).reshape(64, 64) * 65535).astype(np.uint16)
  buffer = io.BytesIO()
  Image.fromarray(ramp).save(buffer, "PNG")
  seen = embed.decode(buffer.getvalue(), 64)
  np.testing.assert_array_equal(seen[..., 0], ramp >> 8)
  np.testing.assert_array_equal(np.asarray(pixels.read(buffer.getvalue(), LIMITS)), ramp >> 8)
