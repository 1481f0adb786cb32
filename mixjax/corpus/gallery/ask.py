"""The words that the visual domains share: question templates, lists and multiple choices.

A question type learnt on one domain can be tested on another only where both ask in the same words.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

KIND_QUESTION = "What kind of picture is this?"
KINDS = (
  "photo",
  "emoji",
  "satellite map",
  "relief map",
  "molecule",
  "handwriting",
  "chart",
  "document",
  "code",
  "formula",
  "chess board",
)
CAPTION_QUESTION = "Which caption fits?"
CONTENT_QUESTION = "What is in the picture?"
BIGGEST_QUESTION = "Which region is the biggest?"
SIDES = ("left", "right", "top", "bottom")
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
RELATIONS = tuple(OPPOSITE)

_IRREGULAR = {"fish": "fish", "leaf": "leaves", "bus": "buses", "cherry": "cherries"}


def a(noun: str) -> str:
  """The noun with its indefinite article."""
  return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def plural(noun: str) -> str:
  return _IRREGULAR.get(noun, f"{noun}s")


def amount(count: int, noun: str) -> str:
  """Such as "a cat", "two cats", "no cats"."""
  return a(noun) if count == 1 else f"{NUMBERS[count]} {plural(noun)}"


def listing(phrases: Sequence[str]) -> str:
  """Such as "x", "x and y", "x, y and z"."""
  return " and ".join(filter(None, (", ".join(phrases[:-1]), phrases[-1])))


def is_there(thing: str) -> str:
  return f"Is there {a(thing)}?"


def how_many(noun: str) -> str:
  return f"How many {plural(noun)} are there?"


def what_color(thing: str) -> str:
  return f"What color is the {thing}?"


def what_is(relation: str, thing: str) -> str:
  """`relation` is one of RELATIONS."""
  return f"What is {relation} the {thing}?"


def where_is(thing: str) -> str:
  return f"Where is the {thing}?"


def presence(
  present: Sequence[str],
  absent: Sequence[str],
  odds: Mapping[str, float],
  rng: np.random.Generator,
) -> tuple[str, str]:
  """A yes/no question that cannot be guessed: about each thing, yes is about as frequent as no.

  `odds` says how many pictures show a thing for each one that lacks it. What a picture has in
  common with most others is seldom asked for; otherwise "sea" alone would mean yes.
  """
  weights = np.array([min(1, 1 / odds[n]) for n in present] + [min(1, odds[n]) for n in absent])
  chosen = int(rng.choice(len(weights), p=weights / weights.sum()))
  return is_there((*present, *absent)[chosen]), "yes" if chosen < len(present) else "no"


def choices(answer: str, others: Iterable[str], rng: np.random.Generator) -> tuple[str, ...]:
  """The answer among three distinct others, shuffled.

  Raises:
    ValueError: fewer than three of `others` differ from the answer.
  """
  wrong = [o for o in dict.fromkeys(others) if o != answer]
  if len(wrong) < 3:
    raise ValueError(f"{answer!r} needs three distractors, got {wrong}: offer more of them")
  picked = [answer, *(wrong[i] for i in rng.permutation(len(wrong))[:3])]
  return tuple(picked[i] for i in rng.permutation(4))
