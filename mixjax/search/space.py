"""The simplices a search moves on, and what a point on them means as a mixture over cells."""

import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Float, Int

# How far the weights of one axis may miss a sum of 1 (decimal rounding in a file).
SUM_TOLERANCE = 1e-6

# Dirichlet concentrations of the candidate pool: from nearly one-hot to nearly uniform.
ALPHAS = (0.1, 0.3, 1.0, 3.0, 10.0)

Key = int | Sequence[int] | jax.Array


def generator(key: Key) -> np.random.Generator:
  """The random numbers of `key`: an int, several ints, or a JAX key."""
  if isinstance(key, jax.Array) and jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
    key = jax.random.key_data(key)
  return np.random.default_rng(np.asarray(key).tolist())


@dataclasses.dataclass(frozen=True)
class Axis:
  """One simplex: named coordinates whose weights sum to 1."""

  name: str
  coordinates: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Space:
  """Points `float[d]`: the weights of one or more axes side by side (paper, section 3.4).

  A cell's share of the samples is proportional to its base weight times the weight of its
  coordinate on every axis; `member[c, a]` is where among the d that is, for cell c and axis a.
  A base weight of zero marks an empty cell: it gets nothing and the others are renormalised, so the
  uniform point is the same mixture on every axis, and a coordinate with empty cells gets less than
  its weight. `lower` bounds what is proposed, not what is observed.
  """

  name: str
  axes: tuple[Axis, ...]
  cell_names: tuple[str, ...]
  member: Int[np.ndarray, "cells axes"]
  base: Float[np.ndarray, " cells"]
  lower: Float[np.ndarray, " d"]
  pool: Float[np.ndarray, "m d"] | None = None

  @classmethod
  def task_axis(cls, concepts: Sequence[str], tasks: Sequence[str], **options) -> "Space":
    """The task portfolio: one weight a task, concepts alike. Options as for `product`."""
    return _over_cells("task", concepts, tasks, ("task",), **options)

  @classmethod
  def concept_axis(cls, concepts: Sequence[str], tasks: Sequence[str], **options) -> "Space":
    """The concept portfolio: one weight a concept, tasks alike. Options as for `product`."""
    return _over_cells("concept", concepts, tasks, ("concept",), **options)

  @classmethod
  def product(cls, concepts: Sequence[str], tasks: Sequence[str], **options) -> "Space":
    """Both portfolios at once: K concept weights, then the task weights; a cell is their product.

    Options: `empty`, the cells without rows; `floor`, the least weight as a share of the uniform
    one; `pool`, a finite set of candidates `float[m, d]`.
    """
    return _over_cells("product", concepts, tasks, ("concept", "task"), **options)

  @classmethod
  def joint(
    cls, concepts: Sequence[str], tasks: Sequence[str], *, empty: Collection[str] = (), **options
  ) -> "Space":
    """Every cell with rows has a weight of its own, called <concept>/<task>.

    The `empty` ones only stand in its mixtures, at 0. Other options as for `product`.
    """
    cells = [f"{concept}/{task}" for concept in concepts for task in tasks]
    filled = [cell for cell in cells if cell not in empty]
    place = {cell: i for i, cell in enumerate(filled)}
    return dataclasses.replace(
      cls.simplex("joint", filled, **options),
      cell_names=tuple(cells),
      # A base of 0 takes from an empty cell whatever coordinate it is put on.
      member=np.array([[place.get(cell, 0)] for cell in cells]),
      base=np.array([cell in place for cell in cells], np.float64),
    )

  @classmethod
  def simplex(cls, name: str, cells: Sequence[str], *, floor: float = 0.0, pool=None) -> "Space":
    """One free weight a cell: the joint space, or the domains of a recorded table."""
    member = np.arange(len(cells))[:, None]
    return _build(name, (Axis(name, tuple(cells)),), tuple(cells), member, (), floor, pool)

  @property
  def names(self) -> tuple[str, ...]:
    """The d coordinates, in order."""
    return tuple(name for axis in self.axes for name in axis.coordinates)

  @property
  def dim(self) -> int:
    return sum(len(axis.coordinates) for axis in self.axes)

  @property
  def block(self) -> Int[np.ndarray, " d"]:
    """The axis each coordinate belongs to."""
    return np.repeat(np.arange(len(self.axes)), [len(axis.coordinates) for axis in self.axes])

  def uniform(self) -> Float[np.ndarray, " d"]:
    return 1.0 / np.bincount(self.block)[self.block]

  def check(self, points) -> Float[np.ndarray, "n d"]:
    """`points` in float64, each axis summing to 1. ValueError names the row and the weight."""
    points = np.array(points, np.float64)
    if points.ndim != 2 or points.shape[1] != self.dim:
      raise ValueError(f"mixtures on {self.name} have shape (n, {self.dim}), not {points.shape}")
    bad = ~np.isfinite(points) | (points < 0)
    if bad.any():
      row, column = np.argwhere(bad)[0]
      raise ValueError(
        f"mixture {row}: weight of {self.names[column]!r} is {points[row, column]}; "
        "weights are finite and not negative"
      )
    sums = _sums(points, self.block)
    if (wrong := np.abs(sums - 1).max(axis=1, initial=0) > SUM_TOLERANCE).any():
      row = int(np.argmax(wrong))
      axis = int(np.argmax(np.abs(sums[row] - 1)))
      raise ValueError(
        f"mixture {row}: its {self.axes[axis].name} weights sum to "
        f"{sums[row, axis]}, not to 1; divide them by their sum"
      )
    return points / sums[:, self.block]

  def cells(self, point: Float[np.ndarray, " d"]) -> dict[str, float]:
    """The mixture `{cell: share of samples}` of `point`; ValueError if all its cells are empty."""
    (point,) = self.check(np.asarray(point)[None])
    weights = self.base * point[self.member].prod(axis=1)
    if not weights.sum() > 0:
      raise ValueError(f"every cell of {self.as_dict(point)} is empty: no row could be drawn")
    return dict(zip(self.cell_names, (weights / weights.sum()).tolist(), strict=True))

  def as_dict(self, point: Float[np.ndarray, " d"]) -> dict[str, float]:
    return dict(zip(self.names, np.asarray(point, np.float64).tolist(), strict=True))

  def from_dict(self, weights: Mapping[str, float]) -> Float[np.ndarray, " d"]:
    """The point with these named weights; ValueError if a name is missing or unknown."""
    if missing := [name for name in self.names if name not in weights]:
      raise ValueError(f"no weight for {missing} of the {self.name} axis")
    if unknown := [name for name in weights if name not in self.names]:
      raise ValueError(f"{unknown} are no coordinates of the {self.name} axis {list(self.names)}")
    return self.check([[weights[name] for name in self.names]])[0]

  def raise_to_floor(self, points, lower=None) -> Float[np.ndarray, "n d"]:
    """Weights below `lower` raised to it; what the others have above it is scaled down to pay.

    `lower: float[d]` defaults to the space's own bounds. Mixtures within bounds stay as they are.
    """
    lower = self.lower if lower is None else np.asarray(lower, np.float64)
    excess = np.maximum(self.check(points) - lower, 0)
    free = 1 - _sums(lower[None], self.block)
    # An axis without slack (floor = 1) has no excess to share: the floor is the mixture.
    scale = free / np.maximum(_sums(excess, self.block), np.finfo(float).tiny)
    return lower + excess * scale[:, self.block]

  def with_pool(self, pool) -> "Space":
    """This space with its candidates, each once.

    ValueError if there is none, or if one lies off the simplex or below a bound.
    """
    pool = self.check(pool)
    if not len(pool):
      raise ValueError(f"the pool of the {self.name} axis has no candidate")
    pool = pool[np.sort(np.unique(pool, axis=0, return_index=True)[1])]
    if (low := pool < self.lower - 1e-9).any():
      row, column = np.argwhere(low)[0]
      raise ValueError(
        f"candidate {row}: weight of {self.names[column]!r} is "
        f"{pool[row, column]:.3g}, under its lower bound {self.lower[column]:.3g}"
      )
    pool.setflags(write=False)
    return dataclasses.replace(self, pool=pool)


def candidates(
  space: Space, count: int, key: Key, alphas: Sequence[float] = ALPHAS
) -> Float[np.ndarray, "count d"]:
  """The paper's candidate pool (Algorithm 1): uniform, a Latin hypercube and Dirichlet draws.

  Row 0 is the uniform mixture. Half of the rest is a Latin hypercube put on each simplex by
  exponential spacings (-log u, normalised: even strata of u become even coverage of the simplex);
  the other half is split between Dirichlet(alpha), small alpha giving specialised mixtures and
  large alpha near-uniform ones. On several axes the alphas are paired at random, so that a
  specialist on one meets a generalist on the other. All are then raised to the lower bounds.
  """
  if count < 1:
    raise ValueError(f"a pool needs at least one candidate, not {count}")
  rng = generator(key)
  stratified = count // 2
  strata = np.stack([rng.permutation(stratified) for _ in range(space.dim)], axis=1)
  uniforms = (strata + rng.uniform(size=strata.shape)) / max(stratified, 1)
  spacings = -np.log1p(-uniforms)
  drawn = count - 1 - stratified
  dirichlet = np.concatenate(
    [_dirichlet(rng, drawn, len(axis.coordinates), alphas) for axis in space.axes], axis=1
  )
  hypercube = spacings / _sums(spacings, space.block)[:, space.block]
  return space.raise_to_floor(np.concatenate([space.uniform()[None], hypercube, dirichlet]))


def _dirichlet(rng, count: int, size: int, alphas: Sequence[float]) -> np.ndarray:
  chosen = rng.permutation(np.resize(np.asarray(alphas, np.float64), count))
  draws = [rng.dirichlet(np.full(size, alpha)) for alpha in chosen]
  return np.reshape(draws, (count, size))


def _sums(points: np.ndarray, block: np.ndarray) -> np.ndarray:
  """Row sums within each block: `float[n, blocks]`."""
  return np.stack([points[:, block == b].sum(axis=1) for b in range(block.max() + 1)], axis=1)


def _over_cells(name, concepts, tasks, axis_names, *, empty=(), floor=0.0, pool=None) -> Space:
  for word in (*concepts, *tasks):
    if not word or "/" in word:
      raise ValueError(f"{word!r} cannot name a concept or task: cells are called <concept>/<task>")
  cells = tuple(f"{concept}/{task}" for concept in concepts for task in tasks)
  places = np.indices((len(concepts), len(tasks))).reshape(2, -1)
  axes = tuple(Axis(a, tuple(concepts if a == "concept" else tasks)) for a in axis_names)
  offsets = np.cumsum([0] + [len(axis.coordinates) for axis in axes[:-1]])
  place = dict(zip(("concept", "task"), places, strict=True))
  columns = [place[axis.name] + offset for axis, offset in zip(axes, offsets, strict=True)]
  member = np.stack(columns, axis=1)
  return _build(name, axes, cells, member, empty, floor, pool)


def _build(name, axes, cells, member, empty: Collection[str], floor, pool) -> Space:
  names = [coordinate for axis in axes for coordinate in axis.coordinates]
  if not cells:
    raise ValueError(f"the {name} axis has no cells")
  for what, words in (("coordinates", names), ("cells", cells)):
    if twice := sorted(word for word, count in Counter(words).items() if count > 1):
      raise ValueError(f"{twice} name two {what} of the {name} axis; rename one")
  if unknown := sorted(set(empty) - set(cells)):
    raise ValueError(f"{unknown} are said to be empty but are no cells")
  if not 0 <= floor <= 1:
    raise ValueError(f"floor is a share of the uniform weight, between 0 and 1, not {floor}")
  base = np.array([cell not in set(empty) for cell in cells], np.float64)
  space = Space(name, axes, cells, member, base, np.zeros(len(names)))
  space = dataclasses.replace(space, lower=floor * space.uniform())
  return space if pool is None else space.with_pool(pool)
