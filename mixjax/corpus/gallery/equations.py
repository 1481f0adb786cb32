"""The equations of the formula pictures: what they say, typed and spoken, and what they come to."""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np

VARIABLES = ("a", "b", "k", "n", "x", "y", "z")
PLUS, MINUS, TIMES = "plus", "minus", "times"
FRACTION, ROOT, POWER = "fraction", "root", "power"
SIGNS = {PLUS: "+", MINUS: "\N{MINUS SIGN}", TIMES: "\N{MULTIPLICATION SIGN}"}
TYPED = {PLUS: "+", MINUS: "-", TIMES: "*"}
SHAPES = (FRACTION, ROOT, POWER)
EACH = 300  # formulae of a kind
LARGEST = 12


@dataclasses.dataclass(frozen=True)
class Formula:
  """`variable` = `terms`, or the other way round where `turned`.

  One kind: for +, - and * two numbers; for a fraction, a root or a power its numbers and, where
  `added` is set, a number added to it.
  """

  kind: str
  variable: str
  numbers: tuple[int, ...]
  added: int | None
  turned: bool

  @property
  def all_numbers(self) -> tuple[int, ...]:
    """From left to right, without the 2 of a power."""
    return self.numbers if self.added is None else (*self.numbers, self.added)

  @property
  def result(self) -> int | None:
    """What the variable is, where that is a whole number."""
    first, *rest = self.numbers
    if self.kind == FRACTION and first % rest[0]:
      return None
    value = {
      PLUS: lambda: first + rest[0],
      MINUS: lambda: first - rest[0],
      TIMES: lambda: first * rest[0],
      FRACTION: lambda: first // rest[0],
      ROOT: lambda: round(first**0.5),
      POWER: lambda: first**2,
    }[self.kind]()
    return value + (self.added or 0)

  @property
  def core(self) -> str:
    """The terms without what is added to them, as one would type them."""
    first, *rest = self.numbers
    if self.kind == ROOT:
      return f"root {first}"
    if self.kind == POWER:
      return f"{first}^2"
    if self.kind == FRACTION:
      return f"{first}/{rest[0]}"
    return f"{first} {TYPED[self.kind]} {rest[0]}"

  @property
  def typed(self) -> str:
    return self.core if self.added is None else f"{self.core} + {self.added}"

  @property
  def spoken(self) -> str:
    first, *rest = self.numbers
    if self.kind == ROOT:
      core = f"root of {first}"
    elif self.kind == POWER:
      core = f"{first} squared"
    else:
      core = f"{first} {'over' if self.kind == FRACTION else self.kind} {rest[0]}"
    return core if self.added is None else f"{core} plus {self.added}"

  @property
  def text(self) -> str:
    sides = (self.typed, self.variable) if self.turned else (self.variable, self.typed)
    return " = ".join(sides)


def of_kind(kind: str) -> Iterator[Formula]:
  """Every equation of a kind with numbers small enough to read."""
  up = range(1, LARGEST + 1)
  for variable in VARIABLES:
    for turned in (False, True):
      if kind in SIGNS:
        pairs = [(a, b) for a in up for b in up if kind != MINUS or a > b]
        rest = [(pair, None) for pair in pairs if kind != TIMES or max(pair) <= 9]
      else:
        core = {
          FRACTION: [(a, b) for a in up for b in up if b > 1 and a != b],
          ROOT: [(n * n,) for n in range(1, 10)],
          POWER: [(n,) for n in range(1, 10)],
        }[kind]
        rest = [(numbers, extra) for numbers in core for extra in (None, *range(1, 10))]
      for numbers, added in rest:
        yield Formula(kind, variable, numbers, added, turned)


@functools.lru_cache(maxsize=1)
def equations() -> dict[str, Formula]:
  """EACH of every kind, by what one would type."""
  rng = np.random.default_rng(22)
  chosen = {}
  for kind in (*SIGNS, *SHAPES):
    every = tuple(of_kind(kind))
    for i in rng.permutation(len(every))[:EACH]:
      chosen[every[i].text] = every[i]
  return dict(sorted(chosen.items()))
