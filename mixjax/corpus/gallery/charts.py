"""Charts of real tables: columns and points for training, rows and pies for the benchmarks."""

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from mixjax.corpus.gallery import ask, fonts, tables
from mixjax.corpus.gallery.chance import coin, pick, shuffled
from mixjax.corpus.gallery.picture import SIZE, Domain, Picture, Probe, Thing

COLUMNS, POINTS, ROWS, PIE = "columns", "points", "rows", "pie"
NOUNS = {COLUMNS: "bar", POINTS: "point", ROWS: "bar", PIE: "slice"}
WIDE = 4  # letters of a label that leave no room for three columns
SMALL_SUM = 12  # largest value that the sum of two bars is asked of
VISIBLE = 0.06  # share by which an end of a chart without numbers must stand out
THINNEST = 0.15  # share of a pie that still holds its label


@dataclasses.dataclass(frozen=True)
class Bar:
  label: str
  value: int
  color: str


@dataclasses.dataclass(frozen=True)
class Style:
  """What a layout draws with; `values` says whether the numbers are printed."""

  face: str
  inks: dict[str, fonts.RGB]
  ground: fonts.RGB
  line: fonts.RGB
  values: bool
  scale: float  # share of the room that the biggest value takes


def sources() -> Sequence[str]:
  return tuple(tables.slices())


def _contrast(values: Iterable[int]) -> float:
  """How far the biggest and the smallest stand out from the next, as a share."""
  low, next_low, *_ = ordered = sorted(values)
  return min(1 - ordered[-2] / ordered[-1], 1 - low / next_low)


def _values(rng: np.random.Generator, column: dict[str, int], number: int) -> dict[str, int]:
  """Some labels of the column, in random order, of several draws the one that stands out most."""
  draws = [shuffled(rng, column)[:number] for _ in range(6)]
  best = max(draws, key=lambda labels: _contrast(column[k] for k in labels))
  return {label: column[label] for label in best}


def _training_bars(source: str, rng: np.random.Generator) -> dict[str, int]:
  column = pick(rng, tables.slices()[source])
  two = max(map(len, column)) >= WIDE or coin(rng)
  return _values(rng, column, 2 if two else 3)


def _held_out_bars(
  source: str, rng: np.random.Generator, many: bool, addable: bool
) -> dict[str, int]:
  """Four or five bars where `many`, else two (small ones if `addable` and the slice has some)."""
  columns = tables.slices()[source]
  if many:
    number = min(max(map(len, columns)), 4 + (rng.random() < 0.7))
    draws = [_values(rng, c, number) for c in columns if len(c) >= number]
    return max(draws, key=lambda drawn: _contrast(drawn.values()))
  small = [{k: v for k, v in c.items() if v <= SMALL_SUM} for c in columns]
  small = [c for c in small if len(c) >= 2]
  if addable and small:
    return _values(rng, pick(rng, small), 2)
  return _values(rng, pick(rng, columns), 2 + coin(rng))


def _upright(draw: ImageDraw.ImageDraw, bars: Sequence[Bar], style: Style, dots: bool):
  """Columns, or stems with a dot on top; returns a box for each bar."""
  slot = SIZE / len(bars)
  names = fonts.fit(style.face, 9, tuple(b.label for b in bars), slot)
  numbers = fonts.load(style.face, 9)
  floor, room = 57, 57 - 14
  top_value = max(b.value for b in bars)
  draw.line([(0, floor + 1), (SIZE, floor + 1)], fill=style.line)
  boxes = []
  for i, bar in enumerate(bars):
    middle, ink = slot * (i + 0.5), style.inks[bar.color]
    top = floor - max(3, round(room * style.scale * bar.value / top_value))
    half = 5 if dots else round(slot * 0.34)
    if dots:
      draw.line([(middle, floor), (middle, top)], fill=style.line)
      draw.ellipse([middle - half, top - 1, middle + half, top + 2 * half - 1], fill=ink)
    else:
      draw.rectangle([middle - half, top, middle + half, floor], fill=ink)
    number = fonts.write(draw, (middle, top - 3), str(bar.value), numbers, style.line, "ms")
    name = fonts.write(draw, (middle, SIZE - 3), bar.label, names, style.line, "ms")
    boxes.append(fonts.around(number, name, (middle - half, top, middle + half, floor)))
  return boxes


def _rows(draw: ImageDraw.ImageDraw, bars: Sequence[Bar], style: Style):
  slot = SIZE / len(bars)
  names = fonts.fit(style.face, 9, tuple(b.label for b in bars), 28)
  numbers = fonts.load(style.face, 9)
  wall = 3 + math.ceil(max(names.getlength(b.label) for b in bars))
  room = SIZE - wall - (21 if style.values else 2)
  top_value = max(b.value for b in bars)
  draw.line([(wall, 0), (wall, SIZE)], fill=style.line)
  boxes = []
  for i, bar in enumerate(bars):
    middle, half = slot * (i + 0.5), min(slot * 0.34, 9)
    end = wall + 1 + max(2, round(room * style.scale * bar.value / top_value))
    draw.rectangle([wall + 1, middle - half, end, middle + half], fill=style.inks[bar.color])
    name = fonts.write(draw, (1, middle + 4), bar.label, names, style.line)
    extents = [name, (wall, middle - half, end, middle + half)]
    if style.values:
      at = (end + 2, middle + 4)
      extents.append(fonts.write(draw, at, str(bar.value), numbers, style.line))
    boxes.append(fonts.around(*extents))
  return boxes


def _pie(draw: ImageDraw.ImageDraw, bars: Sequence[Bar], style: Style):
  total = sum(b.value for b in bars)
  names = fonts.load(style.face, 9)
  radius, centre, angle = 35, SIZE / 2, -90.0
  boxes = []
  for bar in bars:
    sweep = 360 * bar.value / total
    ink = style.inks[bar.color]
    draw.pieslice([1, 1, SIZE - 2, SIZE - 2], angle, angle + sweep, ink, style.ground)
    aim = math.radians(angle + sweep / 2)
    x, y = centre + 0.62 * radius * math.cos(aim), centre + 0.62 * radius * math.sin(aim)
    on_ink = (255, 255, 255) if sum(ink) < 400 else (0, 0, 0)
    name = fonts.write(draw, (x, y + 4), bar.label, names, on_ink, "ms")
    turns = [math.radians(angle + sweep * k / 8) for k in range(9)]
    edge = [(centre + radius * math.cos(t), centre + radius * math.sin(t)) for t in turns]
    corners = [(px, py, px, py) for px, py in (*edge, (centre, centre))]
    boxes.append(fonts.around(name, *corners))
    angle += sweep
  return boxes


def _style(rng: np.random.Generator, held_out: bool, values: bool) -> Style:
  face = pick(rng, fonts.HELD_OUT if held_out else fonts.TRAINING)
  scale = rng.uniform(0.75, 1)
  if rng.random() < (0.5 if held_out else 0.25):
    ground = pick(rng, ((25, 25, 30), (20, 35, 60), (60, 60, 60)))
    return Style(face, fonts.BRIGHT_INKS, ground, (240, 240, 240), values, scale)
  ground = pick(rng, ((255, 255, 255), (235, 240, 250), (250, 245, 225), (230, 230, 230)))
  return Style(face, fonts.DARK_INKS, ground, (30, 30, 30), values, scale)


def _caption(rng: np.random.Generator, kind: str, bars: Sequence[Bar]) -> str:
  noun = NOUNS[kind]
  ordered = sorted(bars, key=lambda b: b.value)
  name = "pie" if kind == PIE else noun
  if len(bars) <= 3 and coin(rng):
    parts = ask.listing([f"{b.color} {b.label} {b.value}" for b in bars])
    return f"{name} chart of {parts}"
  ends = f"{ordered[-1].label} is the biggest, {ordered[0].label} is the smallest"
  return f"{name} chart, {len(bars)} {noun}s, {ends}"


def _questions(rng: np.random.Generator, kind: str, bars: Sequence[Bar], labels: Sequence[str]):
  noun = NOUNS[kind]
  absent = [k for k in labels if k not in [b.label for b in bars]]
  there = coin(rng) or not absent
  some = pick(rng, bars)
  asked = some.label if there else pick(rng, absent)
  questions = [
    (ask.is_there(f"{asked} {noun}"), "yes" if there else "no"),
    (ask.what_color(f"{some.label} {noun}"), some.color),
    (ask.how_many(noun), str(len(bars))),
  ]
  if kind != PIE:
    before, after = ("above", "below") if kind == ROWS else ("left of", "right of")
    back = coin(rng)  # of three bars only the middle one has a single neighbour on either side
    i = 1 if len(bars) >= 3 or back else 0
    side, other = (before, bars[i - 1]) if back else (after, bars[i + 1])
    if len(bars) <= 3:
      questions.append((ask.what_is(side, f"{bars[i].label} {noun}"), other.label))
  return tuple(questions)


def _probes(rng: np.random.Generator, kind: str, bars: Sequence[Bar], values: bool):
  noun = NOUNS[kind]
  ordered = sorted(bars, key=lambda b: b.value)
  end, word = (ordered[-1], "biggest") if coin(rng) else (ordered[0], "smallest")
  probes = []
  if values or _contrast(b.value for b in bars) >= VISIBLE:
    probes.append(Probe("charts", f"Which {noun} is the {word}?", end.label))
  if values:
    some = pick(rng, bars)
    probes.append(Probe("charts", f"What is the value of {some.label}?", str(some.value)))
    if len(bars) == 2 and ordered[1].value <= SMALL_SUM:
      total = str(ordered[0].value + ordered[1].value)
      probes.append(Probe("maths", f"What is the sum of the {noun}s?", total))
  else:
    probes.append(Probe("counting", ask.how_many(noun), str(len(bars))))
  if len(probes) <= 2:
    if len(bars) >= 4 and coin(rng):
      fitting = f"{ordered[-1].label} is the biggest"
      others = [f"{b.label} is the biggest" for b in ordered[:-1]]
      choices = ask.choices(fitting, others, rng)
      probes.append(Probe("breadth", ask.CAPTION_QUESTION, fitting, choices))
    else:
      choices = ask.choices("chart", ask.KINDS, rng)
      probes.append(Probe("breadth", ask.KIND_QUESTION, "chart", choices))
  return tuple(probes)


def render(source: str, rng: np.random.Generator, held_out: bool) -> Picture:
  """`source` is a slice of `tables.slices()`; KeyError for any other."""
  many = held_out and coin(rng)
  if held_out:
    numbers = _held_out_bars(source, rng, many, addable=rng.random() < 0.7)
    thick = min(numbers.values()) >= THINNEST * sum(numbers.values())
    short = len(numbers) == 4 and max(map(len, numbers)) < WIDE
    kind = PIE if many and thick and short else ROWS
  else:
    numbers = _training_bars(source, rng)
    kind = pick(rng, (COLUMNS, POINTS))
  style = _style(rng, held_out, values=not many)
  colors = shuffled(rng, style.inks)
  bars = tuple(Bar(k, v, c) for (k, v), c in zip(numbers.items(), colors, strict=False))

  image = Image.new("RGB", (SIZE, SIZE), style.ground)
  draw = ImageDraw.Draw(image)
  if kind == PIE:
    boxes = _pie(draw, bars, style)
  elif kind == ROWS:
    boxes = _rows(draw, bars, style)
  else:
    boxes = _upright(draw, bars, style, dots=kind == POINTS)

  labels, printed = [b.label for b in bars], [str(b.value) for b in bars]
  if kind == ROWS and not many:
    words = [w for pair in zip(labels, printed, strict=True) for w in pair]
  else:
    words = labels if many else printed + labels
  things = tuple(
    Thing(f"{bar.label} {NOUNS[kind]}", fonts.share(box))
    for bar, box in zip(bars[:3], boxes[:3], strict=True)
  )
  everywhere = tuple(dict.fromkeys(k for c in tables.slices()[source] for k in c))
  return Picture(
    source=source,
    image=np.asarray(image),
    caption=_caption(rng, kind, bars),
    text=" ".join(words),
    things=things,
    questions=_questions(rng, kind, bars, everywhere),
    probes=_probes(rng, kind, bars, not many),
  )


DOMAIN = Domain("charts", sources, render)
