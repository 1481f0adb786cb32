"""Crops of photographs from scikit-image, scikit-learn and matplotlib, regions marked by hand.

The raw material is scarce: 18 photographs, so a split holds two to seven of them, and most things
in a benchmark's photograph were never seen in training. What does carry over is the light, the
colour (both varied by exposures and filters) and the few things that several files show.
A source is a whole file: no two splits share one.
"""

import functools
import importlib.resources
import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from mixjax.corpus.gallery import ask, canvas
from mixjax.corpus.gallery.picture import SIZE, Domain, Picture, Probe, Thing

_SKIMAGE, _SKLEARN = ("skimage", "data"), ("sklearn", "datasets", "images")
_MATPLOTLIB = ("matplotlib", "mpl-data", "sample_data")

Region = tuple[str, float, float, float, float]

# For each file: where it lies, and its regions as (label, ymin, xmin, ymax, xmax) in tenths of the
# file's height and width, the most telling first. ALL stands for a region that fills the file.
ALL = (0, 0, 10, 10)
FILES: dict[str, tuple[tuple[str, ...], tuple[Region, ...]]] = {
  "astronaut.png": (_SKIMAGE, (
    ("face", 0.3, 3, 3.7, 5.8), ("helmet", 6.7, 5.5, 10, 9.9), ("rocket", 0, 7.1, 5.6, 9.1),
    ("flag", 0, 0, 9, 1.8), ("suit", 4, 0.5, 10, 7),
  )),
  "brick.png": (_SKIMAGE, (("brick wall", *ALL),)),
  "camera.png": (_SKIMAGE, (
    ("man", 1.2, 0, 10, 6.5), ("camera", 2.6, 5, 4, 6.5), ("tripod", 4, 4.5, 10, 8),
    ("lawn", 4.7, 3, 10, 10), ("sky", 0, 0, 3.3, 10),
  )),
  "cell.png": (_SKIMAGE, (("cell", 4.6, 5.7, 7, 8.4),)),
  "chelsea.png": (_SKIMAGE, (
    ("cat", 0, 0, 10, 8.2), ("nose", 6.5, 4.9, 9, 6.7), ("eye", 2.6, 3, 5.1, 4.7),
    ("eye", 3.5, 6.4, 5.5, 7.8),
  )),
  "china.jpg": (_SKLEARN, (
    ("temple", 0.6, 1.2, 9.2, 5.7), ("tree", 2.9, 8.6, 10, 10), ("tree", 7, 3.8, 10, 8.8),
    ("lake", 4.9, 5.2, 6.7, 8.9), ("sky", 0, 4.9, 5, 9.4),
  )),
  "coffee.png": (_SKIMAGE, (
    ("cup", 0.4, 2.8, 6.1, 7.2), ("spoon", 4.8, 5.3, 8.4, 7.3), ("plate", 2.4, 1.2, 9.6, 8.1),
    ("table", *ALL),
  )),
  "coins.png": (_SKIMAGE, (("coin", *ALL),)),
  "flower.jpg": (_SKLEARN, (
    ("flower", 2, 2.6, 8.6, 7.1), ("flower", 8.6, 4.5, 10, 7.3), ("leaf", *ALL),
  )),
  "grace_hopper.jpg": (_MATPLOTLIB, (
    ("face", 2, 3, 6.1, 7.4), ("hat", 0.3, 3, 2.7, 7.3), ("tie", 7.2, 4.3, 9.1, 5.8),
    ("flag", 0, 0, 7, 3), ("suit", 5.5, 0.3, 10, 10),
  )),
  "grass.png": (_SKIMAGE, (("lawn", *ALL),)),
  "gravel.png": (_SKIMAGE, (("stone", *ALL),)),
  "hubble_deep_field.jpg": (_SKIMAGE, (("star", *ALL),)),
  "ihc.png": (_SKIMAGE, (("gland", 5.9, 4.9, 9.7, 7.7), ("tissue slide", *ALL))),
  "moon.png": (_SKIMAGE, (
    ("crater", 1.1, 1.8, 2.4, 3), ("crater", 1.6, 5.8, 3.5, 7.4), ("moon", *ALL),
  )),
  "motorcycle_left.png": (_SKIMAGE, (
    ("bike", 2.2, 1.2, 9.1, 9.3), ("wheel", 4.6, 1.6, 8.2, 3.8), ("wheel", 5.7, 6.8, 9.1, 9.3),
    ("shelf", 0, 4.6, 3.6, 10),
  )),
  "retina.jpg": (_SKIMAGE, (("retina", *ALL),)),
  "rocket.jpg": (_SKIMAGE, (
    ("rocket", 2.9, 4.6, 9.7, 5.5), ("tower", 0, 0, 8.2, 1.5), ("tower", 0, 8.7, 10, 10),
    ("lamp", 8.3, 1.8, 10, 3.5), ("sky", *ALL),
  )),
}  # fmt: skip

LABELS = tuple(sorted({label for _, regions in FILES.values() for label, *_ in regions}))
FILTERS = ("red", "yellow", "green", "blue", "purple")
MANY = ("coin", "leaf", "star", "stone")  # labels of what never comes alone


def sources() -> Sequence[str]:
  return list(FILES)


@functools.cache
def photograph(name: str) -> Image.Image:
  """The file in RGB, at most 512 pixels on its longer side."""
  package, *folders = FILES[name][0]
  path = importlib.resources.files(package).joinpath(*folders, name)
  image = Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
  scale = 512 / max(image.size)
  if scale >= 1:
    return image
  return image.resize([round(s * scale) for s in image.size], Image.Resampling.LANCZOS)


def _visible(name: str, crop: tuple[float, float, float, float], mirrored: bool) -> list[Thing]:
  """The regions that show well enough in the crop, with boxes in shares of the crop.

  A region shows when half of it is inside or when it fills a quarter of the crop, and when it is
  at least an eighth of the picture wide and high.
  """
  width, height = photograph(name).size
  left, top, right, bottom = crop
  things = []
  for label, *tenths in FILES[name][1]:
    ymin, xmin, ymax, xmax = (t / 10 * s for t, s in zip(tenths, (height, width) * 2, strict=True))
    box = [
      (max(ymin, top) - top) / (bottom - top),
      (max(xmin, left) - left) / (right - left),
      (min(ymax, bottom) - top) / (bottom - top),
      (min(xmax, right) - left) / (right - left),
    ]
    tall, wide = box[2] - box[0], box[3] - box[1]
    area = tall * wide * (bottom - top) * (right - left)
    inside = area >= 0.5 * (ymax - ymin) * (xmax - xmin) or tall * wide >= 0.25
    if min(tall, wide) >= 0.125 and inside:
      if mirrored:
        box[1], box[3] = 1 - box[3], 1 - box[1]
      things.append(Thing(label, tuple(box)))
  return things


# Where each colour's hue ends, of 256.
HUES = {10: "red", 30: "orange", 50: "yellow", 117: "green", 184: "blue", 241: "purple", 256: "red"}


def _look(image: UInt8[np.ndarray, "s s 3"]) -> tuple[str, str]:
  """("dark", "" or "bright"; the name of the strongest colour, "gray" where all are faint)."""
  light = image.mean((0, 1)) @ (0.299, 0.587, 0.114)
  brightness = "dark" if light < 85 else "bright" if light > 150 else ""
  hue, saturation, value = np.moveaxis(np.asarray(Image.fromarray(image).convert("HSV")), -1, 0)
  chroma = saturation.ravel() / 255.0 * value.ravel()
  if chroma.mean() < 14:
    return brightness, "gray"
  bins = np.searchsorted(list(HUES), hue.ravel(), side="right")
  strength = dict.fromkeys(HUES.values(), 0.0)
  for name, total in zip(HUES.values(), np.bincount(bins, chroma, len(HUES)), strict=True):
    strength[name] += total
  return brightness, max(strength, key=strength.__getitem__)


def _caption(things: Sequence[Thing], brightness: str, color: str) -> str:
  names = list(dict.fromkeys(t.label for t in things))[:3]
  phrases = [ask.plural(n) if n in MANY else ask.a(n) for n in names]
  look = " ".join(filter(None, (brightness, color, "photo")))
  return f"{ask.a(look)} of {ask.listing(phrases)}"


def _filtered(
  pixels: Float[np.ndarray, "s s 3"], rng: np.random.Generator
) -> Float[np.ndarray, "s s 3"]:
  """A new exposure and mostly a coloured filter: by themselves most files are gray or orange."""
  exposed = np.clip(pixels * 2 ** rng.uniform(-0.9, 0.7), 0, 255)
  if rng.random() < 0.25:
    return exposed
  tint = canvas.COLORS[FILTERS[rng.integers(len(FILTERS))]]
  gray = exposed @ (0.299, 0.587, 0.114)
  return 0.3 * exposed + 0.7 * gray[:, :, None] * np.array(tint) / np.mean(tint)


def _view(
  name: str, rng: np.random.Generator
) -> tuple[UInt8[np.ndarray, "s s 3"], list[Thing], tuple[str, str]]:
  """A random square crop with something to see: the pixels, the things, the look."""
  image = photograph(name)
  while True:
    side = rng.uniform(0.4, 1.0) * min(image.size)
    left, top = (rng.uniform(0, s - side) for s in image.size)
    mirrored = bool(rng.integers(2))
    crop = (left, top, left + side, top + side)
    things = _visible(name, crop, mirrored)
    if things:
      break
  small = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=crop, reducing_gap=2.0)
  pixels = _filtered(np.asarray(small, np.float64), rng)
  pixels = canvas.finish(pixels[:, ::-1] if mirrored else pixels)
  return pixels, things, _look(pixels)


def _look_captions(
  things: Sequence[Thing], look: tuple[str, str], rng: np.random.Generator
) -> list[str]:
  """The caption's things in three other colours."""
  colors = [c for c in canvas.COLORS if c not in (look[1], "white")]
  return [_caption(things, look[0], colors[i]) for i in rng.permutation(len(colors))[:3]]


def _probes(
  source: str, things: Sequence[Thing], look: tuple[str, str], rng: np.random.Generator
) -> tuple[Probe, ...]:
  caption = _caption(things, *look)
  files = [name for name in FILES if name != source]
  others: list[str] = []
  for i in rng.permutation(len(files)):
    _, seen, seen_look = _view(files[i], rng)
    other = _caption(seen, *seen_look)
    if other != caption and other not in others:
      others.append(other)
    if len(others) == 3:
      break
  looks = _look_captions(things, look, rng)
  kind = Probe("breadth", ask.KIND_QUESTION, "photo", ask.choices("photo", ask.KINDS, rng))
  fits = Probe("breadth", ask.CAPTION_QUESTION, caption, ask.choices(caption, looks, rng))
  return (
    Probe("scenes", ask.CAPTION_QUESTION, caption, ask.choices(caption, others, rng)),
    fits if rng.integers(2) else kind,
  )


def render(source: str, rng: np.random.Generator, held_out: bool) -> Picture:
  """A crop of the file. The held-out style is the same: its files are what training never shows."""
  image, things, look = _view(source, rng)
  here = {t.label for t in things}
  elsewhere = [n for n in LABELS if n not in {label for label, *_ in FILES[source][1]}]
  yes = bool(rng.integers(2))
  asked = sorted(here) if yes else elsewhere
  return Picture(
    source=source,
    image=image,
    caption=_caption(things, *look),
    text="",
    things=tuple(things[:3]),
    questions=(
      (ask.CONTENT_QUESTION, things[0].label),
      (ask.is_there(asked[rng.integers(len(asked))]), "yes" if yes else "no"),
      (ask.what_color("photo"), look[1]),
    ),
    probes=_probes(source, things, look, rng),
  )


DOMAIN = Domain("photos", sources, render)
