"""Boxes that a model wrote, held to the grammar of `tasks.write_box`."""

import re

from mixjax.corpus import tasks

_NUMBER = r"<(-?\d+)>"
_RUN = re.compile(rf"(?:{_NUMBER})+")


def problem(text: str) -> str:
  """What is wrong with the boxes of an answer, in a few words; "" where nothing is.

  An answer with regions has one box at least; each is four bins ymin, xmin, ymax, xmax in order
  and within the picture, and stands behind the words that it belongs to.
  """
  boxes = 0
  behind = 0  # where the words of the next box begin
  for run in _RUN.finditer(text):
    bins = [int(number) for number in re.findall(_NUMBER, run[0])]
    if len(bins) != 4:
      return f"{run[0]} is {len(bins)} numbers, not the 4 of a box"
    ymin, xmin, ymax, xmax = bins
    if min(bins) < 0 or max(bins) >= tasks.BINS:
      return f"{run[0]} leaves the picture, whose bins are 0 to {tasks.BINS - 1}"
    if ymin > ymax or xmin > xmax:
      return f"{run[0]} ends before it begins"
    if not re.search(r"\w", text[behind : run.start()]):
      return f"{run[0]} has no words before it"
    boxes, behind = boxes + 1, run.end()
  return "" if boxes else "no box at all"
