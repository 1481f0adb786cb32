"""The largest shares of cells whose shares are products of two weights."""

import dataclasses
import functools

import numpy as np
from jaxtyping import Float

from mixjax.search.polytope import ROUNDING, Polytope
from mixjax.search.space import Space, generator


@dataclasses.dataclass(frozen=True, eq=False)
class ProductCaps:
  """The mixtures in `polytope` that draw no cell of `space`, of two axes, beyond its cap.

  Not convex: what is nearest, and whether there is any, is found from tangents.
  """

  space: Space
  caps: Float[np.ndarray, " cells"]
  polytope: Polytope

  def overdrawn(self, points: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    """By how much the share of a cell exceeds its cap at worst."""
    drawn = self.space.base * points[:, self.space.member].prod(axis=2)
    total = drawn.sum(axis=1, keepdims=True)
    # Where all weight is on empty cells, nothing can be drawn.
    shares = np.divide(drawn, total, out=np.full_like(drawn, np.inf), where=total > 0)
    return (shares - self.caps).max(axis=1)

  def nearest(
    self, point: Float[np.ndarray, " d"], near: Float[np.ndarray, " d"]
  ) -> Float[np.ndarray, " d"]:
    """A mixture under the caps, nearer to `point` than all around it (Marks and Wright, 1978).

    `near` is the nearest without the caps.
    """
    best = self._towards(self.anchor, near)
    for _ in range(100):
      (better,) = self.under_tangents(best).nearest(point[None])
      better = self._towards(best, better)
      gained = np.linalg.norm(best - point) - np.linalg.norm(better - point)
      best = better if gained > 0 else best
      if gained < 1e-7:
        break
    return best

  def _towards(self, inside: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """How far from `inside` to `goal` the caps hold."""
    if self.overdrawn(goal[None])[0] <= ROUNDING:
      return goal
    reached, failed = 0.0, 1.0
    for _ in range(50):
      middle = (reached + failed) / 2
      held = self.overdrawn((inside + middle * (goal - inside))[None])[0] <= ROUNDING
      reached, failed = (middle, failed) if held else (reached, middle)
    return inside + reached * (goal - inside)

  def under_tangents(self, point: Float[np.ndarray, " d"]) -> Polytope:
    """The polytope and, for each cap on a product of two axes, a half-space where it holds.

    Where b0 a + a0 b <= 2 sqrt(a0 b0 c), a b <= c, as geometric means are below arithmetic ones. a0
    and b0 are such that `point` stays within if it is. Empty cells make the total of all draws
    depend on the weights; it is taken as linear, and only then may a cap fail to hold.
    """
    space = self.space
    draws = space.base * point[space.member].prod(axis=1)
    cells = np.flatnonzero((space.base > 0) & (self.caps < 1))
    limit = self.caps[cells] * draws.sum()
    first, second = space.member[cells].T
    b = np.maximum(point[second], limit)
    a = np.maximum(point[first], limit / (4 * b))
    slopes = sum(
      np.bincount(space.member[:, i], space.base * point[space.member[:, 1 - i]], space.dim)
      for i in range(2)
    )
    rows = np.outer(-np.sqrt(limit * a * b) / draws.sum(), slopes)
    rows[np.arange(len(cells)), first] += b
    rows[np.arange(len(cells)), second] += a
    return self.polytope.and_below(rows, [space.cell_names[cell] for cell in cells])

  @functools.cached_property
  def anchor(self) -> Float[np.ndarray, " d"]:
    """A mixture well under the caps of a product; ValueError if none was found."""
    space = self.space
    supply = sum(
      np.bincount(column, self.caps * space.base, space.dim) for column in space.member.T
    )
    random = generator(0).exponential(size=(6, space.dim))
    starts = np.concatenate([[space.uniform(), supply], random])
    starts = starts / (starts @ self.polytope.blocks.T @ self.polytope.blocks)
    for point in self.polytope.nearest(starts):
      best, least = point, np.inf
      for _ in range(20):
        if (over := self.overdrawn(point[None])[0]) == np.inf:
          break
        best, least = (point, over) if over < least else (best, least)
        point, _ = self.under_tangents(point).least_missed(hard=len(self.polytope.sums))
      if least <= ROUNDING:
        return best
    raise ValueError(
      f"found no mixture on {space.name} under the caps of all cells: lower the budget, raise the "
      "repetition, or search the joint space, where a cell's share needs not be a product"
    )
