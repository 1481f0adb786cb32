"""Cells, simplices, and what is within constraints by hand."""

import numpy as np

from mixjax.search.space import Space

CONCEPTS = ("maps", "charts", "faces")
TASKS = ("caption", "ocr")
CELLS = [f"{c}/{t}" for c in CONCEPTS for t in TASKS]


def simplex(dim):
  return Space.simplex("joint", [f"cell{i}" for i in range(dim)])


def within_by_hand(constraints, points):
  """Constraints spelt out from what they were made of, cell by cell."""
  space = constraints.space
  inside = ((points >= constraints.lower - 1e-9) & (points <= constraints.upper + 1e-9)).all(axis=1)
  for group in constraints.groups:
    total = points[:, [space.names.index(name) for name in group.members]].sum(axis=1)
    inside &= (total >= group.low - 1e-9) & (total <= group.high + 1e-9)
  if constraints.caps is not None:
    shares = np.array([list(space.cells(point).values()) for point in points])
    inside &= (shares <= constraints.caps + 1e-9).all(axis=1)
  if constraints.at_most is not None:
    for axis in range(len(space.axes)):
      inside &= (points[:, space.block == axis] > 0).sum(axis=1) <= constraints.at_most
  return inside
