"""A space with a known optimum, and searches in it."""

import numpy as np

from mixjax.search.observations import Observations
from mixjax.search.policies.best_of_random import BestOfRandom
from mixjax.search.policies.mixatlas import MixAtlas
from mixjax.search.policies.natural import Natural
from mixjax.search.policies.regmix import RegMix
from mixjax.search.policies.uniform import Uniform
from mixjax.search.space import Space, candidates

CONCEPTS, TASKS = ("maps", "charts", "faces", "signs"), ("caption", "ocr", "vqa")


def make_space(floor=0.0, count=400):
  space = Space.product(CONCEPTS, TASKS, floor=floor)
  return space.with_pool(candidates(space, count, 0))


SPACE = make_space()
NATURAL = dict(maps=0.4, charts=0.3, faces=0.2, signs=0.1, caption=0.5, ocr=0.3, vqa=0.2)
TARGET = candidates(SPACE, 8, 123)[3]


def truth(mixtures):
  """Smooth, with one peak inside both simplices and an interaction between the two axes."""
  apart = np.sum((np.sqrt(mixtures) - np.sqrt(TARGET)) ** 2, axis=1)
  return 1 - apart + 0.3 * mixtures[:, 1] * mixtures[:, 5]


def search(policy, budget, batch, key, noise=0.0):
  runs = Observations.none(policy.space)
  rng = np.random.default_rng([key, 1])
  while len(runs) < budget:
    asked = policy.ask(runs, min(batch, budget - len(runs)), key)
    scores = truth(asked) + noise * rng.normal(size=len(asked))
    mixtures = np.concatenate([runs.mixtures, asked])
    runs = Observations(mixtures, np.concatenate([runs.scores, scores]))
  return runs


POLICIES = {
  "mixatlas": MixAtlas(SPACE, seeds=8),
  "observed": MixAtlas(SPACE, seeds=8, recommend_by="observed"),
  "log EI": MixAtlas(SPACE, seeds=8, acquisition="log_ei"),
  "thompson": MixAtlas(SPACE, seeds=8, acquisition="thompson"),
  "continuous": MixAtlas(SPACE, seeds=8, continuous=True),
  "uniform": Uniform(SPACE),
  "natural": Natural(SPACE, NATURAL),
  "random": BestOfRandom(SPACE),
  "regmix": RegMix(SPACE),
  "regmix top": RegMix(SPACE, recommend_by="top", top=16),
}
