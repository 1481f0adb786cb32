"""Small programs on a screen, coloured by token kind as an editor does."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw
from pygments import token
from pygments.lexers import PythonLexer

from mixjax.corpus.gallery import ask, fonts
from mixjax.corpus.gallery.chance import coin, pick, shuffled
from mixjax.corpus.gallery.picture import SIZE, Domain, Picture, Probe, Thing

NAMES = (
  "add", "area", "cost", "draw", "find", "fit", "get", "load", "mean", "move", "pack", "plot",
  "read", "run", "save", "send", "size", "sort", "step", "sum", "test", "trim", "walk", "zip",
)  # fmt: skip
VARIABLES = ("a", "k", "n", "s", "x", "y")
NUMBERS = range(1, 21)
SOURCES = 1600
# {f} is the name, {v} a variable, {n} the only number.
WITH_RETURN = (
  "def {f}({v}):\n return {n}",
  "def {f}({v}):\n return {v}+{n}",
  "def {f}({v}):\n return {v}*{n}",
  "def {f}({v}):\n {v}+={n}\n return {v}",
  "def {f}():\n {v}={n}\n return {v}",
)
WITHOUT_RETURN = (
  "def {f}({v}):\n print({n})",
  "class {f}:\n {v}={n}",
  "import {f}\n{v}={n}\nprint({v})",
  "def {f}({v}):\n {v}-={n}\n print({v})",
  "import {f}\n{v}={f}({n})",
)
# the narrower ones: a line of code is long
FACES = ("roboto", "roboto bold", "lato", "lato bold")
HELD_OUT_FACES = ("caladea", "dejavu serif")
LIGHT = {"white": (255, 255, 255), "yellow": (250, 240, 200), "gray": (222, 222, 226)}
DARK = {"black": (18, 18, 20), "blue": (12, 25, 70), "gray": (62, 62, 66)}

NAME, NUMBER, KEYWORD, OTHER = "name", "number", "keyword", "other"
KINDS = {
  token.Name.Function: NAME,
  token.Name.Class: NAME,
  token.Name.Namespace: NAME,
  token.Literal.Number.Integer: NUMBER,
  token.Keyword: KEYWORD,
  token.Keyword.Namespace: KEYWORD,
  token.Name.Builtin: KEYWORD,
}


@dataclasses.dataclass(frozen=True)
class Token:
  words: str
  kind: str


@dataclasses.dataclass(frozen=True)
class Program:
  name: str
  number: str
  lines: tuple[tuple[Token, ...], ...]

  @property
  def text(self) -> str:
    return "\n".join("".join(t.words for t in line) for line in self.lines)

  @property
  def returns(self) -> bool:
    return any(t.words == "return" for line in self.lines for t in line)


def _lex(text: str) -> tuple[tuple[Token, ...], ...]:
  lines: list[list[Token]] = [[]]
  for kind, words in PythonLexer(stripnl=False, ensurenl=False).get_tokens(text):
    for i, part in enumerate(words.split("\n")):
      if i:
        lines.append([])
      if part:
        lines[-1].append(Token(part, KINDS.get(kind, OTHER)))
  return tuple(tuple(line) for line in lines)


def _all(templates: Sequence[str]) -> Iterator[tuple[str, str, str]]:
  """(text, name, number) of every program that the templates make."""
  for template, f, v, n in itertools.product(templates, NAMES, VARIABLES, NUMBERS):
    yield template.format(f=f, v=v, n=n), f, str(n)


@functools.lru_cache(maxsize=1)
def _programs() -> dict[str, tuple[str, str, str]]:
  """(text, name, number) by their text on one line; half of them return."""
  rng = np.random.default_rng(21)
  chosen = {}
  for templates in (WITH_RETURN, WITHOUT_RETURN):
    made = tuple(_all(templates))
    for i in rng.permutation(len(made))[: SOURCES // 2]:
      text, name, number = made[i]
      chosen[text.replace("\n", "; ")] = (text, name, number)
  return dict(sorted(chosen.items()))


def sources() -> Sequence[str]:
  """The programs' own texts, each on one line."""
  return tuple(_programs())


@functools.lru_cache(maxsize=SOURCES)
def _program(source: str) -> Program:
  text, name, number = _programs()[source]
  return Program(name, number, _lex(text))


def _write(
  draw: ImageDraw.ImageDraw,
  program: Program,
  face: str,
  inks: Mapping[str, fonts.RGB],
  left: float,
  top: float,
  pitch: float,
) -> dict[str, fonts.Pixels]:
  """Writes the program; returns the extents of its name, its number and its keywords."""
  indent = 5
  texts = tuple("".join(t.words for t in line) for line in program.lines)
  flush = tuple(text for text in texts if text[0] != " ")
  inside = tuple(text.strip() for text in texts if text[0] == " ")
  room = SIZE - 1 - left
  font = fonts.fit(face, 9, flush, room)
  if inside:
    font = min(font, fonts.fit(face, 9, inside, room - indent), key=lambda f: f.size)
  extents = {}
  for i, line in enumerate(program.lines):
    x, y = left, top + pitch * i + 9
    for part in line:
      if part.words.isspace():
        x += indent if x == left else font.getlength(" ")
        continue
      extent = fonts.write(draw, (x, y), part.words, font, inks[part.kind])
      extents.setdefault(part.words if part.kind == KEYWORD else part.kind, extent)
      x += font.getlength(part.words)
  return extents


def _style(rng: np.random.Generator, held_out: bool):
  """(name of the ground, its colour, the colour name of each token kind, the inks)."""
  dark = coin(rng)
  inks = fonts.BRIGHT_INKS if dark else fonts.DARK_INKS
  grounds = DARK if dark else LIGHT
  ground = pick(rng, grounds)
  usable = [c for c in inks if not (c == ground == "blue")]
  theme = dict(zip((NAME, NUMBER, KEYWORD), shuffled(rng, usable), strict=False))
  theme[OTHER] = "white" if dark else "black"
  return ground, grounds[ground], theme, inks


def _probes(rng: np.random.Generator, program: Program) -> tuple[Probe, ...]:
  first = program.lines[0][0].words
  asked = [
    Probe("screens", "What is the name?", program.name),
    Probe("screens", "What is the number?", program.number),
  ]
  # most programs begin with def: asked of all, the first word would be no question
  if first != "def" or rng.random() < 0.2:
    asked[int(rng.integers(2))] = Probe("screens", "What is the first word?", first)
  other_name = pick(rng, (f for f in NAMES if f != program.name))
  other_number = pick(rng, (n for n in NUMBERS if str(n) != program.number))
  fitting = f"{program.name} with {program.number}"
  wrong = (
    f"{program.name} with {other_number}",
    f"{other_name} with {program.number}",
    f"{other_name} with {other_number}",
  )
  asked.append(Probe("breadth", ask.CAPTION_QUESTION, fitting, ask.choices(fitting, wrong, rng)))
  return tuple(asked)


def render(source: str, rng: np.random.Generator, held_out: bool) -> Picture:
  """`source` is one of `sources()`; KeyError for any other."""
  program = _program(source)
  ground, ground_color, theme, inks = _style(rng, held_out)
  face = pick(rng, HELD_OUT_FACES if held_out else FACES)
  image = Image.new("RGB", (SIZE, SIZE), ground_color)
  draw = ImageDraw.Draw(image)
  bar = 10 if held_out else 0  # a window's title bar, which training never shows
  if held_out:
    draw.rectangle([0, 0, SIZE, bar - 1], fill=(150, 150, 160))
    for i, ink in enumerate(("red", "orange", "green")):
      draw.ellipse([3 + 9 * i, 2, 8 + 9 * i, 7], fill=fonts.BRIGHT_INKS[ink])
  left = rng.uniform(1, 4)
  lines = len(program.lines)
  pitch = rng.uniform(16, min(24, (SIZE - bar - 6) / lines))
  top = bar + rng.uniform(2, SIZE - bar - 2 - pitch * lines + pitch - 12)
  token_inks = {kind: inks[color] for kind, color in theme.items()}
  extents = _write(draw, program, face, token_inks, left, top, pitch)

  there = program.returns
  last = "return" if there else "print" if "print" in extents else program.lines[0][0].words
  labels = {NAME: f"name {program.name}", NUMBER: f"number {program.number}", last: last}
  things = tuple(Thing(label, fonts.share(extents[key])) for key, label in labels.items())
  colored = pick(rng, (NAME, NUMBER))
  caption = (
    f"code on {ground} with {theme[NAME]} name {program.name}, "
    f"{theme[NUMBER]} number {program.number}, {last}"
  )
  return Picture(
    source=source,
    image=np.asarray(image),
    caption=caption,
    text=" ".join("".join(t.words for t in line).strip() for line in program.lines),
    things=things,
    questions=(
      (ask.how_many("line"), str(lines)),
      (ask.what_color(colored), theme[colored]),
      (ask.is_there("return"), "yes" if there else "no"),
      (ask.KIND_QUESTION, "code"),
    ),
    probes=_probes(rng, program),
  )


DOMAIN = Domain("code", sources, render)
