"""CSV files whose rows and columns are looked up by name; errors name the file and the run."""

import csv
import dataclasses
import io
from collections import Counter
from collections.abc import Iterable

import numpy as np
from etils import epath

# What stands for no value.
_MISSING = ("", "nan", "na", "n/a", "null", "none")


@dataclasses.dataclass(frozen=True)
class Sheet:
  """One CSV file: its columns, and each run's cells by name."""

  path: epath.Path
  columns: tuple[str, ...]
  runs: dict[str, dict[str, str]]

  @classmethod
  def read(cls, path: epath.Path, key: str) -> "Sheet":
    text = path.read_bytes().decode("utf-8-sig")
    lines = [row for row in csv.reader(io.StringIO(text)) if any(cell.strip() for cell in row)]
    if not lines:
      raise ValueError(f"{path} is empty")
    columns = tuple(cell.strip() for cell in lines[0])
    if twice := [n for n, count in Counter(filter(None, columns)).items() if count > 1]:
      raise ValueError(f"{path} has several columns called {listed(twice)}")
    if key not in columns:
      raise ValueError(f"{path} has no column {key!r} to join on; it has {listed(columns)}")
    runs: dict[str, dict[str, str]] = {}
    for row in lines[1:]:
      if len(row) != len(columns):
        raise ValueError(f"{path}: {len(row)} cells for {len(columns)} columns in {row[:3]}...")
      cells = dict(zip(columns, (cell.strip() for cell in row), strict=True))
      if cells[key] in runs:
        raise ValueError(f"{path} has several rows for {key} {cells[key]!r}: keep one of them")
      runs[cells[key]] = cells
    return cls(path, columns, runs)

  def numbers(self, column: str, runs: Iterable[str]) -> np.ndarray:
    """The column for these runs, NaN where there is nothing; ValueError if a cell is text."""
    return np.array([self._number(run, column) for run in runs])

  def _number(self, run: str, column: str) -> float:
    cell = self.runs[run][column]
    if cell.lower() in _MISSING:
      return np.nan
    try:
      return float(cell)
    except ValueError:
      raise ValueError(
        f"{self.path}: run {run!r} has {cell!r} in column {column!r}, which is no number"
      ) from None


def listed(names: Iterable[str], most: int = 8) -> str:
  """Names for an error: the first few, and how many more there are."""
  names = list(names)
  more = f" and {len(names) - most} more" if len(names) > most else ""
  return ", ".join(repr(name) for name in names[:most]) + more
