"""Equations with fractions, roots and powers, set by hand; stacked sums are kept for benchmarks."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from mixjax.corpus.gallery import ask, fonts
from mixjax.corpus.gallery.chance import coin, pick
from mixjax.corpus.gallery.equations import (
  FRACTION,
  MINUS,
  PLUS,
  POWER,
  ROOT,
  SHAPES,
  SIGNS,
  TYPED,
  Formula,
  equations,
)
from mixjax.corpus.gallery.picture import SIZE, Domain, Picture, Probe, Thing

FACES = ("roboto", "lato", "source serif", "dejavu sans")
HELD_OUT_FACES = ("caladea", "dejavu serif")
PAPERS = ((255, 255, 255), (252, 246, 225), (228, 238, 250), (235, 235, 235))
BOARDS = ((25, 60, 45), (30, 32, 38), (35, 35, 80))


def sources() -> Sequence[str]:
  """Every formula as one would type it."""
  return tuple(equations())


class _Pen:
  """Sets pieces of a formula one after another on a line, and remembers where they are."""

  def __init__(
    self, draw: ImageDraw.ImageDraw, face: str, cap: float, ink: fonts.RGB, x: float, y: float
  ):
    self.draw, self.face, self.cap, self.ink = draw, face, cap, ink
    self.x, self.y = x, y  # of the baseline
    self.extents: dict[str, fonts.Pixels] = {}

  def words(self, words: str, name: str, cap: float | None = None, rise: float = 0) -> None:
    font = fonts.load(self.face, cap or self.cap)
    extent = fonts.write(self.draw, (self.x, self.y - rise), words, font, self.ink)
    self.extents.setdefault(name, extent)
    self.x += font.getlength(words)

  def sign(self, sign: str, name: str) -> None:
    self.x += 2
    self.words(sign, name)
    self.x += 2

  def fraction(self, above: str, below: str) -> None:
    font = fonts.load(self.face, self.cap)
    width = max(font.getlength(above), font.getlength(below)) + 2
    middle, bar = self.x + width / 2, self.y - self.cap / 2
    upper = fonts.write(self.draw, (middle, bar - 4), above, font, self.ink, "ms")
    lower = fonts.write(self.draw, (middle, bar + 4 + self.cap), below, font, self.ink, "ms")
    self.draw.line([(self.x, bar), (self.x + width, bar)], fill=self.ink, width=2)
    self.extents[FRACTION] = fonts.around(upper, lower)
    self.x += width

  def root(self, inside: str) -> None:
    start, top = self.x, self.y - self.cap - 4
    self.x += 8
    self.words(inside, "inside")
    hook = [(start, self.y - 5), (start + 3, self.y), (start + 7, top), (self.x + 1, top)]
    self.draw.line(hook, fill=self.ink, width=2, joint="curve")
    self.extents[ROOT] = (start, top, self.x + 1, self.y)
    self.x += 1


def _width(formula: Formula, face: str, cap: float) -> float:
  """Of the formula on one line, to place it."""
  blank = ImageDraw.Draw(Image.new("L", (1, 1)))
  pen = _Pen(blank, face, cap, 0, 0, 0)
  _set_line(pen, formula)
  return pen.x


def _set_terms(pen: _Pen, formula: Formula) -> None:
  start = pen.x
  first, *rest = map(str, formula.numbers)
  if formula.kind == FRACTION:
    pen.fraction(first, rest[0])
  elif formula.kind == ROOT:
    pen.root(first)
  elif formula.kind == POWER:
    pen.words(first, "base")
    pen.words("2", "exponent", cap=max(6, round(0.65 * pen.cap)), rise=0.55 * pen.cap)
    pen.extents[POWER] = fonts.around(pen.extents["base"], pen.extents["exponent"])
  else:
    pen.words(first, "first")
    pen.sign(SIGNS[formula.kind], formula.kind)
    pen.words(rest[0], "second")
    pen.extents[formula.kind] = (start, pen.y - pen.cap, pen.x, pen.y)
  if formula.added is not None:
    pen.sign(SIGNS[PLUS], "added sign")
    pen.words(str(formula.added), "added")


def _set_line(pen: _Pen, formula: Formula) -> None:
  if formula.turned:
    _set_terms(pen, formula)
    pen.sign("=", "equals")
    pen.words(formula.variable, "variable")
  else:
    pen.words(formula.variable, "variable")
    pen.sign("=", "equals")
    _set_terms(pen, formula)


def _set_column(pen: _Pen, formula: Formula) -> None:
  """The numbers under one another, a rule, and the variable for the result."""
  font = fonts.load(pen.face, pen.cap)
  right, step = pen.x, pen.cap + 8
  first, second = map(str, formula.numbers)
  rows = [
    fonts.write(pen.draw, (right, pen.y), first, font, pen.ink, "rs"),
    fonts.write(pen.draw, (right, pen.y + step), second, font, pen.ink, "rs"),
  ]
  sign_at = (right - 2.4 * pen.cap, pen.y + step)
  rows.append(fonts.write(pen.draw, sign_at, SIGNS[formula.kind], font, pen.ink, "rs"))
  rule = pen.y + step + 4
  pen.draw.line([(right - 3.2 * pen.cap, rule), (right, rule)], fill=pen.ink, width=2)
  at = (right, rule + 4 + pen.cap)
  pen.extents["variable"] = fonts.write(pen.draw, at, formula.variable, font, pen.ink, "rs")
  pen.extents[formula.kind] = fonts.around(*rows)


def _caption(rng: np.random.Generator, formula: Formula, color: str) -> str:
  sides = formula.variable, formula.spoken
  left, right = reversed(sides) if formula.turned else sides
  result = f", result {formula.result}" if formula.result is not None and coin(rng) else ""
  return f"{color} formula where {left} equals {right}{result}"


def _absent(formula: Formula) -> list[str]:
  """The kinds of sign and shape that are not in the formula."""
  plus = PLUS if formula.added is not None else None
  return [k for k in (*SHAPES, *SIGNS) if k not in (formula.kind, plus)]


def _questions(
  rng: np.random.Generator, formula: Formula, color: str, stacked: bool
) -> tuple[tuple[str, str], ...]:
  there = coin(rng)
  asked = formula.kind if there else pick(rng, _absent(formula))
  questions = [
    (ask.is_there(asked), "yes" if there else "no"),
    (ask.what_color("formula"), color),
  ]
  if not stacked:
    left = formula.typed if formula.turned else formula.variable
    questions.append(("What is left of the equals sign?", left))
  numbers = formula.all_numbers
  if min(numbers) < max(numbers) and formula.kind != POWER:  # whose 2 is a number too
    end, answer = ("biggest", max(numbers)) if coin(rng) else ("smallest", min(numbers))
    questions.append((f"Which number is the {end}?", str(answer)))
  return tuple(questions)


def _probes(rng: np.random.Generator, formula: Formula) -> tuple[Probe, ...]:
  probes = []
  if formula.kind in SIGNS:
    total = str(sum(formula.numbers))
    if formula.kind != MINUS and coin(rng):
      probes.append(Probe("maths", "What is the sum of the numbers?", total))
    else:
      probes.append(Probe("maths", "What is the result?", str(formula.result)))
  elif formula.result is not None and formula.result <= 99:
    probes.append(Probe("maths", "What is the result?", str(formula.result)))
  shown = ask.choices(formula.kind, _absent(formula), rng)
  probes.append(Probe("science", ask.CONTENT_QUESTION, formula.kind, shown))
  kinds = ask.choices("formula", ask.KINDS, rng)
  probes.append(Probe("breadth", ask.KIND_QUESTION, "formula", kinds))
  return tuple(probes)


def render(source: str, rng: np.random.Generator, held_out: bool) -> Picture:
  """`source` is one of `sources()`; KeyError for any other."""
  formula = equations()[source]
  face = pick(rng, HELD_OUT_FACES if held_out else FACES)
  if rng.random() < (0.5 if held_out else 0.25):
    ground, inks = pick(rng, BOARDS), fonts.BRIGHT_INKS
  else:
    ground, inks = pick(rng, PAPERS), fonts.DARK_INKS
  color = pick(rng, inks)
  ink = inks[color]
  image = Image.new("RGB", (SIZE, SIZE), ground)
  draw = ImageDraw.Draw(image)
  stacked = held_out and formula.kind in SIGNS and coin(rng)
  if stacked:
    cap = pick(rng, (10, 11, 12))
    pen = _Pen(draw, face, cap, ink, rng.uniform(46, 64), rng.uniform(cap + 3, cap + 8))
    _set_column(pen, formula)
    sign = TYPED[formula.kind]
    first, second = formula.numbers
    text = f"{first} {sign} {second} {formula.variable}"
  else:
    cap = pick(rng, (9, 10, 11, 12, 13))
    while (width := _width(formula, face, cap)) > SIZE - 3 and cap > 8:
      cap -= 1
    free = max(SIZE - 2 - width, 1)
    at = 1 + rng.uniform(0, free), rng.uniform(30, SIZE - 20)
    pen = _Pen(draw, face, cap, ink, *at)
    _set_line(pen, formula)
    text = formula.text
  labels = {"variable": formula.variable, formula.kind: formula.core}
  return Picture(
    source=source,
    image=np.asarray(image),
    caption=_caption(rng, formula, color),
    text=text,
    things=tuple(Thing(label, fonts.share(pen.extents[n])) for n, label in labels.items()),
    questions=_questions(rng, formula, color, stacked),
    probes=_probes(rng, formula),
  )


DOMAIN = Domain("formulae", sources, render)
