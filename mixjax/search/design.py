"""Seeded designs: mixtures to try first, or to choose from, spread over what is allowed."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.linalg
from jaxtyping import Float
from scipy.stats import qmc

from mixjax.search.constraints import TOLERANCE, Constraints
from mixjax.search.polytope import ROUNDING, Polytope
from mixjax.search.space import ALPHAS, Key, Space, generator

# RegMix's concentrations (arXiv 2407.01492): from nearly one-hot to a little around the centre.
STRENGTHS = tuple(np.geomspace(0.1, 5, 15))

# Rejection is exact, but below this share of hits it costs more than a random walk.
LEAST_HITS = 0.01

# Of a walk: chains side by side, and how many times d ln d steps each takes before its first sample
# and between samples. On the plain simplex d ln d steps mix (Smith, 2014, "A Gibbs sampler on the
# n-simplex"); with bounds there is no such theorem, hence the margins.
CHAINS = 256
BURN_IN = 20
THINNING = 2

# Caps on a product make corners that take a walk longer: so much longer on ten by five cells.
SLOWER = 5


def uniform(
  space: Space, count: int, key: Key, constraints: Constraints | None = None
) -> Float[np.ndarray, "count d"]:
  """Mixtures drawn evenly from all that are within (a flat Dirichlet if that is the simplex).

  Independent and exact while at least one draw in a hundred hits, from a simplex around it: the one
  that the lower bounds leave or the one that the upper bounds leave, whichever is smaller. Else by
  hit-and-run in 256 chains, with 20 d ln d steps of burn-in and 2 d ln d from one sample of a chain
  to the next, five times as many for caps on a product. Where those leave several pieces, the
  chains stay in one; where they leave no room, on one mixture.

  With `at_most`, evenly from all mixtures with exactly that many weights at liberty (fewer only
  where fewer may be positive). If there hits are too rare, misses are projected: no longer even.
  """
  constraints = _of(space, constraints, count)
  rng = generator(key)
  batch = max(count, 4096)
  hits = np.zeros((0, space.dim))
  while len(hits) < count:
    draws = _from_simplex(constraints, _exponentials(constraints, batch, rng))
    new = draws[constraints.within(draws)]
    if not len(hits) and len(new) < LEAST_HITS * batch:
      if constraints.at_most is not None:
        return _fit(constraints, draws[:count])
      return _fit(constraints, _walk(constraints, count, rng))
    hits = np.concatenate([hits, new])
  return _fit(constraints, hits[:count])


def latin_hypercube(
  space: Space, count: int, key: Key, constraints: Constraints | None = None
) -> Float[np.ndarray, "count d"]:
  """A Latin hypercube, -log(1 - u), each axis divided by its sum; misses are projected.

  Each row is an even draw from the simplex, and all weights are treated alike; the strata keep
  the rows apart. Under constraints rows come from the smaller simplex around (see `uniform`).
  """
  constraints = _of(space, constraints, count)
  strata = qmc.LatinHypercube(space.dim, rng=generator(key)).random(count)
  return _fit(constraints, _from_simplex(constraints, -np.log1p(-strata)))


def sobol(
  space: Space, count: int, key: Key, constraints: Constraints | None = None
) -> Float[np.ndarray, "count d"]:
  """The first points of a scrambled Sobol sequence, put on each simplex by breaking a stick.

  Weight i takes 1 - (1 - u)^(1 / (n - 1 - i)) of what weights 0 to i - 1 left over. That maps the
  cube of one dimension less one to one, and equal volumes to equal volumes: even coverage stays
  even. Sorted spacings fold the cube n! times over itself, exponential quantiles spend a dimension
  more; both were measured to lose much or some of the gain over random points. Powers of two are
  balanced best. Constraints as for `latin_hypercube`.
  """
  constraints = _of(space, constraints, count)
  sizes = [len(axis.coordinates) for axis in space.axes]
  dims = sum(sizes) - len(sizes)
  power = math.ceil(math.log2(count))
  cube = np.zeros((count, 0))
  if dims:
    cube = qmc.Sobol(dims, rng=generator(key)).random_base2(power)[:count]
  parts = np.split(cube, np.cumsum([size - 1 for size in sizes])[:-1], axis=1)
  return _fit(constraints, _from_simplex(constraints, np.hstack([_break(part) for part in parts])))


def dirichlet(
  space: Space,
  count: int,
  key: Key,
  constraints: Constraints | None = None,
  *,
  centre: Mapping[str, float] | Sequence[float] | None = None,
  temperature: float = 1.0,
  strengths: Sequence[float] = STRENGTHS,
) -> Float[np.ndarray, "count d"]:
  """Dirichlet(s x centre^temperature) draws, on each axis as many for each strength s; projected.

  `centre` (a mixture by name or `float[d]`; default uniform) is raised to `temperature` and divided
  by its sum. RegMix takes the natural shares, 0.5 and 15 strengths from 0.1 to 5. Several axes
  pair their strengths at random, so that a specialist on one meets a generalist on the other.
  Unlike RegMix's, rows sum to 1 and keep to the caps instead of being rejected.
  """
  constraints = _of(space, constraints, count)
  if not (np.asarray(strengths) > 0).all() or not len(strengths):
    raise ValueError(f"strengths are positive, not {strengths}")
  if isinstance(centre, Mapping):
    centre = space.from_dict(centre)
  centre = space.uniform() if centre is None else space.check(np.asarray(centre)[None])[0]
  rng = generator(key)
  draws = np.empty((count, space.dim))
  for block in constraints.polytope.blocks > 0:
    # A weight that the centre leaves out stays out, whatever the temperature.
    around = np.where(centre[block] > 0, centre[block] ** temperature, 0)
    chosen = rng.permutation(np.resize(np.asarray(strengths, np.float64), count))
    alpha = chosen[:, None] * around / around.sum()
    # gamma(a) is gamma(a + 1) u^(1/a): in logs, no concentration is too small for a float.
    exponents = rng.exponential(size=alpha.shape) / np.where(alpha > 0, alpha, 1)
    logs = np.log(rng.standard_gamma(alpha + 1)) - np.where(alpha > 0, exponents, np.inf)
    shares = np.exp(logs - logs.max(axis=1, keepdims=True))
    draws[:, block] = shares / shares.sum(axis=1, keepdims=True)
  return _fit(constraints, draws)


def pool(
  space: Space, count: int, key: Key, constraints: Constraints | None = None
) -> Float[np.ndarray, "m d"]:
  """Candidates within the constraints for `Space.with_pool`, no two alike to six decimals.

  The first is the nearest to uniform; the others are in equal parts from `sobol`,
  `latin_hypercube`, `uniform` and `dirichlet` around uniform, from specialists to generalists as
  in `candidates`. Where projection makes several the same, more even draws replace them; fewer
  than `count` come back only if the constraints leave no more (`at_most` = 1, say).
  """
  constraints = _of(space, constraints, count)
  keys = generator(key).integers(2**63, size=5).tolist()
  strengths = np.array(ALPHAS) * space.dim / len(space.axes)
  designs = [
    design(space, rows, seed, constraints, **options)
    for i, (design, seed, options) in enumerate(
      [
        (sobol, keys[0], {}),
        (latin_hypercube, keys[1], {}),
        (uniform, keys[2], {}),
        (dirichlet, keys[3], {"strengths": strengths}),
      ]
    )
    if (rows := (count + 2 - i) // 4)
  ]
  found = _distinct(np.concatenate([constraints.project(space.uniform()[None]), *designs]))
  for attempt in range(5):
    if (short := count - len(found)) > 0:
      more = uniform(space, 2 * short, (keys[4], attempt), constraints)
      found = _distinct(np.concatenate([found, more]))[:count]
  return found


def _of(space: Space, constraints: Constraints | None, count: int) -> Constraints:
  if count < 1:
    raise ValueError(f"a design needs at least one mixture, not {count}")
  if constraints is None:
    return Constraints(space)
  if constraints.space.axes != space.axes:
    raise ValueError(f"these constraints are for {constraints.space.name}, not for {space.name}")
  return constraints


def _fit(constraints: Constraints, points: np.ndarray) -> np.ndarray:
  """`points`, those that are not within replaced by their projections."""
  misses = ~constraints.within(points, ROUNDING)
  points[misses] = constraints.project(points[misses])
  return points


def _distinct(points: np.ndarray) -> np.ndarray:
  _, first = np.unique(np.round(points, 6), axis=0, return_index=True)
  return points[np.sort(first)]


def _exponentials(constraints: Constraints, count: int, rng: np.random.Generator) -> np.ndarray:
  """Even draws from each simplex, up to scale; with `at_most`, from its faces of that dimension."""
  polytope = constraints.polytope
  draws = rng.exponential(size=(count, len(polytope.lower)))
  if constraints.at_most is not None:
    lots = rng.uniform(size=draws.shape)
    lots = np.where(polytope.lower > 0, -1, np.where(polytope.upper > 0, lots, np.inf))
    for block in polytope.blocks > 0:
      places = np.argsort(np.argsort(lots[:, block], axis=1), axis=1)
      draws[:, block] *= (places < constraints.at_most) & (polytope.upper[block] > 0)
  return draws


def _from_simplex(constraints: Constraints, spacings: np.ndarray) -> np.ndarray:
  """Spacings, divided by their sums, on the smallest simplex known to hold all that is within.

  Either every weight has its lower bound and shares in the rest, or it has its upper bound and
  shares in what is then too much. Both keep volumes, so what is even stays even.
  """
  polytope = constraints.polytope
  blocks, lower, upper = polytope.blocks, polytope.lower, polytope.upper
  shares = spacings / (spacings @ blocks.T @ blocks)
  if constraints.at_most is not None:
    return lower + (1 - blocks @ lower) @ blocks * shares
  # Bounds that the others imply come first: they make both simplices smaller.
  rest, excess = (1 - blocks @ lower) @ blocks, (blocks @ upper - 1) @ blocks
  lower, upper = np.maximum(lower, upper - excess), np.minimum(upper, lower + rest)
  rest, excess = (1 - blocks @ lower) @ blocks, (blocks @ upper - 1) @ blocks
  return np.where(excess < rest, upper - excess * shares, lower + rest * shares)


def _break(cube: np.ndarray) -> np.ndarray:
  left = np.cumprod((1 - cube) ** (1 / np.arange(cube.shape[1], 0, -1)), axis=1)
  return -np.diff(left, axis=1, prepend=1, append=0)


def _walk(constraints: Constraints, count: int, rng: np.random.Generator) -> np.ndarray:
  """Hit-and-run: from where a chain is, to an even draw from a line through there."""
  polytope = constraints.polytope
  walls, limits = _walls(polytope)
  corners = _corners(polytope)
  tight = (limits - corners @ walls.T).max(axis=0) <= TOLERANCE
  lines = _lines(polytope, walls[tight], rng)
  walls, limits = walls[~tight], limits[~tight]
  product = constraints.product
  if product is not None:
    # Not on the caps: in a corner of theirs no line leads on.
    corners = _corners(product.under_tangents(product.anchor))
  start = polytope.nearest(corners.mean(axis=0)[None])
  while constraints.overdrawn(start)[0] > ROUNDING:
    start = (start + product.anchor) / 2
  chains = min(count, CHAINS)
  points = np.repeat(start, chains, axis=0)
  if not len(lines):
    return np.repeat(points[:1], count, axis=0)
  speeds = lines @ walls.T
  sweep = math.ceil(len(lines.T) * math.log(len(lines.T)) * (SLOWER if product else 1))
  samples = []
  for taken in range(math.ceil(count / chains)):
    room = limits - points @ walls.T
    for _ in range((THINNING if taken else BURN_IN) * sweep):
      chosen = rng.integers(len(lines), size=chains)
      line, speed = lines[chosen], speeds[chosen]
      times = np.maximum(room, 0) / np.where(np.abs(speed) > ROUNDING, speed, np.nan)
      latest = np.fmin.reduce(np.where(speed > 0, times, np.nan), axis=1)
      earliest = np.fmax.reduce(np.where(speed < 0, times, np.nan), axis=1)
      step = _draw_within(constraints, points, line, earliest, latest, rng)
      points = points + step * line
      room = room - step * speed
    samples.append(points)
  return np.concatenate(samples)[:count]


def _walls(polytope: Polytope) -> tuple[np.ndarray, np.ndarray]:
  """All bounds and sums as walls @ x <= limits."""
  eye = np.eye(len(polytope.lower))
  walls = np.concatenate([eye, -eye, polytope.sums, -polytope.sums])
  limits = np.concatenate([polytope.upper, -polytope.lower, polytope.high, -polytope.low])
  return walls[np.isfinite(limits)], limits[np.isfinite(limits)]


def _corners(polytope: Polytope) -> np.ndarray:
  """For each wall the corner that is furthest from it."""
  return np.array([polytope.extreme(-wall) for wall in _walls(polytope)[0]])


def _lines(polytope: Polytope, tight: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Directions, float[m, d], that span all in which one can move; `tight` sums cannot change.

  Where that is enough, from one weight to another: it takes wide and narrow bounds alike.
  """
  fixed = np.concatenate([polytope.blocks, tight])
  hull = scipy.linalg.null_space(fixed).T
  first, second = np.triu_indices(fixed.shape[1], 1)
  eye = np.eye(fixed.shape[1])
  swaps = eye[first] - eye[second]
  swaps = swaps[~(fixed @ swaps.T).round(12).any(axis=0)]
  if len(swaps) and np.linalg.matrix_rank(swaps) == len(hull):
    return swaps
  return np.concatenate([swaps, rng.normal(size=(20 * len(hull), len(hull))) @ hull])


def _draw_within(constraints, points, line, earliest, latest, rng) -> np.ndarray:
  """A time on each line, float[n, 1]: even where caps on a product hold (Neal, 2003, figure 5)."""
  step = rng.uniform(earliest, latest)
  left = np.arange(len(points))
  for _ in range(60):
    over = constraints.overdrawn(points[left] + step[left, None] * line[left]) > ROUNDING
    left = left[over]
    if not len(left):
      return step[:, None]
    # Shrinking towards where the chain is leaves the even distribution as it is.
    back = step[left] < 0
    earliest[left[back]], latest[left[~back]] = step[left[back]], step[left[~back]]
    step[left] = rng.uniform(earliest[left], latest[left])
  step[left] = 0
  return step[:, None]
