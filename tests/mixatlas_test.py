"""MixAtlas: what it proposes and what it recommends."""

import dataclasses

import numpy as np
import pytest
from known_optimum import (
  POLICIES,
  SPACE,
  make_space,
  search,
  truth,
)

from mixjax.search import surrogate
from mixjax.search.acquire import KAPPA, choose_batch
from mixjax.search.observations import Observations, matches
from mixjax.search.policies.best_of_random import BestOfRandom
from mixjax.search.policies.mixatlas import MixAtlas

pytestmark = pytest.mark.xdist_group("known_optimum")


def test_gp_ucb_finds_the_optimum_and_random_does_not():
  best = truth(SPACE.pool).max()
  median = np.median(truth(SPACE.pool))
  regret = {"mixatlas": [], "random": []}
  for name in regret:
    for key in range(6):
      found = truth(search(POLICIES[name], 30, 6, key).mixtures).max()
      regret[name].append((best - found) / (best - median))
  assert np.max(regret["mixatlas"]) < 0.02
  assert np.mean(regret["random"]) > 0.15


def test_the_recommendation_is_not_the_luckiest_run():
  """With noise as large as the spread, the best observed score promises more than it can keep."""
  optimism, covered = {"mixatlas": [], "observed": [], "random": []}, []
  for key in range(6):
    runs = search(MixAtlas(SPACE, seeds=20), 40, 10, key, noise=0.15)
    for name in optimism:
      advice = POLICIES[name].recommend(runs)
      optimism[name].append(advice.mean - truth(advice.mixture[None])[0])
      if name == "mixatlas":
        covered.append(abs(optimism[name][-1]) <= 2.5 * advice.sd)
  assert np.mean(optimism["random"]) > 0.15
  assert abs(np.mean(optimism["mixatlas"])) < 0.08
  assert abs(np.mean(optimism["observed"])) < 0.08
  assert np.mean(covered) >= 5 / 6


def test_recommendations_by_observation_are_observed():
  runs = search(MixAtlas(SPACE, seeds=8), 16, 4, 0)
  advice = POLICIES["observed"].recommend(runs)
  winner = np.argmax(runs.scores)
  np.testing.assert_allclose(advice.mixture, runs.mixtures[winner], atol=1e-12)
  assert advice.observed == pytest.approx(runs.scores[winner])
  assert advice.mean != advice.observed and advice.sd > 0


def test_top_averages_and_floor_lifts():
  runs = search(MixAtlas(SPACE, seeds=8), 16, 4, 0)
  sharp = MixAtlas(SPACE).recommend(runs).mixture
  flat = MixAtlas(SPACE, top=16, floor=0.2).recommend(runs)
  assert (flat.mixture >= 0.2 * SPACE.uniform()).all()
  assert np.max(flat.mixture * SPACE.uniform() ** -1) < np.max(sharp * SPACE.uniform() ** -1)
  assert flat.observed is None and flat.sd > 0


def test_the_bound_over_the_pool_is_the_default():
  runs = search(BestOfRandom(SPACE), 12, 4, 5)
  runs = dataclasses.replace(runs, pending=SPACE.pool[:1])
  fitted, unseen = surrogate.fit(runs, SPACE), SPACE.pool[~matches(SPACE.pool, runs.known())]
  chosen = choose_batch(fitted, unseen, 3, kappa=KAPPA, pending=runs.pending)
  np.testing.assert_array_equal(MixAtlas(SPACE, seeds=8).ask(runs, 3, 7), unseen[chosen])
  options = SPACE.raise_to_floor(SPACE.pool)
  best = options[np.argmax(fitted.predict(options)[0])]
  np.testing.assert_allclose(MixAtlas(SPACE).recommend(runs).mixture, best, atol=1e-15)


def test_other_acquisitions_find_the_optimum_too():
  best, median = truth(SPACE.pool).max(), np.median(truth(SPACE.pool))
  for name in ("log EI", "thompson"):
    found = [truth(search(POLICIES[name], 30, 6, key).mixtures).max() for key in range(2)]
    assert np.max(best - np.array(found)) / (best - median) < 0.05


@pytest.mark.slow
def test_off_a_small_pool_the_proposals_and_the_recommendation_are_better():
  space = make_space(count=60)
  policy = MixAtlas(space, seeds=8, continuous=True)
  runs = search(policy, 16, 4, 0)
  assert matches(runs.mixtures[:8], space.pool).all()
  assert not matches(runs.mixtures[8:], space.pool).any()
  advice = policy.recommend(runs)
  assert truth(advice.mixture[None])[0] > truth(space.pool).max()
  assert advice.mean > MixAtlas(space).recommend(runs).mean
  waiting = dataclasses.replace(runs, pending=policy.ask(runs, 2, 0))
  assert not matches(policy.ask(waiting, 2, 0), waiting.known()).any()
  # Parts of the score, one process each, are searched together.
  parts = np.stack([0.3 * runs.scores, 0.7 * runs.scores], axis=1)
  split = policy.recommend(dataclasses.replace(runs, parts=parts))
  np.testing.assert_allclose(split.mixture, advice.mixture, atol=0.02)


def test_pending_runs_are_not_proposed_again_and_push_the_next_away():
  runs = search(BestOfRandom(SPACE), 10, 10, 0)
  policy = MixAtlas(SPACE, seeds=4)
  together = policy.ask(runs, 4, 0)
  one_by_one = np.zeros((0, SPACE.dim))
  for _ in range(4):
    waiting = dataclasses.replace(runs, pending=one_by_one)
    one_by_one = np.concatenate([one_by_one, policy.ask(waiting, 1, 0)])
  np.testing.assert_array_equal(one_by_one, together)
  for name in ("random", "regmix"):
    first = POLICIES[name].ask(runs, 3, 0)
    then = POLICIES[name].ask(dataclasses.replace(runs, pending=first), 3, 0)
    assert not matches(then, first).any()


def test_seeds_and_choices_can_share_a_batch():
  runs = search(BestOfRandom(SPACE), 6, 6, 0)
  asked = MixAtlas(SPACE, seeds=8).ask(runs, 5, 0)
  np.testing.assert_array_equal(asked[:2], BestOfRandom(SPACE).ask(runs, 2, 0))
  assert not matches(asked[2:], BestOfRandom(SPACE).ask(runs, 5, 0)).all()


def lost_runs(as_pending):
  """Of eight proposals after a random design, how many diverge where more OCR seems better and
  beyond a share of 0.4 every run goes wrong; and what is then recommended."""
  policy, lost = MixAtlas(SPACE, seeds=8), np.zeros((0, SPACE.dim))
  design = SPACE.pool[np.random.default_rng(0).permutation(len(SPACE.pool))[:16]]
  design = design[design[:, 5] <= 0.4][:8]
  runs = Observations(design, 2 * design[:, 5] + truth(design))
  for _ in range(8):
    left = dict(pending=lost) if as_pending else dict(infeasible=lost)
    asked = policy.ask(dataclasses.replace(runs, **left), 1, 0)
    if asked[0, 5] > 0.4:
      lost = np.concatenate([lost, asked])
    else:
      scores = np.append(runs.scores, 2 * asked[0, 5] + truth(asked))
      runs = Observations(np.concatenate([runs.mixtures, asked]), scores)
  return len(lost), policy.recommend(dataclasses.replace(runs, **left)).mixture


def test_a_search_leaves_where_runs_go_wrong():
  # As pending, they come out as predicted, and the promise that led there stays.
  assert lost_runs(as_pending=True)[0] >= 6
  lost, recommended = lost_runs(as_pending=False)
  assert lost <= 3 and recommended[5] <= 0.4


def test_what_went_wrong_is_never_recommended():
  runs = search(BestOfRandom(SPACE), 12, 4, 5)
  policy = MixAtlas(SPACE)
  best = policy.recommend(runs).mixture
  lost = dataclasses.replace(runs, infeasible=best[None])
  assert not matches(policy.recommend(lost).mixture[None], best[None]).any()
  # Only where nothing else is left.
  alone = MixAtlas(SPACE.with_pool(best[None]))
  everything = dataclasses.replace(runs, infeasible=np.concatenate([runs.mixtures, best[None]]))
  np.testing.assert_allclose(alone.recommend(everything).mixture.sum(), 2)
