import dataclasses

import numpy as np
import pytest

from mixjax.search import surrogate
from mixjax.search.acquire import KAPPA, choose_batch
from mixjax.search.observations import Observations, matches
from mixjax.search.policies.best_of_random import BestOfRandom
from mixjax.search.policies.mixatlas import MixAtlas
from mixjax.search.policies.natural import Natural
from mixjax.search.policies.regmix import RegMix, fit_trees
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


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_answers_alike_when_asked_alike(name):
  policy = POLICIES[name]
  runs = search(BestOfRandom(SPACE), 12, 4, 5)
  asked = policy.ask(runs, 4, 7)
  assert asked.shape == (4, SPACE.dim)
  np.testing.assert_allclose(SPACE.check(asked), asked, atol=1e-12)
  np.testing.assert_array_equal(asked, policy.ask(runs, 4, 7))
  assert not matches(asked, runs.mixtures).any() or name in ("uniform", "natural")
  first, second = policy.recommend(runs), policy.recommend(runs)
  np.testing.assert_array_equal(first.mixture, second.mixture)
  assert (first.mean, first.sd, first.observed) == (second.mean, second.sd, second.observed)
  np.testing.assert_allclose(SPACE.check(first.mixture[None])[0], first.mixture, atol=1e-12)


@pytest.mark.parametrize("name", ["mixatlas", "random", "regmix"])
def test_the_random_design_does_not_depend_on_the_batch(name):
  one_by_one, at_once = (search(POLICIES[name], 8, batch, 3).mixtures for batch in (1, 8))
  np.testing.assert_array_equal(one_by_one, at_once)
  assert not np.array_equal(at_once, search(POLICIES[name], 8, 8, 4).mixtures)


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


@pytest.mark.parametrize(
  "policy",
  [
    MixAtlas,
    BestOfRandom,
    RegMix,
    Uniform,
    lambda s: MixAtlas(s, recommend_by="observed"),
    lambda s: RegMix(s, recommend_by="top", top=7),
  ],
)
def test_the_floor_of_the_space_binds_every_answer(policy):
  space = make_space(floor=0.3)
  policy = policy(space)
  runs = search(policy, 16, 8, 0)
  # A baseline outside the bounds, far better than anything allowed.
  outside = space.check([[1, 0, 0, 0, 1, 0, 0]])
  runs = Observations(np.concatenate([runs.mixtures, outside]), np.append(runs.scores, 10.0))
  assert (policy.ask(runs, 6, 1) >= space.lower - 1e-12).all()
  assert (policy.recommend(runs).mixture >= space.lower - 1e-12).all()


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


@pytest.mark.parametrize("cheap", ["telling", "noise"])
def test_only_runs_of_the_highest_fidelity_count(cheap):
  """Except to the policy that finds out what the others say (`fidelities_test.py`)."""
  runs = search(BestOfRandom(SPACE), 12, 12, 0)
  others = -9 * runs.scores if cheap == "telling" else np.random.default_rng(1).normal(size=12)
  mixed = Observations(
    np.concatenate([runs.mixtures, runs.mixtures]),
    np.concatenate([runs.scores, others]),
    fidelity=np.repeat([1.0, 0.1], 12),
  )
  for policy in POLICIES.values():
    if cheap == "telling" and isinstance(policy, MixAtlas) and not policy.continuous:
      assert not np.array_equal(policy.ask(mixed, 3, 0), policy.ask(runs, 3, 0))
      continue
    np.testing.assert_array_equal(policy.ask(mixed, 3, 0), policy.ask(runs, 3, 0))
    np.testing.assert_array_equal(policy.recommend(mixed).mixture, policy.recommend(runs).mixture)


def test_fixed_mixtures_report_their_replicates():
  point = SPACE.from_dict(NATURAL)
  policy = POLICIES["natural"]
  np.testing.assert_array_equal(policy.ask(Observations.none(SPACE), 3, 0), [point] * 3)
  assert policy.recommend(Observations.none(SPACE)).mean is None
  advice = policy.recommend(Observations([point] * 3, [1.0, 2.0, 3.0]))
  assert (advice.mean, advice.sd) == pytest.approx((2.0, 1 / np.sqrt(3)))
  advice = policy.recommend(Observations([point, SPACE.uniform()], [1.0, 7.0], [0.3, 0.1]))
  assert (advice.mean, advice.sd) == pytest.approx((1.0, 0.3))
  assert policy.recommend(Observations([point], [1.0])).sd is None


def test_best_of_random_judges_replicates_by_their_mean():
  runs = Observations(SPACE.pool[[1, 1, 2]], [0.0, 10.0, 6.0], [1.0, 1.0, 0.5])
  advice = POLICIES["random"].recommend(runs)
  np.testing.assert_array_equal(advice.mixture, SPACE.pool[2])
  assert (advice.mean, advice.sd) == pytest.approx((6.0, 0.5))


@pytest.mark.parametrize("count", [1, 2, 8, 32, 120])
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_regmix_learns_from_few_runs_at_any_scale(count, scale):
  scores = scale * truth(SPACE.pool)
  predict = fit_trees(Observations(SPACE.pool[:count], scores[:count]))
  predicted = predict(SPACE.pool[200:])
  assert np.isfinite(predicted).all()
  if count >= 8:
    assert np.corrcoef(predicted, scores[200:])[0, 1] > (0.2 if count == 8 else 0.5)
  runs = Observations(SPACE.pool[:count], scores[:count])
  argmax, top = (RegMix(SPACE, how, top=16).recommend(runs) for how in ("argmax", "top"))
  best = np.argsort(-predict(SPACE.pool), kind="stable")
  np.testing.assert_allclose(argmax.mixture, SPACE.pool[best[0]], atol=1e-12)
  np.testing.assert_allclose(top.mixture, SPACE.pool[best[:16]].mean(axis=0), atol=1e-12)
  assert argmax.mean == pytest.approx(predict(SPACE.pool).max()) and argmax.sd is None


@pytest.mark.parametrize(
  ("rows", "message"),
  [
    ([[0.601, 0.3, 0.1]], "mixture 0: its weights sum to 1.001"),
    ([[0.2, 0.3, 0.5], [1.2, -0.2, 0.0]], "mixture 1: weight 1 is -0.2"),
    ([[np.nan, 0.5, 0.5]], "mixture 0: weight 0 is nan"),
  ],
)
def test_mixtures_that_are_none_are_refused_with_the_runs(rows, message):
  with pytest.raises(ValueError, match=message):
    Observations(rows, np.zeros(len(rows)))
  with pytest.raises(ValueError, match="pending " + message):
    Observations([[0.2, 0.3, 0.5]], [1.0], pending=rows)
  with pytest.raises(ValueError, match=r"3 weights but pending has shape \(1, 2\)"):
    Observations([[0.2, 0.3, 0.5]], [1.0], pending=[[0.5, 0.5]])


def test_scores_beyond_all_measure_are_refused_and_tiny_ones_are_zero():
  mixtures = SPACE.pool[:3]
  with pytest.raises(ValueError, match=r"scores of run 1 is -1e\+200"):
    Observations(mixtures, [1.0, -1e200, 2.0])
  runs = Observations(mixtures, [1e-170, 0.0, -3e-200], parts=[[1e-170], [0.0], [-3e-200]])
  assert not runs.scores.any() and not runs.parts.any()


def test_cheap_runs_of_unknown_fidelity_do_not_join_others():
  cheap = Observations(SPACE.pool[:2], [1.0, 2.0], fidelity=[1.0, 1.0])
  with pytest.raises(ValueError, match="only some of the runs state their fidelity"):
    Observations.concatenate([cheap, Observations(SPACE.pool[:1], [1.0])])
  together = Observations.concatenate([Observations.none(SPACE), cheap])
  np.testing.assert_array_equal(together.fidelity, cheap.fidelity)


def test_what_cannot_be_answered_says_why():
  bare = Space.product(CONCEPTS, TASKS)
  nothing = Observations.none(SPACE)
  runs = Observations(SPACE.pool[:398], truth(SPACE.pool[:398]))
  for policy in (MixAtlas, BestOfRandom, RegMix):
    with pytest.raises(ValueError, match="no pool"):
      policy(bare).ask(nothing, 1, 0)
    with pytest.raises(ValueError, match="only 2 not yet run"):
      policy(SPACE).ask(runs, 3, 0)
    with pytest.raises(ValueError, match="at least one"):
      policy(SPACE).ask(nothing, 0, 0)
    with pytest.raises(ValueError, match="finished run"):
      policy(SPACE).recommend(nothing)
  with pytest.raises(ValueError, match="not 'magic'"):
    MixAtlas(SPACE, acquisition="magic")
  with pytest.raises(ValueError, match="leave continuous False"):
    MixAtlas(SPACE, acquisition="thompson", continuous=True)
  with pytest.raises(ValueError, match="no weight for"):
    Natural(SPACE, {"maps": 1.0}).recommend(nothing)
  with pytest.raises(ValueError, match="2 mixtures but scores of shape"):
    Observations(SPACE.pool[:2], [1.0])
  with pytest.raises(ValueError, match="scores of run 1 is nan"):
    Observations(SPACE.pool[:2], [1.0, np.nan])
  with pytest.raises(ValueError, match="stderr of run 0 is negative"):
    Observations(SPACE.pool[:2], [1.0, 1.0], [-1.0, 0.0])


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
