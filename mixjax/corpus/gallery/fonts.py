"""Fonts and inks of the drawn domains, and the writing of words with their boxes.

Every font comes out of a pip package, so a picture has the same bytes on every machine. Two
families are kept for the benchmarks: training never shows them.
"""

import functools
import importlib.util
import pathlib

from PIL import ImageDraw, ImageFont

from mixjax.corpus import tasks
from mixjax.corpus.gallery.picture import SIZE

Pixels = tuple[float, float, float, float]  # left, top, right, bottom
RGB = tuple[int, int, int]

# name -> (pip package, file inside it)
FACES = {
  "roboto": ("font_roboto", "files/Roboto-Medium.ttf"),
  "roboto bold": ("font_roboto", "files/Roboto-Bold.ttf"),
  "lato": ("font_lato", "files/Lato-Regular.ttf"),
  "lato bold": ("font_lato", "files/Lato-Bold.ttf"),
  "source serif": ("font_source_serif_pro", "files/SourceSerifPro-Semibold.ttf"),
  "dejavu sans": ("matplotlib", "mpl-data/fonts/ttf/DejaVuSans.ttf"),
  "caladea": ("font_caladea", "files/Caladea-Regular.ttf"),
  "caladea bold": ("font_caladea", "files/Caladea-Bold.ttf"),
  "dejavu serif": ("matplotlib", "mpl-data/fonts/ttf/DejaVuSerif.ttf"),
}

# "dejavu sans" belongs to neither: it has the signs of formulae and the chess pieces.
TRAINING = ("roboto", "roboto bold", "lato", "lato bold", "source serif")
HELD_OUT = ("caladea", "caladea bold", "dejavu serif")

LEAST_CAP = 5  # pixels; below it nothing can be read

# Colours that questions name: dark enough to read on paper, or bright enough on a dark ground.
DARK_INKS: dict[str, RGB] = {
  "red": (200, 20, 20),
  "blue": (20, 60, 210),
  "green": (0, 125, 40),
  "orange": (225, 110, 0),
  "purple": (130, 30, 160),
  "black": (10, 10, 10),
}
BRIGHT_INKS: dict[str, RGB] = {
  "red": (255, 90, 80),
  "blue": (110, 170, 255),
  "green": (90, 220, 100),
  "orange": (255, 165, 50),
  "purple": (205, 130, 255),
  "white": (250, 250, 250),
}


@functools.lru_cache
def _path(face: str) -> pathlib.Path:
  package, file = FACES[face]
  spec = importlib.util.find_spec(package)
  if spec is None or not spec.submodule_search_locations:
    raise FileNotFoundError(f"font {face!r} needs the package {package}: pip install the gallery's")
  return pathlib.Path(spec.submodule_search_locations[0]) / file


@functools.lru_cache(maxsize=512)
def load(face: str, cap: float) -> ImageFont.FreeTypeFont:
  """The face at the size whose capital H is `cap` pixels high. KeyError for an unknown face."""
  basic = ImageFont.Layout.BASIC  # Raqm, where a machine has it, would move the glyphs
  tall = ImageFont.truetype(_path(face), 200, layout_engine=basic)
  _, top, _, bottom = tall.getbbox("H")
  return ImageFont.truetype(_path(face), cap * 200 / (bottom - top), layout_engine=basic)


def fit(face: str, cap: float, words: tuple[str, ...], width: float) -> ImageFont.FreeTypeFont:
  """`load`, made smaller by half pixels until `words` are at most `width` wide, or too small."""
  while cap > LEAST_CAP and max(load(face, cap).getlength(w) for w in words) > width:
    cap -= 0.5
  return load(face, cap)


def write(
  draw: ImageDraw.ImageDraw,
  at: tuple[float, float],
  words: str,
  font: ImageFont.FreeTypeFont,
  ink: RGB,
  anchor: str = "ls",
) -> Pixels:
  """Writes `words` with their baseline at `at` (Pillow's anchors); returns the ink's extent."""
  draw.text(at, words, fill=ink, font=font, anchor=anchor)
  return draw.textbbox(at, words, font=font, anchor=anchor)


def around(*extents: Pixels) -> Pixels:
  """The smallest extent that holds all of `extents`."""
  left, top, right, bottom = zip(*extents, strict=True)
  return min(left), min(top), max(right), max(bottom)


def share(extent: Pixels) -> tasks.Box:
  """Pixels to (ymin, xmin, ymax, xmax) as shares of the picture, cut at its edges."""
  left, top, right, bottom = (min(max(float(c), 0.0), SIZE) / SIZE for c in extent)
  return top, left, bottom, right
