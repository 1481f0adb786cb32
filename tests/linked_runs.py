"""Runs of a target and cheap ones, which tell of it as much as a correlation says."""

import numpy as np

from mixjax.search.observations import Observations
from mixjax.search.space import Space, candidates

SPACE = Space.simplex("domain", "abcd")
# In random order, so that the first few are spread out as all are.
SPACE = SPACE.with_pool(np.random.default_rng(0).permutation(candidates(SPACE, 160, 0)))
POOL = SPACE.pool
TARGET, CHEAP = 12, 40
SEEDS = range(6)


def landscape(seed):
  """Scores of the pool by six hills and pits, in sds."""
  rng = np.random.default_rng([seed, 9])
  centers, heights = rng.dirichlet(np.ones(4), 6), rng.normal(size=6)
  squared = np.sum((np.sqrt(POOL)[:, None] - np.sqrt(centers)) ** 2, axis=-1)
  scores = np.exp(-squared / 2 / 0.3**2) @ heights
  return (scores - scores.mean()) / scores.std()


def two_fidelities(seed, correlation):
  """Scores of the pool at the target, and at a cheap fidelity of other units and another offset."""
  target, other = landscape(seed), landscape(seed + 1000)
  other -= target * (target @ other) / (target @ target)
  cheap = correlation * target + np.sqrt(1 - correlation**2) * other / other.std()
  return target, 0.4 * cheap - 3


def observe(seed, correlation, stderr=None):
  """Runs of the target, then cheap ones on other mixtures; the target's scores of the pool."""
  target, cheap = two_fidelities(seed, correlation)
  rng = np.random.default_rng(seed)
  rows = rng.permutation(len(POOL))[: TARGET + CHEAP]
  scores = np.concatenate([target[rows[:TARGET]], cheap[rows[TARGET:]]])
  scores += np.repeat([0.05, 0.02], [TARGET, CHEAP]) * rng.normal(size=len(rows))
  fidelity = np.repeat([2048.0, 256.0], [TARGET, CHEAP])
  return Observations(POOL[rows], scores, stderr, fidelity), target
