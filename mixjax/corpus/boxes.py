"""Boxes in text, in the ways that corpora write them."""

import math
import re
from typing import NamedTuple

BINS, LOCATIONS, BRACKETS, CORNERS = "<3><0><9><8>", "<loc0003>", "[0.1, 0, 0.5, 1]", "(3,0),(9,8)"

_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+|nan|inf(?:inity)?)"
_FOUR = rf"({_NUMBER})\s*,\s*({_NUMBER})\s*,\s*({_NUMBER})\s*,\s*({_NUMBER})"
_CORNER = rf"\(\s*({_NUMBER})\s*,\s*({_NUMBER})\s*\)"
_PATTERNS = {
  BINS: re.compile(r"<(\d+)>\s*<(\d+)>\s*<(\d+)>\s*<(\d+)>"),
  LOCATIONS: re.compile(r"<loc(\d{4})><loc(\d{4})><loc(\d{4})><loc(\d{4})>"),
  BRACKETS: re.compile(rf"[\[(]\s*{_FOUR}\s*[\])]", re.IGNORECASE),
  CORNERS: re.compile(rf"{_CORNER}\s*,\s*{_CORNER}", re.IGNORECASE),
}
_LOCATION_BINS = 1024  # PaliGemma's


class Box(NamedTuple):
  """Four numbers as they are written, where they stand in the text, and the way of writing."""

  numbers: tuple[float, float, float, float]
  start: int
  end: int
  form: str

  @property
  def problem(self) -> str:
    """What is wrong with it whatever its scale; empty where nothing is.

    Numbers with a fraction, all but some within [0, 1], are shares of the picture.
    """
    if not all(map(math.isfinite, self.numbers)):
      return "not finite"
    if min(self.numbers) < 0:
      return "below 0"
    if self.form == LOCATIONS and max(self.numbers) >= _LOCATION_BINS:
      return f"beyond {_LOCATION_BINS - 1}"
    shares = [n for n in self.numbers if n <= 1]
    fraction = any(n % 1 for n in self.numbers)
    if fraction and len(shares) >= 2 and 1.001 < max(self.numbers) < 10:
      return "beyond 1"
    return ""


def find(text: str) -> list[Box]:
  """Every box in a text, in order."""
  found = []
  for form, pattern in _PATTERNS.items():
    for match in pattern.finditer(text):
      numbers = tuple(float(n) for n in match.groups())
      found.append(Box(numbers, match.start(), match.end(), form))
  return sorted(found, key=lambda box: box.start)


def without(text: str) -> list[str]:
  """What stands before, between and after the boxes of a text."""
  parts, at = [], 0
  for box in find(text):
    parts.append(text[at : box.start])
    at = box.end
  return [*parts, text[at:]]
