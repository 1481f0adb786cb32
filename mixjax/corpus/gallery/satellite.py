"""The Earth from orbit (NASA's Blue Marble): what covers the ground, and where it lies.

A source is a tile of 7.2 degrees on which two kinds of ground meet. Training shows at least half of
it; held-out pictures are close-ups, which training never shows.
"""

import functools
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool

from mixjax.corpus.gallery import ask, canvas, maps
from mixjax.corpus.gallery.picture import Domain, Picture, Probe, Thing

NAME = "satellite map"
# Typical colours, read off the map over known places.
PALETTE: maps.Palette = {
  "sea": (
    (3, 8, 24), (6, 20, 50), (12, 36, 80), (26, 66, 122), (28, 82, 130), (50, 95, 125),
    (70, 120, 150), (2, 2, 6),
  ),
  "forest": ((22, 34, 10), (31, 41, 14), (42, 50, 18), (26, 44, 22)),
  "plain": ((66, 66, 30), (62, 60, 34), (90, 84, 48), (102, 90, 57), (84, 76, 44)),
  "desert": ((166, 141, 108), (196, 165, 123), (134, 106, 74), (120, 76, 42), (154, 134, 101)),
  "snow field": ((253, 253, 253), (220, 222, 226), (182, 186, 190)),
}  # fmt: skip

# Pictures that show each ground for one that lacks it: counted over many views.
ODDS = {"sea": 1.6, "forest": 2.1, "plain": 4.5, "desert": 0.65, "snow field": 0.2}


@functools.cache
def sources() -> Sequence[str]:
  return maps.varied_tiles("bmng", PALETTE, least=0.12)


def _by_area(masks: Mapping[str, Bool[np.ndarray, "s s"]]) -> list[str]:
  """The classes on at least 6% of the picture, the largest first."""
  shares = {name: float(mask.mean()) for name, mask in masks.items()}
  return sorted((n for n, s in shares.items() if s >= 0.06), key=lambda n: -shares[n])


def _caption(names: Sequence[str], where: str | None) -> str:
  """`names` by area; `where` is the side on which the second lies, if it is clear."""
  parts = [f"mostly {names[0]}"]
  if len(names) > 1:
    parts.append(f"{names[1]} on the {where}" if where else f"some {names[1]}")
  if len(names) > 2:
    parts.append(f"some {names[2]}")
  return f"a {NAME}: {', '.join(parts)}"


def _other_captions(
  masks: Mapping[str, Bool[np.ndarray, "s s"]], names: Sequence[str], where: str | None
) -> list[str]:
  """Captions that name ground that is not there, the wrong side, or a lesser ground as the main."""
  absent = [n for n in PALETTE if n not in names]
  lesser = [n for n in names[1:] if masks[n].mean() < 0.7 * masks[names[0]].mean()]
  others = [_caption([n, *names[1:]], where) for n in absent]
  if len(names) > 1:
    others += [_caption([names[0], n, *names[2:]], where) for n in absent]
  for first in lesser:
    rest = [n for n in names if n != first]
    others += [_caption([first, *rest], where), _caption([first, *rest[::-1]], where)]
  if where:
    others += [_caption(names, s) for s in ask.SIDES if s != where]
  return others


def _relation(
  masks: Mapping[str, Bool[np.ndarray, "s s"]], names: Sequence[str], where: str | None
) -> tuple[str, str, str] | None:
  """(thing, relation, anchor) for the two largest grounds, when they share the picture out."""
  if where is None or masks[names[0]].mean() + masks[names[1]].mean() < 0.8:
    return None
  says = dict(zip(ask.SIDES, ask.RELATIONS, strict=True))
  return names[1], says[where], names[0]


def _probes(
  masks: Mapping[str, Bool[np.ndarray, "s s"]],
  names: Sequence[str],
  where: str | None,
  caption: str,
  rng: np.random.Generator,
) -> tuple[Probe, ...]:
  probes = []
  sides = {n: s for n in names if (s := maps.side(masks[n])) is not None}
  if sides:
    thing = list(sides)[rng.integers(len(sides))]
    options = ask.choices(sides[thing], ask.SIDES, rng)
    probes.append(Probe("scenes", ask.where_is(thing), sides[thing], options))
  if relation := _relation(masks, names, where):
    thing, words, anchor = relation
    if rng.integers(2):
      thing, words, anchor = anchor, ask.OPPOSITE[words], thing
    if anchor != "snow field":  # it meets little but the sea
      options = ask.choices(thing, [n for n in PALETTE if n != anchor], rng)
      probes.append(Probe("scenes", ask.what_is(words, anchor), thing, options))
  offered = _other_captions(masks, names, where)
  if len(set(offered)) >= 3:
    options = ask.choices(caption, offered, rng)
    probes.append(Probe("breadth", ask.CAPTION_QUESTION, caption, options))
  return tuple(probes)


def _questions(
  masks: Mapping[str, Bool[np.ndarray, "s s"]], names: Sequence[str], rng: np.random.Generator
) -> tuple[tuple[str, str], ...]:
  absent = [n for n, mask in masks.items() if not mask.any()]
  questions = [
    (ask.CONTENT_QUESTION, ask.listing(names[:2])),
    (ask.BIGGEST_QUESTION, names[0]),
  ]
  if absent:
    questions.append(ask.presence(names, absent, ODDS, rng))
  if rng.integers(4) == 0:
    questions.append((ask.KIND_QUESTION, NAME))
  return tuple(questions)


def render(source: str, rng: np.random.Generator, held_out: bool) -> Picture:
  """A view of the tile; a close-up when `held_out`."""
  sides = (44, 58) if held_out else (64, maps.TILE)
  for _ in range(6):
    image = maps.view("bmng", source, rng, sides)
    masks = maps.class_masks(image, PALETTE)
    names = _by_area(masks)
    if len(names) > 1:
      break
  # The map is dark; an exposure that varies also keeps one shade from meaning one kind of ground.
  exposed = 255 * (image / 255) ** rng.uniform(0.55, 0.75)
  where = maps.side(masks[names[1]]) if len(names) > 1 else None
  caption = _caption(names, where)
  return Picture(
    source=source,
    image=canvas.finish(exposed),
    caption=caption,
    text="",
    things=tuple(Thing(n, maps.region(masks[n])) for n in names[:3]),
    questions=_questions(masks, names, rng),
    probes=_probes(masks, names, where, caption, rng),
  )


DOMAIN = Domain("satellite", sources, render)
