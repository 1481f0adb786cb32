"""Scores of one answer, each in [0, 1] and pure, after the definitions of the original
benchmarks.
"""

import math
import re

from mixjax.corpus import tasks

# A number whose commas part thousands.
_THOUSANDS = re.compile(r"[-+]?\d{1,3}(,\d{3})+(\.\d*)?%?")


def normalise(text: str) -> str:
  """Lower case, single spaces."""
  return " ".join(text.lower().split())


def exact_match(said: str, answer: str) -> float:
  return float(normalise(said) == normalise(answer))


def edit_distance(a: str, b: str) -> int:
  """Levenshtein distance in characters."""
  row = list(range(len(b) + 1))
  for i, x in enumerate(a, 1):
    previous, row[0] = row[0], i
    for j, y in enumerate(b, 1):
      previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
  return row[-1]


def anls(said: str, answer: str) -> float:
  """Average normalised Levenshtein similarity of DocVQA: 1 - distance / longer length, below .5 is
  0.
  """
  said, answer = normalise(said), normalise(answer)
  longer = max(len(said), len(answer))
  similarity = 1 - edit_distance(said, answer) / longer if longer else 1.0
  return similarity if similarity >= 0.5 else 0.0


def relaxed_accuracy(said: str, answer: str) -> float:
  """ChartQA's: numbers may be off by 5% of the answer, anything else has to match exactly.

  A percentage is a hundredth of its number, and commas may part thousands. An answer of zero allows
  no error.
  """
  number, truth = _number(said), _number(answer)
  if number is None or truth is None:
    return exact_match(said, answer)
  return float(abs(number - truth) <= 0.05 * abs(truth))


def _number(text: str) -> float | None:
  text = text.strip()
  if _THOUSANDS.fullmatch(text):
    text = text.replace(",", "")
  try:
    number = float(text.removesuffix("%"))
  except ValueError:
    return None
  return (number / 100 if text.endswith("%") else number) if math.isfinite(number) else None


def box_iou(a: tasks.Box, b: tasks.Box) -> float:
  """Intersection over union of two boxes (ymin, xmin, ymax, xmax)."""
  height = min(a[2], b[2]) - max(a[0], b[0])
  width = min(a[3], b[3]) - max(a[1], b[1])
  inter = max(height, 0.0) * max(width, 0.0)
  union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
  return inter / union if union > 0 else 0.0


def grounding(said: str, answer: str) -> float:
  """Accuracy at IoU 0.5 of the first box said; an answer that holds no box is a miss."""
  boxes, (truth, *_) = tasks.read_boxes(said), tasks.read_boxes(answer)
  return float(bool(boxes) and box_iou(boxes[0], truth) >= 0.5)
