"""Data Mixing Laws: the search over halved caps, and what is recommended."""

import itertools

import numpy as np
import pytest
from peers import BARE, SPACE, runs_on, truth

from mixjax.search.observations import matches
from mixjax.search.policies import mixing_laws
from mixjax.search.policies.mixing_laws import MixingLaws, halving_search


@pytest.mark.parametrize("seed", range(6))
def test_the_halving_search_is_the_best_of_its_grid(seed):
  rng = np.random.default_rng(seed)
  slope = rng.normal(size=4)
  caps = np.array([1.0, 0.6, 0.3, 0.8])[rng.permutation(4)] if seed else np.ones(4)
  rest = np.argmax(caps)
  shares = [caps[j] * np.array(mixing_laws.SHARES) for j in range(4) if j != rest]
  grid = np.array(list(itertools.product(*shares)))
  grid = np.insert(grid, rest, 1 - grid.sum(axis=1), axis=1)
  grid = grid[(grid[:, rest] >= -1e-9) & (grid[:, rest] <= caps[rest] + 1e-9)]
  found = halving_search(slope, caps)
  assert matches(found[None], grid)[0]
  assert slope @ found == pytest.approx((grid @ slope).min())


def test_the_halving_search_says_what_it_cannot_do():
  with pytest.raises(ValueError, match="too many sums"):
    halving_search(np.ones(12), np.random.default_rng(0).uniform(0.5, 1, 12))
  # Any number of domains, where caps have a common measure.
  caps = np.full(30, 0.25)
  found = halving_search(np.arange(30.0), caps)
  np.testing.assert_allclose(found, [0.25] * 4 + [0] * 26)


def test_mixing_laws_recommends_from_pool_or_grid():
  runs = runs_on(SPACE, 60)
  caps = dict(vqa=0.5, caption=0.4)
  np.testing.assert_allclose(MixingLaws(BARE).recommend(runs).mixture, np.eye(5)[4])
  np.testing.assert_allclose(
    MixingLaws(BARE, caps).recommend(runs).mixture, [0.4, 0.0375, 0.0625, 0, 0.5]
  )
  best = MixingLaws(SPACE).recommend(runs)
  np.testing.assert_array_equal(best.mixture, SPACE.pool[np.argmax(truth(SPACE.pool))])
  assert (MixingLaws(SPACE, caps).recommend(runs).mixture[4]) <= 0.5
