"""A truth that cheap runs tell of, or do not."""

import numpy as np

from mixjax.search.multifidelity import Hyperparameters
from mixjax.search.observations import Observations
from mixjax.search.space import Space, candidates

SPACE = Space.simplex("domain", "abc")
# In random order, so that the first few are spread out as all are.
SPACE = SPACE.with_pool(np.random.default_rng(0).permutation(candidates(SPACE, 200, 0)))
POOL = SPACE.pool
CHEAP = 0.05
HYPER = Hyperparameters((0.3, 0.5, 0.8), (0.9, 1.5, 0.7), 1.2, 0.6, 1.7, 0.2)


def bumps(points, centers, heights):
  squared = np.sum((points[:, None] - np.array(centers)) ** 2, axis=-1)
  return np.exp(-squared / 2 / 0.14**2) @ np.array(heights)


def target(points):
  """Four hills; the highest has a small basin."""
  centers = [[0.7, 0.15, 0.15], [0.1, 0.75, 0.15], [0.2, 0.2, 0.6], [0.45, 0.1, 0.45]]
  return bumps(points, centers, [0.8, 0.9, 1.2, 0.5])


def informative(points):
  return target(points) - 0.5 + 0.3 * points[:, 0]


def two_levels(cheap, count):
  """`count` runs of the target and as many cheap ones on other mixtures."""
  points = POOL[: 2 * count]
  scores = np.concatenate([target(points[:count]), cheap(points[count:])])
  return Observations(points, scores, fidelity=np.repeat([1.0, CHEAP], count))
