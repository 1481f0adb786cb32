"""The Earth in elevation tints (NOAA's ETOPO1): sea, lowland, highland, mountain, ice.

Heights come from the legend of the tints: the nearest tint gives a height on a scale where the deep
sea is -1 and the highest peaks are 1. A source is a tile of 7.2 degrees with two kinds of ground;
held-out pictures are close-ups, which training never shows.
"""

import functools
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8

from mixjax.corpus.gallery import ask, maps
from mixjax.corpus.gallery.picture import Domain, Picture, Probe, Thing

NAME = "relief map"
# (class, height, tint), tints read off the map over places of known height.
LEGEND = (
  ("sea", -1.0, (15, 63, 181)), ("sea", -0.8, (12, 100, 205)), ("sea", -0.7, (15, 129, 228)),
  ("sea", -0.6, (22, 145, 219)), ("sea", -0.4, (60, 170, 215)), ("sea", -0.2, (112, 200, 225)),
  ("sea", -0.1, (150, 210, 230)), ("sea", -0.05, (178, 220, 240)), ("sea", -0.1, (99, 170, 190)),
  ("lowland", 0.05, (40, 140, 55)), ("lowland", 0.05, (60, 165, 70)),
  ("lowland", 0.1, (110, 190, 105)), ("lowland", 0.15, (164, 214, 140)),
  ("lowland", 0.2, (205, 215, 155)),
  ("plain", 0.25, (238, 214, 172)), ("plain", 0.3, (240, 204, 164)),
  ("plain", 0.35, (225, 188, 128)), ("plain", 0.4, (214, 171, 80)), ("plain", 0.45, (190, 150, 60)),
  ("mountain", 0.55, (150, 120, 40)), ("mountain", 0.65, (112, 92, 18)),
  ("mountain", 0.75, (120, 85, 45)), ("mountain", 0.85, (139, 83, 66)),
  ("mountain", 0.95, (118, 105, 99)), ("mountain", 1.0, (156, 142, 139)),
  ("glacier", 0.9, (228, 228, 228)), ("glacier", 0.9, (200, 200, 200)),
)  # fmt: skip
PALETTE: maps.Palette = {
  name: tuple(tint for owner, _, tint in LEGEND if owner == name)
  for name in dict.fromkeys(entry[0] for entry in LEGEND)
}
# Pictures that show each class for one that lacks it: counted over many views.
ODDS = {"sea": 1.8, "lowland": 6.8, "plain": 3.0, "mountain": 1.7, "glacier": 0.06}
MARGIN = 0.08  # by how much a side must lead before it is called the highest or the lowest


@functools.cache
def sources() -> Sequence[str]:
  return maps.varied_tiles("etopo1", PALETTE, least=0.12)


@functools.cache
def _tint_table() -> UInt8[np.ndarray, "32768"]:
  return maps.lookup([tint for _, _, tint in LEGEND])


def heights(image: UInt8[np.ndarray, "s s 3"]) -> Float[np.ndarray, "s s"]:
  """-1 (deep sea) to 1 (highest peaks), from the tints."""
  return np.array([height for _, height, _ in LEGEND])[maps.indices(image, _tint_table())]


def extremes(image: UInt8[np.ndarray, "s s 3"]) -> tuple[str | None, str | None]:
  """The highest and the lowest side; None where no side leads clearly."""
  means = maps.strips(heights(image))
  low, second_low, second_high, high = sorted(means, key=means.__getitem__)
  highest = high if means[high] - means[second_high] >= MARGIN else None
  return highest, low if means[second_low] - means[low] >= MARGIN else None


def _caption(names: Sequence[str], highest: str | None, lowest: str | None) -> str:
  parts = [f"mostly {names[0]}"]
  if highest:
    parts.append(f"highest on the {highest}")
  if lowest:
    parts.append(f"lowest on the {lowest}")
  if len(names) > 1 and not (highest and lowest):
    parts.append(f"some {names[1]}")
  return f"a {NAME}: {', '.join(parts)}"


def _probes(
  names: Sequence[str],
  highest: str | None,
  lowest: str | None,
  rng: np.random.Generator,
) -> tuple[Probe, ...]:
  probes = []
  if lowest:
    options = ask.choices(lowest, ask.SIDES, rng)
    probes.append(Probe("scenes", "Which side is the lowest?", lowest, options))
  caption = _caption(names, highest, lowest)
  others = [_caption([n], highest, lowest) for n in PALETTE if n not in names]
  if highest and lowest:
    others += [_caption(names, lowest, highest)]
  kind = Probe("breadth", ask.KIND_QUESTION, NAME, ask.choices(NAME, ask.KINDS, rng))
  if len(others) < 3 or rng.integers(2):
    return (*probes, kind)
  fits = Probe("breadth", ask.CAPTION_QUESTION, caption, ask.choices(caption, others, rng))
  return (*probes, fits)


def _questions(
  masks: Mapping[str, Bool[np.ndarray, "s s"]],
  names: Sequence[str],
  highest: str | None,
  rng: np.random.Generator,
) -> tuple[tuple[str, str], ...]:
  absent = [n for n, mask in masks.items() if not mask.any()]
  questions = [
    (ask.CONTENT_QUESTION, ask.listing(names[:2])),
    (ask.BIGGEST_QUESTION, names[0]),
  ]
  if absent:
    questions.append(ask.presence(names, absent, ODDS, rng))
  if highest:
    questions.append(("Which side is the highest?", highest))
  return tuple(questions)


def render(source: str, rng: np.random.Generator, held_out: bool) -> Picture:
  """A view of the tile with a clear slope where luck allows; a close-up when `held_out`."""
  sides = (44, 58) if held_out else (64, maps.TILE)
  for _ in range(6):
    image = maps.view("etopo1", source, rng, sides)
    highest, lowest = extremes(image)
    if highest and lowest:
      break
  masks = maps.class_masks(image, PALETTE)
  shares = {n: float(mask.mean()) for n, mask in masks.items()}
  names = sorted((n for n in shares if shares[n] >= 0.06), key=lambda n: -shares[n])
  return Picture(
    source=source,
    image=image,
    caption=_caption(names, highest, lowest),
    text="",
    things=tuple(Thing(n, maps.region(masks[n])) for n in names[:3]),
    questions=_questions(masks, names, highest, rng),
    probes=_probes(names, highest, lowest, rng),
  )


DOMAIN = Domain("relief", sources, render)
