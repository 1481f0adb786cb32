"""What bounds and group sums cut out of a space: which point is nearest, what is possible."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy import optimize

# What rounding alone does to a sum of weights.
ROUNDING = 1e-12


@dataclasses.dataclass(frozen=True, eq=False)
class Polytope:
  """The points where blocks @ x = 1, lower <= x <= upper and low <= sums @ x <= high."""

  blocks: Float[np.ndarray, "axes d"]
  lower: Float[np.ndarray, " d"]
  upper: Float[np.ndarray, " d"]
  sums: Float[np.ndarray, "g d"]
  low: Float[np.ndarray, " g"]
  high: Float[np.ndarray, " g"]
  labels: tuple[str, ...]

  @property
  def unit(self) -> Float[np.ndarray, " g"]:
    """The largest coefficient of each sum: what it may be missed by is in units of a weight."""
    return np.abs(self.sums).max(axis=1, initial=np.finfo(float).tiny)

  def missed(self, points: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    """By how much each point misses the worst of all bounds and sums; 0 or less inside."""
    values = points @ self.sums.T
    gaps = [
      np.abs(points @ self.blocks.T - 1),
      self.lower - points,
      points - self.upper,
      (self.low - values) / self.unit,
      (values - self.high) / self.unit,
    ]
    return np.concatenate(gaps, axis=1).max(axis=1)

  def nearest(self, points: Float[np.ndarray, "n d"], upper=None) -> Float[np.ndarray, "n d"]:
    """The Euclidean projections; `upper: float[n, d]` gives each point bounds of its own."""
    upper = np.broadcast_to(self.upper if upper is None else upper, points.shape)
    found = np.empty_like(points)
    for block in self.blocks > 0:
      found[:, block] = _clip_to_one(points[:, block], self.lower[block], upper[:, block])
    if len(self.sums):
      for row in np.flatnonzero(self.missed(found) > ROUNDING):
        found[row] = self._least_distance(points[row], upper[row])
    return found

  def _least_distance(self, point: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """One projection as a non-negative least squares (Lawson and Hanson, 1974, chapter 23).

    That finds which bounds and sums bind. Solved as equations they give the point to rounding.
    """
    free = upper > self.lower
    fixed = np.where(free, 0.0, self.lower)
    blocks = self.blocks[:, free]
    need = (1 - self.blocks @ fixed)[blocks.any(axis=1)]
    blocks = blocks[blocks.any(axis=1)]
    rows = self.sums[:, free] / self.unit[:, None]
    low, high = (np.array([self.low, self.high]) - self.sums @ fixed) / self.unit
    lower, upper = self.lower[free], upper[free]

    size = blocks.sum(axis=1)
    start = point[free] + ((need - blocks @ point[free]) / size) @ blocks
    eye = np.eye(len(start))
    walls = np.concatenate([eye, -eye, rows, -rows])
    offsets = np.concatenate([lower, -upper, low, -high])
    along = walls - (walls @ blocks.T / size) @ blocks
    used = np.isfinite(offsets) & (np.abs(along).max(axis=1) > ROUNDING)
    if not used.any():  # nothing can move, and `nnls` crashes without columns
      fixed[free] = np.clip(start, lower, upper)
      return fixed
    gaps = offsets - walls @ start
    far = max(1.0, gaps[used].max())
    # A hair's breadth of room: sums that hold only with equality are not to fail by rounding.
    room = np.repeat([0.0, far * ROUNDING / 10], [2 * len(eye), 2 * len(rows)])
    system = np.column_stack([along, (gaps - room) / far])[used].T
    target = np.append(np.zeros(len(start)), 1.0)
    push = np.zeros(len(walls))
    push[used], _ = optimize.nnls(system, target, maxiter=30 * len(walls))
    residual = target - system @ push[used]
    rough = np.clip(start - far * residual[:-1] / residual[-1], lower, upper)

    at_lower, at_upper, at_low, at_high = np.split(
      push > 0, np.cumsum([len(eye)] * 2 + [len(rows)])
    )
    exact = np.select([at_lower, at_upper], [lower, upper], start)
    moving = ~(at_lower | at_upper)
    binding = np.concatenate([blocks, rows[at_low], rows[at_high]])
    gap = np.concatenate([need, low[at_low], high[at_high]]) - binding @ exact
    exact[moving] += np.linalg.lstsq(binding[:, moving], gap)[0]
    # Where constraints bind that need not (a degenerate corner), the rough answer may be the one.
    best = exact if (walls @ exact - offsets).min() >= -far * ROUNDING else rough
    fixed[free] = np.clip(best, lower, upper)
    return fixed

  def extreme(self, direction: Float[np.ndarray, " d"]) -> Float[np.ndarray, " d"]:
    """The point furthest in a direction."""
    return self._program(np.append(-direction, 0.0), elastic=np.zeros(len(self.sums)))[0]

  def least_missed(self, hard: int = 0) -> tuple[Float[np.ndarray, " d"], float]:
    """The point that misses the sums after the first `hard` by least; negative if inside."""
    elastic = np.where(np.arange(len(self.sums)) < hard, 0.0, self.unit)
    return self._program(np.append(np.zeros(len(self.lower)), 1.0), elastic)

  def _program(self, cost: np.ndarray, elastic: np.ndarray) -> tuple[np.ndarray, float]:
    """The cheapest point and slack: each sum may be missed by its `elastic` times the slack."""
    rows = np.concatenate([self.sums, -self.sums])
    limits = np.concatenate([self.high, -self.low])
    finite = np.isfinite(limits)
    found = optimize.linprog(
      cost,
      np.column_stack([rows, -np.tile(elastic, 2)])[finite],
      limits[finite],
      np.column_stack([self.blocks, np.zeros(len(self.blocks))]),
      np.ones(len(self.blocks)),
      [*zip(self.lower, np.maximum(self.lower, self.upper), strict=True), (-1, None)],
      options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    if found.x is None:
      raise ValueError(f"no mixture is within the bounds and sums: {found.message}")
    return np.clip(found.x[:-1], self.lower, self.upper), float(found.x[-1])

  def conflict(self) -> str:
    """Which sums cannot hold together: a set of them that has none to spare."""
    culprits = np.arange(len(self.sums))
    for row in culprits.tolist():
      if self._only(fewer := culprits[culprits != row]).least_missed()[1] > ROUNDING:
        culprits = fewer
    bare = self._only([])
    wanted = []
    for row in culprits:
      reach = [self.sums[row] @ bare.extreme(sign * self.sums[row]) for sign in (-1, 1)]
      wanted.append(
        f"{self.labels[row]} is to lie in [{self.low[row]:.6g}, {self.high[row]:.6g}] and could, "
        f"alone, in [{reach[0]:.6g}, {reach[1]:.6g}]"
      )
    return "within the bounds these cannot hold: " + "; ".join(wanted) + ". Loosen one"

  def and_below(self, rows: Float[np.ndarray, "k d"], labels: Sequence[str]) -> "Polytope":
    """The part where also rows @ x <= 0."""
    return dataclasses.replace(
      self,
      sums=np.concatenate([self.sums, rows]),
      low=np.concatenate([self.low, np.full(len(rows), -np.inf)]),
      high=np.concatenate([self.high, np.zeros(len(rows))]),
      labels=(*self.labels, *labels),
    )

  def _only(self, rows) -> "Polytope":
    rows = np.asarray(rows, int)
    fields = {name: getattr(self, name)[rows] for name in ("sums", "low", "high")}
    return dataclasses.replace(self, **fields, labels=tuple(self.labels[row] for row in rows))


def _clip_to_one(
  points: Float[np.ndarray, "n d"], lower: Float[np.ndarray, " d"], upper: Float[np.ndarray, "n d"]
) -> Float[np.ndarray, "n d"]:
  """The nearest rows within bounds that sum to 1: clip(row - shift), with the shift found exactly.

  The sum falls as the shift grows, piecewise linearly: a weight leaves its upper bound where the
  shift passes row - upper, and stays at its lower bound from row - lower on.
  """
  points = points - points.max(axis=1, keepdims=True)
  breaks = np.sort(np.concatenate([points - upper, points - lower], axis=1), axis=1)
  # The last break where the sum is still 1 or more, by halving; at the first it is largest.
  first = np.zeros((len(points), 1), int)
  last = np.full_like(first, breaks.shape[1] - 1)
  for _ in range(breaks.shape[1].bit_length()):
    middle = (first + last + 1) // 2
    shift = np.take_along_axis(breaks, middle, axis=1)
    enough = np.clip(points - shift, lower, upper).sum(axis=1, keepdims=True) >= 1
    first, last = np.where(enough, middle, first), np.where(enough, last, middle - 1)
  shift = np.take_along_axis(breaks, first, axis=1)
  high = points - upper > shift
  free = (points - lower > shift) & ~high
  others = np.where(high, upper, np.where(free, 0, lower)).sum(axis=1, keepdims=True)
  spare = np.where(free, points, 0).sum(axis=1, keepdims=True) + others - 1
  shift = np.where(
    free.any(axis=1, keepdims=True), spare / free.sum(axis=1, keepdims=True).clip(1), shift
  )
  return np.clip(points - shift, lower, upper)
