"""CLIMB: rounds of 4:2:1, drawn from the best predictions."""

import numpy as np
from peers import BARE, SPACE, runs_on, truth

from mixjax.search.observations import Observations, matches
from mixjax.search.policies.best_of_random import BestOfRandom
from mixjax.search.policies.climb import Climb
from mixjax.search.policies.regmix import RegMix, fit_trees
from mixjax.search.space import candidates


def test_climb_goes_by_rounds_drawn_from_the_best_predictions():
  assert Climb(SPACE).rounds() == (64, 32, 16)
  assert Climb(SPACE, budget=5).rounds() == (3, 1, 1)
  assert Climb(SPACE, budget=1).rounds() == (1, 0, 0)
  policy = Climb(SPACE, budget=28)
  first = policy.ask(Observations.none(SPACE), 16, 0)
  np.testing.assert_array_equal(first, BestOfRandom(SPACE).ask(Observations.none(SPACE), 16, 0))
  runs = Observations(first, truth(first))
  unseen = SPACE.pool[~matches(SPACE.pool, first)]
  top = unseen[np.argsort(-fit_trees(runs)(unseen), kind="stable")[:32]]
  second = policy.ask(runs, 8, 0)
  assert matches(second, top).all() and not matches(second, top[:8]).all()
  assert not np.array_equal(np.sort(second, 0), np.sort(policy.ask(runs, 8, 1), 0))
  runs = Observations(np.concatenate([first, second]), truth(np.concatenate([first, second])))
  unseen = SPACE.pool[~matches(SPACE.pool, runs.mixtures)]
  top = unseen[np.argsort(-fit_trees(runs)(unseen), kind="stable")[:16]]
  # Past the budget the last round goes on.
  for count in (4, 7):
    assert matches(policy.ask(runs, count, 0), top).all()
  np.testing.assert_array_equal(
    policy.recommend(runs).mixture, RegMix(SPACE).recommend(runs).mixture
  )


def test_climb_fills_a_batch_across_rounds():
  policy = Climb(SPACE, budget=28)
  runs = runs_on(SPACE, 14)
  asked = policy.ask(runs, 12, 0)
  np.testing.assert_array_equal(asked[:2], BestOfRandom(SPACE).ask(runs, 2, 0))
  ranked = SPACE.pool[np.argsort(-fit_trees(runs)(SPACE.pool), kind="stable")]
  fresh = ranked[~matches(ranked, np.concatenate([runs.mixtures, asked[:2]]))]
  assert matches(asked[2:10], fresh[:32]).all()
  after = fresh[~matches(fresh, asked[:10])]
  assert matches(asked[10:], after[:16]).all()
  assert len(np.unique(asked, axis=0)) == 12


def test_climb_beats_the_same_number_of_random_runs():
  peak = np.array([0.3, 0.1, 0.2, 0.25, 0.15])
  space = BARE.with_pool(candidates(BARE, 1000, 1))

  def loss(mixtures):
    return np.sum((np.sqrt(mixtures) - np.sqrt(peak)) ** 2, axis=1)

  def regret(policy, key):
    runs = Observations.none(space)
    for count in sizes:
      mixtures = np.concatenate([runs.mixtures, policy.ask(runs, count, key)])
      runs = Observations(mixtures, -loss(mixtures))
    return -runs.scores.max() - loss(space.pool).min()

  sizes = Climb(space, budget=42).rounds()
  climb, random = (
    np.mean([regret(policy, key) for key in range(5)])
    for policy in (Climb(space, budget=42), BestOfRandom(space))
  )
  assert climb < 0.6 * random, (climb, random)
