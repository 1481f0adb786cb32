"""Records that cannot be used, and which record stands in for each.

A bad record is replaced in place by the next good one of its own cell, going round. Sizes and all
other rows stay as they are, so proportions do, and every host finds the same without a word.
"""

from collections.abc import Callable, Mapping

import numpy as np


class BadRecord(ValueError):
  """A record that cannot be used; the message is the reason, for the ledger."""


def replacements(
  cell: str, rows: int, faults: Mapping[int, str], key_of: Callable[[int], str]
) -> dict[int, dict]:
  """Ledger lines by row: each bad record of a cell and the good one that stands in for it.

  Args:
    cell: the cell's name.
    rows: how many records it has.
    faults: why a record cannot be used, by row.
    key_of: a record's key by row.

  Where none is good, they are replaced by none; see `none_good`.
  """
  if not faults:
    return {}
  bad = sorted(faults)
  good = np.delete(np.arange(rows), bad)
  lines = {}
  for row in bad:
    by = int(good[np.searchsorted(good, row) % len(good)]) if len(good) else None
    lines[row] = {
      "cell": cell,
      "row": row,
      "key": key_of(row),
      "reason": faults[row],
      "replaced_by": None if by is None else key_of(by),
      "replaced_by_row": by,
    }
  return lines


def none_good(cell: str, lines: Mapping[int, dict]) -> str:
  """What is wrong with a cell of bad records only; `lines` are their `replacements`."""
  return (
    f"cell {cell!r}: none of its {len(lines)} records can be used (the first: "
    f"{lines[0]['key']!r}, {lines[0]['reason']}); give the cell no rows, or repair them"
  )
