"""Runs on the product of concepts and tasks with one peak, known, and surrogates of them."""

import functools

import numpy as np

from mixjax.search import surrogate
from mixjax.search.observations import Observations
from mixjax.search.space import Space, candidates

CONCEPTS, TASKS = ("maps", "charts", "faces", "signs"), ("caption", "ocr", "vqa")
SPACE = Space.product(CONCEPTS, TASKS)
SPACE = SPACE.with_pool(candidates(SPACE, 300, 0))
# Well inside both simplices.
PEAK = np.array([0.35, 0.25, 0.2, 0.2, 0.4, 0.35, 0.25])


def truth(mixtures):
  """One peak inside, and charts that are worth most with much OCR."""
  apart = np.sum((np.sqrt(mixtures) - np.sqrt(PEAK)) ** 2, axis=1)
  return 2 - apart + 3 * mixtures[:, 1] * mixtures[:, 5]


def observe(count, noise=0.02, seed=0, score=truth, repeats=0):
  """`count` runs at random from the pool, the first `repeats` of them twice."""
  rng = np.random.default_rng(seed)
  rows = rng.permutation(len(SPACE.pool))[: count - repeats]
  mixtures = SPACE.pool[np.concatenate([rows, rows[:repeats]])]
  return Observations(mixtures, score(mixtures) + noise * rng.normal(size=count))


def pure_noise(count, seed=0):
  return observe(count, 1.0, seed, score=lambda mixtures: np.zeros(len(mixtures)))


@functools.cache
def runs():
  return observe(44, repeats=6)


@functools.cache
def fitted():
  return surrogate.fit(runs(), SPACE)


def in_parts(observed, *parts):
  """The same mixtures, scored by the sum of `parts`."""
  parts = np.stack(parts, axis=1)
  return Observations(observed.mixtures, parts.sum(axis=1), parts=parts)
