"""Recorded runs with one number each, to be searched in or fitted to, and what computes rows."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree

from mixjax.search.observations import SAME, Observations

# What a row is computed by, and how many are: `compute(function, {label: arguments})` gives the
# rows in the order of the labels. A caller may spread them over processes or keep them on disk.
Compute = Callable[[Callable[..., dict], Mapping[str, tuple]], list[dict]]


def in_turn(function: Callable[..., dict], tasks: Mapping[str, tuple]) -> list[dict]:
  """The simplest `Compute`: here, one after the other."""
  return [function(*arguments) for arguments in tasks.values()]


@dataclasses.dataclass(frozen=True, eq=False)
class Objective:
  """One metric of a table, or the mean of all, and the n runs that have it.

  `values` are in the metric's own units, lower is better if `minimize`; `metrics` are those they
  are the mean of, None for a single one. `test` marks the runs kept for judging, None where the
  table has no such split.
  """

  name: str
  minimize: bool
  domains: tuple[str, ...]
  runs: tuple[str, ...]
  mixtures: Float[np.ndarray, "n d"]
  values: Float[np.ndarray, " n"]
  test: Bool[np.ndarray, " n"] | None = None
  metrics: Float[np.ndarray, "n b"] | None = None

  def observations(self, runs: Sequence[int]) -> Observations:
    """What a policy or a surrogate sees of these runs."""
    parts = None if self.metrics is None else self.sign * self.metrics[runs] / self.metrics.shape[1]
    return Observations(self.mixtures[runs], self.sign * self.values[runs], parts=parts)

  @property
  def sign(self) -> int:
    """What turns values into scores, higher is better."""
    return -1 if self.minimize else 1

  @functools.cached_property
  def seen(self) -> Int[np.ndarray, " k"]:
    """The runs to search in or to fit on: all but the test split."""
    return np.arange(len(self.values)) if self.test is None else np.flatnonzero(~self.test)

  @functools.cached_property
  def replicates(self) -> tuple[tuple[int, ...], ...]:
    """The seen runs, those on the same mixture together; mixtures in the table's order."""
    mixtures = self.mixtures[self.seen]
    groups: dict[int, list[int]] = {}
    near = cKDTree(mixtures).query_ball_point(mixtures, SAME, p=np.inf)
    for i, alike in enumerate(near):
      leader = min((j for j in alike if j in groups), default=i)
      groups.setdefault(leader, []).append(int(self.seen[i]))
    return tuple(tuple(group) for group in groups.values())


def mean_or_none(values) -> float | None:
  """The mean; None if one of them is not known."""
  values = list(values)
  return None if any(value is None for value in values) else float(np.mean(values))
