"""Which mixtures of a space may be proposed, and the nearest one that may."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float
from scipy import optimize

from mixjax.search.polytope import ROUNDING, Polytope
from mixjax.search.product_caps import ProductCaps
from mixjax.search.space import Space

# How far a mixture that counts as within may miss a bound, a sum or a cap.
TOLERANCE = 1e-9

# How many tangents stand for a parabola where it is chosen which weights to keep.
TANGENTS = 5


@dataclasses.dataclass(frozen=True)
class Group:
  """low <= the sum of some weights <= high.

  `members` names the weights, or maps them to coefficients (tokens a sample, say).
  """

  name: str
  members: Sequence[str] | Mapping[str, float]
  low: float = -np.inf
  high: float = np.inf


def supply_caps(
  space: Space, sizes: Mapping[str, int], budget: float, repetition: float
) -> dict[str, float]:
  """The largest share of each cell, `{cell: share}`: share x budget <= repetition x size.

  `sizes` are rows by cell, `budget` the samples of the run that the mixture is for (the target's,
  not the proxy's), `repetition` how often a row may be seen (4 in Olmix, arXiv 2602.12237).
  ValueError if a size is missing, or a cell has no rows but shares its weight with others.
  """
  if not (budget > 0 and repetition > 0):
    raise ValueError(f"budget and repetition are positive, not {budget} and {repetition}")
  filled = [cell for cell, base in zip(space.cell_names, space.base, strict=True) if base]
  if missing := [cell for cell in filled if cell not in sizes]:
    raise ValueError(f"no size for {missing}: give the rows of every cell of {space.name}")
  bare = [cell for cell in filled if not sizes[cell] > 0]
  if bare and len(space.cell_names) > space.dim:
    raise ValueError(f"{bare} have no rows: name them as `empty` when making the space")
  return {cell: min(repetition * sizes[cell] / budget, 1.0) for cell in filled}


@dataclasses.dataclass(frozen=True, eq=False)
class Constraints:
  """What a mixture of `space` must keep to, besides each axis summing to 1.

  `lower`, `upper`: bounds on the weights, by name or as `float[d]`; the space's own hold as well.
  `groups`: bounds on sums of weights. `at_most`: how many weights of an axis may be positive.
  `caps`: the largest share of each cell, by name or as `float[cells]` (see `supply_caps`). What is
  given by name is an array afterwards.

  Caps on one axis are linear in its weights: upper bounds, or sums where empty cells make shares
  depend on all weights. On a product they bound products of weights. No bounds on the weights say
  the same: those that are safe forbid mixtures that are fine, uniform among them. So they stay what
  they are: `within` is exact, `project` is not quite.

  ValueError names the bounds in conflict if they leave no mixture. For caps on a product that
  question is not convex; the error is then raised if a series of linear programs finds none from
  any of eight starts.
  """

  space: Space
  lower: Mapping[str, float] | Float[np.ndarray, " d"] | None = None
  upper: Mapping[str, float] | Float[np.ndarray, " d"] | None = None
  groups: Sequence[Group] = ()
  at_most: int | None = None
  caps: Mapping[str, float] | Float[np.ndarray, " cells"] | None = None

  def __post_init__(self):
    names = self.space.names
    lower = np.maximum(_vector("lower bound", self.lower, names, 0.0), self.space.lower)
    values = {"lower": lower, "upper": _vector("upper bound", self.upper, names, 1.0)}
    if self.caps is not None:
      values["caps"] = _vector("cap", self.caps, self.space.cell_names, 1.0)
    for field, value in values.items():
      value.setflags(write=False)
      object.__setattr__(self, field, value)
    object.__setattr__(self, "groups", tuple(self.groups))
    self._check()

  @functools.cached_property
  def polytope(self) -> Polytope:
    """All that is linear here: everything but `at_most` and the caps of a product."""
    names = self.space.names
    for group in self.groups:
      if not group.low <= group.high or not len(group.members):
        raise ValueError(f"{group} allows nothing: it needs members, and low <= high")
    rows = [
      _vector(
        f"coefficient of group {group.name!r}",
        group.members if isinstance(group.members, Mapping) else dict.fromkeys(group.members, 1.0),
        names,
        0.0,
        (-np.inf, np.inf),
      )
      for group in self.groups
    ]
    found = Polytope(
      np.eye(len(self.space.axes))[self.space.block].T,
      self.lower,
      self.upper,
      np.reshape(rows, (len(rows), len(names))),
      np.array([group.low for group in self.groups], np.float64),
      np.array([group.high for group in self.groups], np.float64),
      tuple(f"group {group.name!r}" for group in self.groups),
    )
    one_axis = len(self.space.axes) == 1
    return self._supplied(found) if one_axis and self.caps is not None else found

  @functools.cached_property
  def product(self) -> ProductCaps | None:
    """The caps, where they bound products of weights."""
    if self.caps is None or len(self.space.axes) == 1:
      return None
    return ProductCaps(self.space, self.caps, self.polytope)

  def within(
    self, points: Float[np.ndarray, "n d"], tolerance: float = TOLERANCE
  ) -> Bool[np.ndarray, " n"]:
    """Which of `points` keep to everything: no bound, sum or cap is missed by over `tolerance`.

    For `at_most`, weights up to `tolerance` count as zero.
    """
    points = np.asarray(points, np.float64)
    inside = (self.polytope.missed(points) <= tolerance) & (self.overdrawn(points) <= tolerance)
    if self.at_most is not None:
      inside &= ((points > tolerance) @ self.polytope.blocks.T <= self.at_most).all(axis=1)
    return inside

  def overdrawn(self, points: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    """By how much the share of a cell exceeds its cap at worst, where only a product can tell."""
    return np.zeros(len(points)) if self.product is None else self.product.overdrawn(points)

  def project(self, points) -> Float[np.ndarray, "n d"]:
    """The mixtures within that are nearest to any finite `points: float[n, d]` (Euclidean).

    Exact, to rounding, for bounds and sums. Two cases are not:

    * `at_most` keeps the largest weights of what the projection would be without, and projects on
      these. That is the nearest if the weights of an axis have one upper bound, caps included, and
      there are no groups (on the plain simplex: Kyrillidis et al., 2013). With groups, or where the
      largest cannot sum to 1, a mixed-integer program chooses: near, but perhaps not nearest.
    * Where the nearest point breaks the caps of a product, it is pulled towards a mixture within
      until they hold; then projected exactly on half-spaces below the caps that touch them near it,
      again and again, which never leads out nor away. The result is within, and nearest to what is
      around it; as the caps are not convex there may be a nearer one elsewhere.
    """
    points = np.array(points, np.float64)
    if points.ndim != 2 or points.shape[1] != self.space.dim or not np.isfinite(points).all():
      raise ValueError(f"points to project are finite and of shape (n, {self.space.dim})")
    found = self.polytope.nearest(points)
    if self.at_most is not None:
      found = self.polytope.nearest(points, self.polytope.upper * self._support(points, found))
    for row in np.flatnonzero(self.overdrawn(found) > ROUNDING):
      found[row] = self.product.nearest(points[row], found[row])
    if (missed := ~self.within(found)).any():
      raise ValueError(
        f"point {int(np.argmax(missed))} has no projection to {TOLERANCE}: the constraints leave "
        "too little room for floats; loosen them, or bring the point nearer to the simplex"
      )
    return found

  def _support(self, points: np.ndarray, dense: np.ndarray) -> np.ndarray:
    """The weights to keep, bool[n, d], given the projection without `at_most`."""
    polytope = self.polytope
    keep = np.zeros(points.shape, bool)
    for block in polytope.blocks > 0:
      first = np.where(polytope.lower[block] > 0, np.inf, dense[:, block])
      order = np.argsort(-first, axis=1, kind="stable")
      keep[:, block] = np.argsort(order, axis=1) < self.at_most
    # A projection that is sparse as it is cannot be bettered.
    positive = dense > ROUNDING
    sparse = (positive @ polytope.blocks.T <= self.at_most).all(axis=1)
    keep[sparse] = positive[sparse]
    reach = ((keep * polytope.upper) @ polytope.blocks.T).min(axis=1)
    for row in np.flatnonzero(~sparse & ((reach < 1 - ROUNDING) | (len(polytope.sums) > 0))):
      keep[row] = self._best_support(points[row])
    return keep

  def _best_support(self, point: np.ndarray) -> np.ndarray | None:
    """The weights of the nearest mixture by a mixed-integer program; None if none is within.

    Its variables are weights, which of them are kept, and their squares, each as large as the
    tangents of a parabola say that starts at zero only if the weight is kept.
    """
    polytope, dim = self.polytope, self.space.dim
    touch = np.linspace(polytope.lower, polytope.upper, TANGENTS)
    eye, none = np.eye(dim), np.zeros((dim, dim))
    parts, sums = (np.pad(m, ((0, 0), (0, 2 * dim))) for m in (polytope.blocks, polytope.sums))
    rows = [
      (parts, 1, 1),
      (sums, polytope.low, polytope.high),
      (np.roll(parts, dim, axis=1), 0, self.at_most),
      (np.hstack([eye, -np.diag(polytope.upper), none]), -np.inf, 0),
      *((np.hstack([np.diag(2 * t), -np.diag(t**2), -eye]), -np.inf, 0) for t in touch),
    ]
    found = optimize.milp(
      np.concatenate([-2 * point, np.zeros(dim), np.ones(dim)]),
      integrality=np.repeat([0, 1, 0], dim),
      bounds=optimize.Bounds(
        np.concatenate([polytope.lower, polytope.lower > 0, np.zeros(dim)]),
        np.concatenate([polytope.upper, polytope.upper > 0, np.ones(dim)]),
      ),
      constraints=[optimize.LinearConstraint(*row) for row in rows],
      options={"mip_rel_gap": 0.01},
    )
    return None if found.x is None else found.x[dim : 2 * dim] > 0.5

  def _supplied(self, polytope: Polytope) -> "Polytope":
    """`polytope` and the caps on one axis, where a cell draws its weight out of a linear total."""
    space, place = self.space, self.space.member[:, 0]
    filled = space.base > 0
    total = np.bincount(place, space.base, space.dim)
    need = np.zeros(space.dim)
    with np.errstate(divide="ignore"):
      np.maximum.at(need, place[filled], space.base[filled] / self.caps[filled])
    # A weight times its need is at most the total: a bound, unless the total depends on weights.
    if np.ptp(total) == 0:
      return dataclasses.replace(polytope, upper=np.minimum(polytope.upper, total / need))
    upper = np.where(need == np.inf, 0.0, polytope.upper)
    bound = np.flatnonzero((need > total) & (need < np.inf))
    return dataclasses.replace(polytope, upper=upper).and_below(
      np.diag(need)[bound] - total, [f"the supply of {space.names[j]!r}" for j in bound]
    )

  def _check(self):
    space, polytope = self.space, self.polytope
    if self.caps is not None and (total := self.caps[space.base > 0].sum()) < 1 - ROUNDING:
      raise ValueError(
        f"the caps of all cells sum to {total:.6g}, below 1: the data cannot supply the run; "
        "lower the budget or raise the repetition"
      )
    for j in np.flatnonzero(polytope.lower > polytope.upper + ROUNDING):
      source = "supply" if polytope.upper[j] < self.upper[j] else "upper bound"
      raise ValueError(
        f"{space.names[j]!r} has lower bound {polytope.lower[j]:.6g}, "
        f"above its {source} {polytope.upper[j]:.6g}"
      )
    for axis, block in zip(space.axes, polytope.blocks, strict=True):
      if (total := block @ polytope.lower) > 1 + ROUNDING:
        raise ValueError(f"lower bounds of the {axis.name} axis sum to {total:.6g}, above 1")
      if (total := block @ polytope.upper) < 1 - ROUNDING:
        source = "upper bounds" if self.caps is None else "upper bounds and caps"
        raise ValueError(f"{source} of the {axis.name} axis sum to {total:.6g}, below 1")
    if polytope.least_missed()[1] > ROUNDING:
      raise ValueError(polytope.conflict())
    if self.product is not None:
      if self.at_most is not None:
        raise ValueError("at_most and caps go together on one axis only: search the joint space")
      for cell in np.flatnonzero((self.caps == 0) & (space.base > 0)):
        raise ValueError(
          f"cell {space.cell_names[cell]!r} has cap 0: name it as `empty` when making the space"
        )
      _ = self.product.anchor
    if self.at_most is not None and self._best_support(space.uniform()) is None:
      raise ValueError(
        f"no {self.at_most} weights an axis can sum to 1 within the bounds and groups, "
        f"{int((polytope.lower > 0).sum())} of which have a lower bound: raise at_most"
      )


def _vector(what, values, names, default, limits=(0.0, 1.0)) -> np.ndarray:
  """`values` by name, in the order of `names`; ValueError names what is unknown or out of range."""
  if isinstance(values, Mapping):
    if unknown := [name for name in values if name not in names]:
      raise ValueError(f"{what} for {unknown}, which are none of {list(names)}")
    values = [values.get(name, default) for name in names]
  found = np.full(len(names), default) if values is None else np.array(values, np.float64)
  if found.shape != (len(names),):
    raise ValueError(f"a {what} each for {len(names)} names, not shape {found.shape}")
  if (bad := ~((found >= limits[0]) & (found <= limits[1]))).any():
    j = int(np.argmax(bad))
    raise ValueError(f"{what} of {names[j]!r} is {found[j]}: it lies in {list(limits)}")
  return found
