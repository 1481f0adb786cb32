"""UniMax: as even as the corpus allows (Chung et al., 2023; best baseline in arXiv 2501.11747)."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from mixjax.search.observations import Observations
from mixjax.search.policies import Recommendation
from mixjax.search.space import Key, Space


def unimax_weights(sizes: Mapping[str, int], budget: float, epochs: float) -> dict[str, float]:
  """Equal weights, except that no domain is seen more than `epochs` times in `budget` rows.

  A domain of `sizes[name]` rows gets at most epochs * rows / budget; what that takes from small
  domains is shared evenly by the others (exact water-filling from the smallest domain up).
  ValueError if even all domains together cannot fill the budget.
  """
  if not sizes:
    raise ValueError("no domain to weigh: sizes is empty")
  for name, number in (*sizes.items(), ("budget", budget), ("epochs", epochs)):
    if not (np.isfinite(number) and number >= 0):
      raise ValueError(f"{name!r} is {number}, not a finite number of at least 0")
  if not budget > 0:
    raise ValueError("a budget of 0 rows has no shares: it is above 0")
  supply = epochs * sum(sizes.values())
  # Rounding must not refuse a budget of exactly the whole supply.
  if supply < budget * (1 - 1e-12):
    rows = sum(sizes.values())
    more = f" or at least {budget / rows:.4g} epochs" if rows else ""
    raise ValueError(
      f"{epochs:g} epochs over {rows} rows supply {supply:g} of {budget:g} rows, "
      f"{budget - supply:g} too few: add rows, or take a budget of at most {supply:g} rows{more}"
    )
  weights, left = {}, 1.0
  for done, name in enumerate(sorted(sizes, key=sizes.__getitem__)):
    weights[name] = min(epochs * sizes[name] / budget, left / (len(sizes) - done))
    left -= weights[name]
  total = sum(weights.values())
  return {name: weights[name] / total for name in sizes}


@dataclasses.dataclass(frozen=True)
class UniMax:
  """A fixed mixture: UniMax weights on every axis.

  `sizes` are rows, `{coordinate: rows}`, and `budget` the rows of the run. The cap holds for all
  rows of a coordinate taken together; where its cells differ in size, a small one may be seen more
  often. On a space with one weight a cell, it holds for every cell.
  """

  space: Space
  sizes: Mapping[str, int]
  budget: float
  epochs: float = 4.0

  def ask(self, observations: Observations, count: int, key: Key) -> Float[np.ndarray, "count d"]:
    return np.tile(self._mixture(), (count, 1))

  def recommend(self, observations: Observations) -> Recommendation:
    return Recommendation.from_runs(self._mixture(), observations.at_target())

  def _mixture(self) -> Float[np.ndarray, " d"]:
    if missing := [name for name in self.space.names if name not in self.sizes]:
      raise ValueError(f"no size for {missing} of the {self.space.name} axis")
    if unknown := [name for name in self.sizes if name not in self.space.names]:
      raise ValueError(f"sizes of {unknown}, which are no coordinates of {self.space.name}")
    weights = {}
    for axis in self.space.axes:
      rows = {name: self.sizes[name] for name in axis.coordinates}
      weights |= unimax_weights(rows, self.budget, self.epochs)
    return self.space.from_dict(weights)
