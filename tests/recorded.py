"""Made-up tables of recorded runs."""

import numpy as np

from mixjax.search.replay import Objective

DOMAINS = ("code", "web", "maths", "books")


def make(count=60, minimize=False, replicates=1, noise=0.0, test=None, seed=0):
  """Runs of a smooth function of the mixture with its best inside the simplex."""
  rng = np.random.default_rng(seed)
  mixtures = np.repeat(rng.dirichlet(np.ones(4), count), replicates, axis=0)
  values = 3 - np.sum((np.sqrt(mixtures) - np.sqrt([0.4, 0.3, 0.2, 0.1])) ** 2, axis=1)
  values = values + noise * rng.normal(size=len(values))
  runs = tuple(f"run{i}" for i in range(len(values)))
  return Objective("y", minimize, DOMAINS, runs, mixtures, -values if minimize else values, test)


def same(rows, others):
  """Equal in everything but the time they took."""

  def timeless(row):
    return {k: v for k, v in row.items() if not k.startswith("seconds")}

  return [timeless(row) for row in rows] == [timeless(row) for row in others]
