"""A mixture is `{cell name: weight}`: checks, and the two mixtures that need no search.

Weights are shares of samples. A cell that a mixture does not name has weight 0.
"""

import difflib
import math
import numbers
from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import Float

TOLERANCE = 1e-6  # how far from 1 the sum of the weights may be


def check(weights: Mapping[str, float], cells: Mapping[str, int]) -> dict[str, float]:
  """The weights of every cell, in the order of `cells`.

  Args:
    weights: shares of samples by cell name; they sum to 1 within 1e-6.
    cells: rows by cell name.

  Raises:
    ValueError: names the cell and the remedy: an unknown cell, a weight that is negative or no
      finite number, weight on a cell without rows, or a sum other than 1.
  """
  if not isinstance(weights, Mapping):
    raise ValueError(f"weights are {{cell: weight}}, not {weights!r}")
  for cell, weight in weights.items():
    if cell not in cells:
      raise ValueError(f"no cell is called {cell!r}{_suggest(cell, cells)}")
    if not isinstance(weight, numbers.Real) or not math.isfinite(weight):
      raise ValueError(f"the weight of cell {cell!r} is {weight!r}: weights are finite numbers")
    if weight < 0:
      raise ValueError(f"the weight of cell {cell!r} is {weight}: weights are not negative")
    if weight > 0 and not cells[cell]:
      raise ValueError(f"cell {cell!r} has weight {weight} but no rows: give it weight 0")
  total = math.fsum(weights.values())
  if total == 0:
    raise ValueError("no cell has a positive weight: at least one must")
  if abs(total - 1) > TOLERANCE:
    raise ValueError(
      f"the weights sum to {total:.9g}, not 1: divide each by their sum, "
      "{cell: w / sum(weights.values()) for cell, w in weights.items()}"
    )
  return {cell: float(weights.get(cell, 0.0)) for cell in cells}


def _suggest(cell: str, cells: Iterable[str]) -> str:
  close = difflib.get_close_matches(cell, list(cells), n=3)
  return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def natural(cells: Mapping[str, int]) -> dict[str, float]:
  """Each cell's own share of the rows: what training on the whole corpus would see."""
  total = sum(cells.values())
  if not total:
    raise ValueError("no cell has any rows: there is nothing to mix")
  return {cell: rows / total for cell, rows in cells.items()}


def uniform(cells: Mapping[str, int]) -> dict[str, float]:
  """Equal weight on every cell that has rows, 0 on the rest."""
  return natural({cell: int(rows > 0) for cell, rows in cells.items()})


def to_vector(weights: Mapping[str, float], cells: Iterable[str]) -> Float[np.ndarray, " k"]:
  """The weights as float64[k] in the order of `cells`, 0 for cells that are not named.

  Raises ValueError for a weight on a cell that is not among `cells`: dropping it would be silent.
  """
  cells = list(cells)
  for cell in weights:
    if cell not in cells:
      raise ValueError(f"no cell is called {cell!r}{_suggest(cell, cells)}")
  return np.array([weights.get(cell, 0.0) for cell in cells], np.float64)
