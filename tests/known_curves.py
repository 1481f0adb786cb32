"""Curves with a known truth, and what is learnt of them."""

import functools

import numpy as np

from mixjax.search.chain import fit_curves
from mixjax.search.curves import Curves
from mixjax.search.objective import Objective
from mixjax.search.space import Space, candidates

SPACE = Space.simplex("domain", ["a", "b", "c", "d"])
SPACE = SPACE.with_pool(candidates(SPACE, 200, 0))
RHOS = (0.99, 0.6, 0.0, -0.7)
NAMES = ("near", "half", "none", "against")
STEPS = (100.0, 1000.0)
NEAR = Objective({"near": 1.0})


def landscapes(seed):
  """Two functions of all pool mixtures, with falling returns, mean 0, sd 1 and uncorrelated."""
  raw = np.log(SPACE.pool + 0.05) @ np.random.default_rng(seed).normal(size=(SPACE.dim, 2))
  raw -= raw.mean(axis=0)
  return np.linalg.solve(np.linalg.cholesky(np.cov(raw.T, bias=True)), raw.T)


def scores(seed, rhos=RHOS, noise=0.3, shared=0.5):
  """Early and final scores of the pool, `float[200, 2, b]`: mixtures and noise go along alike."""
  rng, found = np.random.default_rng(seed), []
  for place, rho in enumerate(rhos):
    final, other = landscapes([seed, place])
    errors = rng.normal(size=(2, len(final)))
    errors[0] = np.sign(rho) * shared * errors[1] + np.sqrt(1 - shared**2) * errors[0]
    early = rho * final + np.sqrt(1 - rho**2) * other
    found.append(np.stack([early, final]) + noise * errors)
  return np.moveaxis(found, (0, 1, 2), (2, 1, 0))


def some(table, rows, finished=None, names=NAMES, steps=STEPS):
  """Curves of these rows of the pool, of which only the `finished` (by default all) did so."""
  table = table[rows].copy()
  if finished is not None:
    table[~finished, -1] = np.nan
  return Curves(names, steps, SPACE.pool[rows], table)


def running(table, rows, names=NAMES):
  return some(table, rows, np.zeros(len(rows), bool), names)


def split(seed):
  """32 rows of the pool, 24 of which finish, and 100 others."""
  order = np.random.default_rng(seed).permutation(len(SPACE.pool))
  return order[:32], np.arange(32) < 24, order[32:132]


@functools.cache
def chains():
  """Chains of four studies, each with its table of scores and 100 rows it has not seen."""
  found = []
  for seed in range(4):
    rows, finished, others = split(seed)
    table = scores(seed)
    found.append((fit_curves(some(table, rows, finished), SPACE), table, others))
  return found
