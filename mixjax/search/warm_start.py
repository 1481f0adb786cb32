"""A search that starts from the runs of another one, whose cells have since been changed.

An atlas that is refitted renames, merges and splits cells. Weights carry over; what a run measured
does so only as far as its data would be drawn by the new names as well. The rest is doubt, stated
as a standard error, which every surrogate here takes into account.
"""

import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from mixjax.search.observations import Observations
from mixjax.search.space import SUM_TOLERANCE, Space

Renamed = Mapping[str, str]
Merged = Mapping[str, Sequence[str]]
Split = Mapping[str, Mapping[str, float] | Sequence[str]]


def translate(
  observations: Observations,
  old: Space,
  new: Space,
  *,
  renamed: Renamed | None = None,
  merged: Merged | None = None,
  split: Split | None = None,
  added: Collection[str] = (),
  rows: Mapping[str, float] | None = None,
  doubt: float | None = None,
) -> Observations:
  """The runs on `old`, pending ones too, as runs on `new`: every weight where its coordinate went.

  `renamed` is {old: new}: the same weight. `merged` is {new: [old, ...]}: their sum. `split` is
  {old: {new: share}}, or {old: [new, ...]} for shares in proportion to `rows`. Coordinates named
  alike on both stay. `added` are new ones without data in the old runs: weight 0. `rows` counts the
  rows of coordinates by name, old and new.

  In doubt is the weight that may have gone to other rows than `new` would give it: a merged
  coordinate draws from its parts in proportion to their rows, and a split one has drawn from its
  parts in proportion to theirs. Where coordinates are cells and their `rows` are given, that is
  half the L1 distance from this proportion; elsewhere it is all the weight that was merged or
  split. `doubt`, in score units, is the standard error of a run that is in doubt altogether (None:
  the sd of the scores); others get their part of it, added in quadrature. A part of the scores is
  in doubt by as much of its own sd. Where the runs state no standard errors but some get one, those
  without doubt state 0.

  Both spaces should have the same empty cells, and `new` the objective and budget of the runs.
  ValueError, saying what to do, for names unknown, left over, missing or met twice, for shares that
  do not sum to 1, and for weight that would move from one axis to another.
  """
  if doubt is not None and not 0 <= doubt < np.inf:
    raise ValueError(f"doubt is a standard error in score units, not {doubt}")
  merged = merged or {}
  shares = {name: _shares(name, parts, rows) for name, parts in (split or {}).items()}
  moves = _moves(old, new, renamed or {}, merged, shares, added)

  def carry(points: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n e"]:
    old.check(points)
    carried = np.zeros((len(points), new.dim))
    for source, target, share in moves:
      carried[:, new.names.index(target)] += share * points[:, old.names.index(source)]
    return carried

  mixtures = carry(observations.mixtures)
  counts = rows if all(space.names == space.cell_names for space in (old, new)) else None
  safe = np.ones((len(observations), len(old.axes)))
  for changed, space, points in (
    (merged.values(), old, observations.mixtures),
    (shares.values(), new, mixtures),
  ):
    for parts in changed:
      places = [space.names.index(part) for part in parts]
      safe[:, space.block[places[0]]] -= _in_doubt(points[:, places], tuple(parts), counts)
  # A cell's weight is the product of those on its axes, and safe where all of them are.
  in_doubt = 1 - safe.prod(axis=1)
  spread = observations.scores.std() if len(observations) else 0.0
  doubt = spread if doubt is None else doubt
  stderr, part_stderr = observations.stderr, observations.part_stderr
  if in_doubt.any():
    stderr = np.hypot(0.0 if stderr is None else stderr, doubt * in_doubt)
    if observations.parts is not None:
      each = doubt * observations.parts.std(axis=0) / (spread or 1.0)
      part_stderr = np.hypot(0.0 if part_stderr is None else part_stderr, np.outer(in_doubt, each))
  return dataclasses.replace(
    observations,
    mixtures=mixtures,
    stderr=stderr,
    pending=None if observations.pending is None else carry(observations.pending),
    infeasible=None if observations.infeasible is None else carry(observations.infeasible),
    part_stderr=part_stderr,
  )


def joined(runs: Sequence[Observations]) -> Observations:
  """Runs of several studies on one space as those of one: old ones, translated, then new ones.

  Where some state standard errors, those of the others count as 0: a surrogate fits the noise
  beyond what is stated. ValueError if only some state their fidelity, or their parts.
  """
  for name, what in (("fidelity", "fidelity"), ("parts", "parts, one for each benchmark")):
    if len({getattr(one, name) is None for one in runs if len(one)}) > 1:
      raise ValueError(f"only some of the runs state their {what}: give it to all, or to none")
  widths = {one.parts.shape[1] for one in runs if one.parts is not None and len(one)}
  if len(widths) > 1:
    raise ValueError(f"the runs have {sorted(widths)} parts: score all on the same benchmarks")
  left = {}
  for name in ("pending", "infeasible"):
    rows = [getattr(one, name) for one in runs if getattr(one, name) is not None]
    left[name] = np.concatenate(rows) if rows else None

  def column(name: str, like: str) -> np.ndarray | None:
    """Zeros, of the shape of what it is `like`, where some runs do not state it."""
    stated = [getattr(one, name) for one in runs if len(one)]
    if all(value is None for value in stated):
      return None
    shapes = [np.shape(getattr(one, like)) for one in runs if len(one)]
    return np.concatenate(
      [np.zeros(shape) if v is None else v for shape, v in zip(shapes, stated, strict=True)]
    )

  return Observations(
    np.concatenate([one.mixtures for one in runs]),
    np.concatenate([one.scores for one in runs]),
    column("stderr", "scores"),
    column("fidelity", "scores"),
    parts=column("parts", "parts"),
    part_stderr=column("part_stderr", "parts"),
    **left,
  )


def _in_doubt(
  drawn: Float[np.ndarray, "n k"], parts: Sequence[str], rows: Mapping[str, float] | None
) -> Float[np.ndarray, " n"]:
  """How much of the weights `drawn` from the parts of one coordinate is not as its rows are."""
  if len(parts) == 1:
    return np.zeros(len(drawn))
  whole = drawn.sum(axis=1)
  if rows is None or not all(part in rows for part in parts):
    return whole
  natural = np.array(list(_proportions(parts, rows).values()))
  apart = np.abs(drawn - whole[:, None] * natural).sum(axis=1) / 2
  # Rounding alone is no doubt.
  return np.where(apart > 1e-12, apart, 0.0)


def _shares(
  name: str, parts: Mapping[str, float] | Sequence[str], rows: Mapping[str, float] | None
) -> dict[str, float]:
  """Which share of the old coordinate `name` each of its parts gets."""
  if not isinstance(parts, Mapping):
    if missing := [part for part in parts if part not in (rows or {})]:
      raise ValueError(
        f"{name!r} is split without shares: give the rows of {missing}, or {{new: share}}"
      )
    return _proportions(parts, rows)
  total = sum(parts.values())
  if not all(share >= 0 for share in parts.values()) or not abs(total - 1) <= SUM_TOLERANCE:
    raise ValueError(
      f"the shares of {name!r} are {dict(parts)}: they are not negative and sum to 1, not {total}"
    )
  return {part: share / total for part, share in parts.items()}


def _proportions(parts: Sequence[str], rows: Mapping[str, float]) -> dict[str, float]:
  total = sum(rows[part] for part in parts)
  if not all(rows[part] >= 0 for part in parts) or not 0 < total < np.inf:
    counts = {part: rows[part] for part in parts}
    raise ValueError(f"the rows {counts} are no proportions: not negative, and not all 0")
  return {part: rows[part] / total for part in parts}


def _moves(
  old: Space,
  new: Space,
  renamed: Renamed,
  merged: Merged,
  shares: Mapping[str, Mapping[str, float]],
  added: Collection[str],
) -> list[tuple[str, str, float]]:
  """(old coordinate, new coordinate, share of the weight) of all; ValueError as `translate`."""
  moves = [(source, target, 1.0) for source, target in renamed.items()]
  moves += [(source, target, 1.0) for target, parts in merged.items() for source in parts]
  moves += [(source, part, share) for source, of in shares.items() for part, share in of.items()]
  given = {source for source, _, _ in moves}
  moves += [(n, n, 1.0) for n in old.names if n in new.names and n not in given]

  sources, targets = {source for source, _, _ in moves}, {target for _, target, _ in moves}
  for what, names, space in (
    ("old", sources, old),
    ("new", targets | set(added), new),
  ):
    if unknown := sorted(names - set(space.names)):
      raise ValueError(
        f"{unknown} are no coordinates of the {what} {space.name} axis {list(space.names)}"
      )
  leaving = Counter([*renamed, *(source for parts in merged.values() for source in parts), *shares])
  staying = [source for source, target, _ in moves if source == target and source not in given]
  reached = Counter(
    [*renamed.values(), *merged, *(part for of in shares.values() for part in of), *staying, *added]
  )
  if twice := sorted(name for name, count in leaving.items() if count > 1):
    raise ValueError(f"old {twice} go to two places: name each once in renamed, merged or split")
  if twice := sorted(name for name, count in reached.items() if count > 1):
    raise ValueError(
      f"new {twice} are reached from two places, counting names that stay: list all parts in merged"
    )
  if left := [name for name in old.names if name not in sources]:
    raise ValueError(
      f"old {left} have no place on the new {new.name} axis: name it in renamed, merged or split"
    )
  if missing := [name for name in new.names if name not in targets and name not in added]:
    raise ValueError(
      f"new {missing} come from nowhere: name their origin in renamed, merged or split, or list "
      "them in added if the old runs had none of their data"
    )
  for source, target, _ in moves:
    axes = [space.block[space.names.index(name)] for space, name in ((old, source), (new, target))]
    if axes[0] != axes[1] or len(old.axes) != len(new.axes):
      raise ValueError(
        f"{source!r} and {target!r} are on different axes: weight moves only within one"
      )
  return moves
