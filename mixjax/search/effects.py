"""What each weight, and each pair of weights, does to the score by a fitted surrogate.

Unlike the correlations and the regression of `recipes/sensitivity.py`, which describe the runs,
these are averages of the posterior over the pool, with its uncertainty. A coordinate is what the
space moves: a cell on the joint space, a concept or a task elsewhere; the pair of a concept and a
task is then what their common cell does beyond the two. The surrogate's prior is no effect: what
the runs leave open has a mean near 0 and a wide interval. On a made function of 7 weights (60 runs,
16 seeds) the 95% intervals held 91% of the true effects of one weight: they are a little narrow.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from mixjax.search.calibration import pool_or_reference
from mixjax.search.space import Key, Space, generator
from mixjax.search.surrogate import Surrogate

# Quantiles of the pool between which a weight moves.
QUANTILES = (0.1, 0.9)

# Mixtures averaged over. Both kinds of effect then ask for 128 points at a time: one compilation.
BASES, PAIR_BASES = 64, 32


@dataclasses.dataclass(frozen=True)
class Effect:
  """Mean, sd and 95% interval of a change in score as each weight in `names` goes low to high.

  For one name, f(high) - f(low); for two, f(high, high) - f(high, low) - f(low, high) + f(low,
  low): what they do together beyond what each does alone. The interval is for this effect alone: of
  a hundred that are nil, five exclude 0.
  """

  names: tuple[str, ...]
  low: dict[str, float]
  high: dict[str, float]
  mean: float
  sd: float
  interval: tuple[float, float]


def main_effects(
  surrogate: Surrogate,
  names: Sequence[str] | None = None,
  *,
  bases: Float[np.ndarray, "b d"] | None = None,
  quantiles: tuple[float, float] = QUANTILES,
  key: Key = 0,
) -> tuple[Effect, ...]:
  """The effect of each coordinate (all, or those named), along the path of `at_weights`.

  A weight moves between two `quantiles` of the pool, from each of `bases` (default: 64 of the pool,
  fixed by `key`), and the changes are averaged. The sd is that of this average under the joint
  posterior, far less than that of its points alone. What one weight gains the others of its axis
  lose: their effects are not independent.

  One posterior of 2b points a coordinate: 1 s for 50 coordinates and 100 runs on one core.
  ValueError for an unknown name.
  """
  space = surrogate.space
  low, high = _levels(space, quantiles)
  bases = _bases(space, BASES, key) if bases is None else space.check(bases)
  return tuple(
    _effect(surrogate, bases, (name,), low[[index]], high[[index]])
    for name, index in _indices(space, names).items()
  )


def pair_effects(
  surrogate: Surrogate,
  names: Sequence[str] | None = None,
  *,
  bases: Float[np.ndarray, "b d"] | None = None,
  quantiles: tuple[float, float] = QUANTILES,
  key: Key = 0,
) -> tuple[Effect, ...]:
  """The interaction of each two coordinates (of all, or of those named), as `main_effects`.

  Two of one axis may not reach their high quantiles together: their rises are then cut by one
  factor, so that the others keep the sum of their low quantiles. `low` and `high` say what was
  used. On an axis of two, one weight is the other's rest: there is no such pair. The other weights
  give way, so that what two do together shows, weaker, in the pairs of those that they displace.

  One posterior of 4b points a pair (b = 32): 19 s for the 1225 pairs of 50 coordinates and 100
  runs on one core.
  """
  space = surrogate.space
  low, high = _levels(space, quantiles)
  bases = _bases(space, PAIR_BASES, key) if bases is None else space.check(bases)
  effects = []
  for (a, i), (b, j) in itertools.combinations(_indices(space, names).items(), 2):
    lows, highs = low[[i, j]], high[[i, j]]
    if space.block[i] == space.block[j]:
      others = space.block == space.block[i]
      others[[i, j]] = False
      if not others.any():
        continue
      room, rise = 1 - low[others].sum() - lows.sum(), highs - lows
      highs = lows + rise * np.clip(room / max(rise.sum(), np.finfo(float).tiny), 0, 1)
    effects.append(_effect(surrogate, bases, (a, b), lows, highs))
  return tuple(effects)


def at_weights(
  space: Space, points: Float[np.ndarray, "n d"], weights: Mapping[str, float]
) -> Float[np.ndarray, "n d"]:
  """`points` with the named weights set: the path along which effects are measured.

  On an axis with a named weight the others keep their lower bounds and share what is left in
  proportion to what they had above them (equally, where that was nothing). Without bounds: all
  others times the same factor. Other axes stay as they are. A cap that only the pool keeps may be
  passed. ValueError for an unknown name, or weights that leave the others less than their bounds.
  """
  points = space.check(points)
  wanted = {index: weights[name] for name, index in _indices(space, tuple(weights)).items()}
  named = np.isin(np.arange(space.dim), list(wanted))
  for axis in np.unique(space.block[named]):
    fixed, others = named & (space.block == axis), ~named & (space.block == axis)
    targets = [wanted[index] for index in np.flatnonzero(fixed)]
    rest = 1 - sum(targets) - space.lower[others].sum()
    if rest < -1e-9 or min(targets) < 0 or (rest > 1e-9 and not others.any()):
      raise ValueError(f"no mixture on {space.name} has {dict(weights)}: weights sum to 1")
    above = np.maximum(points[:, others] - space.lower[others], 0)
    above = np.where(above.sum(axis=1, keepdims=True) > 1e-12, above, 1.0)
    shares = above / above.sum(axis=1, keepdims=True)
    points[:, others] = space.lower[others] + max(rest, 0.0) * shares
    points[:, fixed] = targets
  return points


def _effect(surrogate: Surrogate, bases, names: tuple[str, ...], low, high) -> Effect:
  """The average over `bases` of the difference (one name) or second difference (two)."""
  ends = itertools.product(*zip(low, high, strict=True))
  levels = [dict(zip(names, corner, strict=True)) for corner in ends]
  corners = [at_weights(surrogate.space, bases, level) for level in levels]
  # itertools varies the last name fastest: low before high for each name.
  signs = np.array([-1.0, 1.0])
  for _ in names[1:]:
    signs = np.outer(signs, [-1.0, 1.0]).ravel()
  contrast = np.repeat(signs, len(bases)) / len(bases)
  points, covariance = surrogate.joint(np.concatenate(corners))
  mean = float(contrast @ points)
  sd = float(np.sqrt(max(contrast @ covariance @ contrast, 0.0)))
  lows, highs = (dict(zip(names, weights.tolist(), strict=True)) for weights in (low, high))
  return Effect(names, lows, highs, mean, sd, (mean - 1.96 * sd, mean + 1.96 * sd))


def _levels(space: Space, quantiles: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
  if not 0 <= quantiles[0] < quantiles[1] <= 1:
    raise ValueError(f"quantiles rise within [0, 1], not {quantiles}")
  low, high = np.quantile(pool_or_reference(space), quantiles, axis=0)
  return low, high


def _bases(space: Space, count: int, key: Key) -> np.ndarray:
  pool = pool_or_reference(space)
  return pool[np.sort(generator(key).permutation(len(pool))[:count])]


def _indices(space: Space, names: Sequence[str] | None) -> dict[str, int]:
  if names is None:
    names = space.names
  if unknown := [name for name in names if name not in space.names]:
    raise ValueError(f"{unknown} are no coordinates of the {space.name} axis {list(space.names)}")
  return {name: space.names.index(name) for name in names}
