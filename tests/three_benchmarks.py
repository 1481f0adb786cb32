"""Three benchmarks drawn from the prior that they are then fitted with."""

import functools

import numpy as np
from sklearn.gaussian_process.kernels import Matern

from mixjax.search.benchmarks import fit_benchmarks
from mixjax.search.coordinates import reference
from mixjax.search.objective import ScoreVectors
from mixjax.search.space import Space, candidates
from mixjax.search.surrogate import Hyperparameters, condition

NAMES = ("captions", "charts", "counting")
SPACE = Space.simplex("three", list("abc"))
SPACE = SPACE.with_pool(candidates(SPACE, 120, 0))
RUNS = 24
NOISE = 0.2
TOGETHER = np.array([[1.0, 0.7, -0.3], [0.7, 1.0, 0.0], [-0.3, 0.0, 1.0]])


def seen(points):
  """Square-root coordinates in sds over the space, as the processes see them."""
  return np.sqrt(points) / np.sqrt(reference(SPACE)).std(axis=0)


def with_the_prior(observations, space):
  scale = observations.scores.std()  # the process takes its sds in these
  return condition(observations, space, Hyperparameters((1.5,) * 3, 1 / scale, NOISE / scale))


@functools.cache
def problem(seed):
  """Benchmarks drawn from the prior that they are then fitted with, and their truth at the pool."""
  rng = np.random.default_rng(seed)
  kernel = Matern(1.5, nu=2.5)(seen(SPACE.pool))
  root = np.linalg.cholesky(kernel + 1e-9 * np.eye(len(kernel)))
  across = np.linalg.cholesky(TOGETHER).T
  truth = root @ rng.standard_normal((len(kernel), 3)) @ across
  noise = NOISE * rng.standard_normal((RUNS, 3)) @ across
  rows = rng.permutation(len(kernel))[:RUNS]

  runs = ScoreVectors(NAMES, SPACE.pool[rows], truth[rows] + noise)
  return fit_benchmarks(runs, SPACE, with_the_prior), truth
