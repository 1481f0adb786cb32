"""Spaces, a known truth and its runs, for the policies of others."""

import numpy as np

from mixjax.search.observations import Observations
from mixjax.search.space import Space, candidates

TASKS = ("caption", "ocr", "grounded", "detection", "vqa")
BARE = Space.simplex("task", TASKS)
SPACE = BARE.with_pool(candidates(BARE, 300, 0))
WIDE = Space.product(("maps", "charts", "faces"), ("caption", "ocr", "vqa"))
PRODUCT = WIDE.with_pool(candidates(WIDE, 200, 0))
FLOORED = Space.product(("maps", "charts", "faces"), ("caption", "ocr", "vqa"), floor=0.3)
SLOPE = np.array([-3.0, 0.5, -1.0, 1.5, -6.0])


def truth(mixtures):
  """Every domain counts, most of all the last."""
  return 2 - np.exp(mixtures @ np.resize(SLOPE, mixtures.shape[1]))


def runs_on(space, count, scale=1.0, noise=0.0):
  mixtures = space.pool[:count] if space.pool is not None else candidates(space, count, 0)
  return Observations(
    mixtures, scale * (truth(mixtures) + noise * np.random.default_rng(0).normal(size=count))
  )
