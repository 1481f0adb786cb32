"""Short documents: receipts, tickets, lists and notices, a few big words each."""

import functools
import importlib.util
import itertools
import pathlib
import re
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from mixjax.corpus.gallery import ask, fonts
from mixjax.corpus.gallery.chance import coin, pick, shuffled
from mixjax.corpus.gallery.picture import SIZE, Domain, Picture, Probe, Thing

RECEIPT, TICKET, LIST, NOTICE = "receipt", "ticket", "list", "notice"
COUNTS = {RECEIPT: 800, TICKET: 500, LIST: 500}
GOODS = (
  "milk", "egg", "tea", "rice", "bread", "cake", "fish", "nuts", "corn", "soap", "jam", "ham",
  "salt", "pie", "plum", "pear", "lime", "beef", "soup", "oil",
)  # fmt: skip
PACKED = ("pen", "cup", "hat", "bag", "map", "key", "book", "lamp", "coat", "rope")
PLACES = ("gate", "seat", "room", "row", "bus", "desk", "floor", "bed", "hall", "lane")
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
TOTAL, DATE = "total", "date"
# Words of the data sets' own descriptions that notices are made of, in the order found there.
NOTICE_WORDS = frozenset((
  "data", "set", "class", "test", "text", "face", "mean", "sample", "total", "name", "error",
  "group", "block", "space", "radius", "normal", "plot", "point", "machine", "task", "type",
  "first", "grid", "score", "linear", "science", "matrix", "high", "digits", "list", "wine",
  "area", "image", "street", "date", "large", "real", "tree", "age", "blood", "small", "paper",
  "length", "width", "petal", "model", "size", "split", "top", "mass", "volume", "page",
  "housing", "home", "forest", "web", "index", "level", "hand", "file", "color", "train",
  "target", "number", "value", "people", "two", "one", "three",
))  # fmt: skip
PAPERS = {
  "white": (252, 252, 252),
  "yellow": (250, 235, 130),
  "pink": (250, 190, 205),
  "green": (180, 230, 180),
  "blue": (180, 215, 250),
}
DARK_PAPERS = {
  "black": (20, 20, 20),
  "blue": (15, 40, 110),
  "green": (10, 75, 45),
  "red": (120, 15, 20),
}
LIGHT_INKS = ((250, 250, 250), (255, 225, 120))
LINES = {RECEIPT: 4, TICKET: 4, LIST: 5, NOTICE: 4}  # training shows two or three of them
BIG, SMALL = 14, 9  # heights of capitals, pixels


def _descriptions() -> list[str]:
  spec = importlib.util.find_spec("sklearn")
  if spec is None or not spec.submodule_search_locations:
    raise FileNotFoundError("the gallery's notices need the package scikit-learn: pip install it")
  folder = pathlib.Path(spec.submodule_search_locations[0]) / "datasets" / "descr"
  return [path.read_text() for path in sorted(folder.glob("*.rst"))]


def _notices() -> list[tuple[str, ...]]:
  """Four known words after one another in a real text, other words left out."""
  found = []
  for text in _descriptions():
    words: list[str] = []
    for word in re.findall("[a-z]+", text.lower()):
      if word in NOTICE_WORDS and word not in words:
        words.append(word)
      if len(words) == LINES[NOTICE]:
        found.append(tuple(words))
        words = []
  return found


def _draw_lines(kind: str, rng: np.random.Generator) -> tuple[str, ...]:
  if kind == LIST:
    return shuffled(rng, (*GOODS, *PACKED))[: LINES[LIST]]
  if kind == RECEIPT:
    return tuple(f"{g} {rng.integers(1, 21)}" for g in shuffled(rng, GOODS)[: LINES[kind]])
  dated = f"{DATE} {rng.integers(1, 29)} {pick(rng, MONTHS)}"
  places = [f"{p} {rng.integers(1, 31)}" for p in shuffled(rng, PLACES)[: LINES[kind] - 1]]
  return shuffled(rng, (dated, *places))


def _shown(lines: tuple[str, ...]) -> set[tuple[str, ...]]:
  """The least that a picture may show of a document, in its order."""
  size = 2 if " " in lines[0] else 3
  return set(itertools.combinations(lines, size))


@functools.lru_cache(maxsize=1)
def _contents() -> dict[str, tuple[str, ...]]:
  """source -> its lines; no two documents share what training may show of them."""
  taken: set[tuple[str, ...]] = set()
  contents = {}

  def admit(kind: str, lines: tuple[str, ...]) -> None:
    parts = _shown(lines)
    if not parts & taken:
      taken.update(parts)
      contents[f"{kind}:{'/'.join(lines)}"] = lines

  for lines in _notices():
    admit(NOTICE, lines)
  rng = np.random.default_rng(20)
  for kind, number in COUNTS.items():
    goal = len(contents) + number
    while len(contents) < goal:
      admit(kind, _draw_lines(kind, rng))
  return contents


def sources() -> Sequence[str]:
  return tuple(_contents())


def _choose(
  kind: str, lines: tuple[str, ...], rng: np.random.Generator, held_out: bool
) -> list[str]:
  """The lines that this picture shows, at most six words of them, in their order."""
  if kind in (LIST, NOTICE):
    number = int(rng.integers(3, len(lines) + 1)) if held_out else 3
  else:
    number = 2 + coin(rng)
  kept = sorted(rng.permutation(len(lines))[:number])
  chosen = [lines[i] for i in kept]
  if sum(len(line.split()) for line in chosen) > 6:
    chosen = chosen[:2]
  if kind == RECEIPT and len(chosen) == 2 and coin(rng):
    chosen.append(f"{TOTAL} {sum(int(line.split()[1]) for line in chosen)}")
  return chosen


def _split(line: str) -> tuple[str, str]:
  """The line's first word and the rest: date, and 5 may; a line of one word has no rest."""
  key, _, value = line.partition(" ")
  return key, value


def _write_lines(
  draw: ImageDraw.ImageDraw,
  rng: np.random.Generator,
  lines: Sequence[str],
  face: str,
  ink: fonts.RGB,
  layout: str,
  headline: int | None,
) -> list[fonts.Pixels]:
  """Writes the lines down the page, line number `headline` bigger; returns their extents."""
  caps = [BIG if i == headline else SMALL for i in range(len(lines))]
  room = SIZE - 4 - sum(caps)
  gap = min(room / len(lines), 13)
  y = 1 + gap / 2 + rng.uniform(0, room - gap * len(lines))
  extents = []
  for line, cap in zip(lines, caps, strict=True):
    y += cap
    key, value = _split(line)
    font = fonts.fit(face, cap, (line,), SIZE - 6)
    if layout == "spread":
      key_extent = fonts.write(draw, (3, y), key, font, ink)
      extents.append(
        fonts.around(key_extent, fonts.write(draw, (SIZE - 3, y), value, font, ink, "rs"))
      )
    elif layout == "dotted":
      draw.ellipse([2, y - 7, 6, y - 3], fill=ink)
      extents.append(fonts.write(draw, (10, y), line, font, ink))
    elif layout == "swapped":
      value_extent = fonts.write(draw, (3, y), value, font, ink)
      extents.append(
        fonts.around(value_extent, fonts.write(draw, (SIZE - 3, y), key, font, ink, "rs"))
      )
    elif layout == "right":
      extents.append(fonts.write(draw, (SIZE - 3, y), line, font, ink, "rs"))
    elif layout == "centred":
      extents.append(fonts.write(draw, (SIZE / 2, y), line, font, ink, "ms"))
    else:
      extents.append(fonts.write(draw, (3, y), line, font, ink))
    y += gap
  return extents


def _questions(rng: np.random.Generator, words: Sequence[str], lines: Sequence[str], paper: str):
  keys = [_split(line)[0] for line in lines]
  # The first two lines, or the last two lines: no other line is above or below them on that side
  if coin(rng):
    relation = (ask.what_is("above", keys[1]), keys[0])
  else:
    relation = (ask.what_is("below", keys[-2]), keys[-1])
  look = (ask.what_color("paper"), paper) if coin(rng) else (ask.KIND_QUESTION, "document")
  return (
    ("What is the first word?", words[0]),
    ("What is the last word?", words[-1]),
    relation,
    look,
  )


def _fitting(rng: np.random.Generator, lines: Sequence[str]) -> Probe:
  """One line of the document among three that look like it and are not there."""
  line = pick(rng, lines)
  key, value = _split(line)
  if value:  # two keys by two values, so that no choice looks more likely than another
    alike = (GOODS, PLACES)[key in (*PLACES, DATE)]
    other_key = pick(rng, (k for k in alike if not any(k == _split(o)[0] for o in lines)))
    other_value = pick(rng, (str(n) for n in range(1, 21) if str(n) != value))
    if key == DATE:
      other_value = f"{rng.integers(1, 29)} {pick(rng, (m for m in MONTHS if m not in value))}"
    wrong = [f"{key} {other_value}", f"{other_key} {value}", f"{other_key} {other_value}"]
  else:
    alike = (*GOODS, *PACKED) if key in (*GOODS, *PACKED) else sorted(NOTICE_WORDS)
    wrong = shuffled(rng, (k for k in alike if k not in lines))[:3]
  return Probe("breadth", ask.CAPTION_QUESTION, line, ask.choices(line, wrong, rng))


def _probes(
  rng: np.random.Generator, kind: str, lines: Sequence[str], headline: int | None
) -> tuple[Probe, ...]:
  probes = [_fitting(rng, lines)]
  if kind in (LIST, NOTICE):
    probes.append(Probe("counting", ask.how_many("line"), str(len(lines))))
    if headline is not None:
      probes.append(Probe("documents", "Which word is the biggest?", lines[headline]))
    return tuple(probes)
  pairs = [_split(line) for line in lines]
  key, value = pick(rng, pairs)
  probes.append(Probe("documents", f"What is the {key}?", value))
  numbers = [int(value) for key, value in pairs if key not in (TOTAL, DATE)]
  if len(numbers) == len(pairs) and len(set(numbers)) > 1:
    thing = "price" if kind == RECEIPT else "number"
    probes.append(Probe("documents", f"Which {thing} is the biggest?", str(max(numbers))))
  elif key != DATE and DATE in dict(pairs):
    probes.append(Probe("documents", f"What is the {DATE}?", dict(pairs)[DATE]))
  elif key != TOTAL and TOTAL in dict(pairs):
    probes.append(Probe("documents", f"What is the {TOTAL}?", dict(pairs)[TOTAL]))
  return tuple(probes)


def render(source: str, rng: np.random.Generator, held_out: bool) -> Picture:
  """`source` is one of `sources()`; KeyError for any other."""
  kind = source.partition(":")[0]
  lines = _choose(kind, _contents()[source], rng, held_out)
  listed = kind in (LIST, NOTICE)
  if rng.random() < (0.5 if held_out else 0.25):
    paper = pick(rng, DARK_PAPERS)
    ground, ink = DARK_PAPERS[paper], pick(rng, LIGHT_INKS)
  else:
    paper = pick(rng, PAPERS)
    ground, ink = PAPERS[paper], pick(rng, fonts.DARK_INKS.values())
  if held_out:
    face = pick(rng, fonts.HELD_OUT)
    layout = pick(rng, ("centred", "right" if listed else "swapped"))
  else:
    face = pick(rng, fonts.TRAINING)
    layout = pick(rng, ("left", "dotted" if listed else "spread"))
  headline = int(rng.integers(len(lines))) if held_out and listed and len(lines) < 5 else None

  image = Image.new("RGB", (SIZE, SIZE), ground)
  extents = _write_lines(ImageDraw.Draw(image), rng, lines, face, ink, layout, headline)
  words = " ".join(lines).split()
  if layout == "swapped":
    words = [w for key, value in map(_split, lines) for w in (*value.split(), key)]
  boxes = [fonts.share(extent) for extent in extents]
  return Picture(
    source=source,
    image=np.asarray(image),
    caption=f"{kind} on {paper} paper with {ask.listing(lines)}",
    text=" ".join(words),
    things=tuple(Thing(w, b) for w, b in zip(lines[:3], boxes[:3], strict=True)),
    questions=_questions(rng, words, lines, paper),
    probes=_probes(rng, kind, lines, headline),
  )


DOMAIN = Domain("documents", sources, render)
