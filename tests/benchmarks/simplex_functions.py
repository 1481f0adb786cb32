"""Functions on the simplex whose maximum is known, and noisy tables of them to search in.

Each is float64, vectorised, higher is better, and takes its parameters from its dimension alone.
None is taken from a paper: they are built backwards from the best mixture. `FUNCTIONS` holds them.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from mixjax.search.replay import Objective
from mixjax.search.space import Space, candidates

POOL = 2000


@dataclasses.dataclass(frozen=True, eq=False)
class SimplexFunction:
  """`value` takes `float[n, d]` to `float[n]`; it is highest at `best`, where it is `maximum`."""

  name: str
  value: Callable[[Float[np.ndarray, "n d"]], Float[np.ndarray, " n"]]
  best: Float[np.ndarray, " d"]
  maximum: float

  @property
  def dim(self) -> int:
    return len(self.best)


def peak(dim: int) -> SimplexFunction:
  """One smooth optimum inside, some weights mattering a hundred times more than others.

  1 - sum_i w_i (sqrt p_i - sqrt c_i)^2: the Hellinger geometry that MixAtlas's kernel assumes too,
  so this one is to its advantage.
  """
  rng = np.random.default_rng([dim, 0])
  best = rng.dirichlet(np.full(dim, 2.0))
  sharpness = rng.permutation(np.geomspace(0.1, 10.0, dim))

  def value(points):
    return 1 - np.sum(sharpness * (np.sqrt(points) - np.sqrt(best)) ** 2, axis=1)

  return SimplexFunction("peak", value, best, 1.0)


def diminishing(dim: int) -> SimplexFunction:
  """A law of mixing: every domain helps, each further share of it less.

  -sum_i a_i q_i^-1/2 with q_i = (p_i + e) / (1 + d e). On the simplex of q it is highest where
  a_i q_i^-3/2 is the same for all; with a_i = b_i^3/2 that is at b, and its value there is -1.
  """
  rng = np.random.default_rng([dim, 1])
  best = rng.dirichlet(np.full(dim, 1.0))
  extra = 0.1 / dim
  shifted = (best + extra) / (1 + dim * extra)

  def value(points):
    return -np.sum(shifted**1.5 / np.sqrt((points + extra) / (1 + dim * extra)), axis=1)

  return SimplexFunction("diminishing", value, best, -1.0)


def interacting(dim: int) -> SimplexFunction:
  """Every pair of domains helps or hinders each other; half of the domains are best left out.

  1 - (p - c)' A (p - c) in the weights themselves, A dense with eigenvalues from 0.1 up, and c on
  the boundary.
  """
  rng = np.random.default_rng([dim, 2])
  used = rng.permutation(dim)[: (dim + 1) // 2]
  best = np.zeros(dim)
  best[used] = rng.dirichlet(np.full(len(used), 2.0))
  factors = rng.normal(size=(dim, (dim + 1) // 2))
  form = factors @ factors.T / factors.shape[1] + 0.1 * np.eye(dim)

  def value(points):
    away = points - best
    return 1 - np.einsum("ni,ij,nj->n", away, form, away)

  return SimplexFunction("interacting", value, best, 1.0)


def hills(dim: int) -> SimplexFunction:
  """Five optima of heights 1.0, 0.9, ... 0.6, the highest the narrowest.

  The largest of five bells around specialised mixtures, so no bell moves another's top; where two
  meet there is a kink.
  """
  rng = np.random.default_rng([dim, 3])
  centers = rng.dirichlet(np.full(dim, 0.5), 5)
  heights = 1.0 - 0.1 * np.arange(5)
  # Widths are shares of the mean squared distance from a center to a mixture drawn evenly.
  even = rng.dirichlet(np.ones(dim), 2000)
  typical = np.mean([np.sum((even - center) ** 2, axis=1) for center in centers])
  widths = typical * np.linspace(0.4, 1.0, 5)

  def value(points):
    squared = np.sum((points[:, None] - centers) ** 2, axis=2)
    return np.max(heights * np.exp(-squared / widths), axis=1)

  return SimplexFunction("hills", value, centers[0], 1.0)


def complements(dim: int) -> SimplexFunction:
  """Three skills that only help together, each taught by a group of domains that are all alike.

  prod_g (s_g / t_g)^t_g with s_g the share of group g: at most 1, where every s_g = t_g. Two fifths
  of the weights belong to no group, and a whole face of mixtures is best.
  """
  targets = np.array([0.5, 0.3, 0.2])
  size = dim // 5
  group = np.random.default_rng([dim, 4]).permutation(dim)[: 3 * size].reshape(3, size)
  best = np.zeros(dim)
  best[group] = (targets / size)[:, None]

  def value(points):
    shares = points[:, group].sum(axis=2)
    return np.prod((shares / targets) ** targets, axis=1)

  return SimplexFunction("complements", value, best, 1.0)


FUNCTIONS: dict[str, Callable[[int], SimplexFunction]] = {
  "peak": peak,
  "diminishing": diminishing,
  "interacting": interacting,
  "hills": hills,
  "complements": complements,
}


def recorded(function: SimplexFunction, noise: float, seed: int, size: int = POOL) -> Objective:
  """`size` candidates and what running them gives: a table that `search_row` can search.

  The pool is the paper's (Dirichlet draws and an even design, `candidates`), drawn by `seed`.
  `noise` is the sd of one run in sds of the function over the pool. Noise comes in pairs, f + e and
  f - e, of which a search meets one: so the mean of a mixture's runs, its truth, is exactly f.
  """
  names = tuple(f"w{i}" for i in range(function.dim))
  pool = candidates(Space.simplex("domain", names), size, [seed, 5])
  truth = function.value(pool)
  repeats = 2 if noise else 1
  errors = noise * truth.std() * np.random.default_rng([seed, 6]).normal(size=size)
  values = (truth[:, None] + errors[:, None] * [1, -1][:repeats]).ravel()
  runs = tuple(f"{i}{'ab'[j]}" for i in range(size) for j in range(repeats))
  mixtures = np.repeat(pool, repeats, axis=0)
  return Objective(function.name, False, names, runs, mixtures, values)
