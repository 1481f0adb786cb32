"""What every exporter starts from: the cells that a mixture draws from, and where they are.

An exporter is a module with `FILE` (the name of what it writes), `PATH` (where a trainer is likely
to have a cell), `UNIT` (what the trainer's weights are shares of) and

    export(sources, samples) -> Export

where `samples` is how many samples the run will draw, at least one, None if that is not settled.
Cells of weight 0 are no sources: most trainers refuse a zero.
"""

import dataclasses
import math
import string
from collections.abc import Mapping, Sequence

from mixjax.data import mixture

SAMPLES, SEQUENCES = "samples", "sequences of tokens"


@dataclasses.dataclass(frozen=True)
class Source:
  """A cell of positive weight. `weight` is its share of samples, `tokens` the mean length of one.

  `name` is the cell's in letters, digits and underscores; `path` is for the trainer to read.
  `tokens` is None where the cells were written without lengths.
  """

  cell: str
  name: str
  path: str
  weight: float
  rows: int
  tokens: float | None = None

  def epochs(self, samples: int) -> float:
    """How often a row of the cell is seen in so many samples of the mixture."""
    return self.weight * samples / self.rows


@dataclasses.dataclass(frozen=True)
class Export:
  """A trainer's file as text, the number it holds for each cell, and what to know about it."""

  text: str
  weights: dict[str, float]
  notes: tuple[str, ...] = ()


def check_samples(samples: int | None) -> None:
  """Raises ValueError for a number of samples that no run draws."""
  if samples is not None and samples < 1:
    raise ValueError(
      f"samples is {samples}: give how many the run will draw, at least 1, or nothing if that is "
      "not known"
    )


def sources(
  weights: Mapping[str, float],
  manifest: Mapping,
  path: str,
  folder: str = "",
  extra_tokens: float = 0.0,
) -> tuple[Source, ...]:
  """The cells that `weights` draws from, in the manifest's order, shares summing to 1.

  Args:
    weights: shares of samples by cell; see `mixture.check` for what it refuses.
    manifest: of a folder of cells (`shards.read_manifest`).
    path: where the trainer has a cell. It may hold {cell} ("charts/caption"), {concept}, {task},
      {name} ("charts_caption"), {folder} (the cell's within the cells) and {cells} (that of all).
    folder: what {cells} stands for.
    extra_tokens: what each sample has besides its texts: those of its image and of its frame.

  Raises ValueError for a field that `path` may not hold, and for cells that share a path.
  """
  entries = manifest["cells"]
  checked = mixture.check(weights, {cell: entry["rows"] for cell, entry in entries.items()})
  total = math.fsum(checked.values())
  found = []
  for cell, weight in checked.items():
    if weight == 0:
      continue
    entry = entries[cell]
    concept, task = cell.rsplit("/", 1)
    name = entry["folder"].replace("/", "_")
    fields = dict(cell=cell, concept=concept, task=task, name=name, folder=entry["folder"])
    where = _fill(path, fields | {"cells": folder})
    found.append(
      Source(cell, name, where, weight / total, entry["rows"], _tokens(entry, extra_tokens))
    )
  owners: dict[str, str] = {}
  for source in found:
    if owners.setdefault(source.path, source.cell) != source.cell:
      raise ValueError(
        f"cells {owners[source.path]!r} and {source.cell!r} both have the path {source.path!r}: "
        "put {cell}, {name} or {folder} into it"
      )
  return tuple(found)


def _fill(path: str, fields: Mapping[str, str]) -> str:
  known = ", ".join(f"{{{name}}}" for name in fields)
  try:
    parts = list(string.Formatter().parse(path))
  except ValueError as error:
    raise ValueError(f"path {path!r} cannot be filled ({error}); it may hold {known}") from error
  for _, name, form, conversion in parts:
    # An attribute or an item of a name is never meant: some have one, as {cell.upper} has.
    if name is not None and (name not in fields or form or conversion):
      raise ValueError(f"path {path!r} cannot be filled: of what is in braces it may hold {known}")
  return path.format_map(fields)


def _tokens(entry: Mapping, extra: float) -> float | None:
  means = [value["mean"] for name, value in entry.items() if name.endswith("_tokens")]
  return math.fsum(means) + extra if means else None


def token_shares(sources: Sequence[Source]) -> dict[str, float]:
  """Shares of tokens by cell: of two cells with equal samples, the longer has more of the tokens.

  Raises ValueError naming the cells without lengths.
  """
  if missing := [source.cell for source in sources if source.tokens is None]:
    raise ValueError(
      f"this trainer weighs tokens, and the manifest has no token lengths of {', '.join(missing)}: "
      "write the cells again with token_count=, as configs/atlas.py does"
    )
  masses = {source.cell: source.weight * source.tokens for source in sources}
  total = math.fsum(masses.values())
  if not all(mass > 0 for mass in masses.values()):
    empty = [cell for cell, mass in masses.items() if not mass > 0]
    raise ValueError(f"a sample of {', '.join(empty)} has no tokens on average: give extra_tokens")
  return {cell: mass / total for cell, mass in masses.items()}


def first_to_end(sources: Sequence[Source]) -> tuple[Source, float]:
  """The cell whose rows run out first, and how many samples of the mixture that takes."""
  source = min(sources, key=lambda source: source.rows / source.weight)
  return source, source.rows / source.weight
