"""What holds for all policies."""

import numpy as np
import pytest
from known_optimum import CONCEPTS, NATURAL, POLICIES, SPACE, TASKS, make_space, search, truth

from mixjax.search.observations import Observations, matches
from mixjax.search.policies.best_of_random import BestOfRandom
from mixjax.search.policies.mixatlas import MixAtlas
from mixjax.search.policies.natural import Natural
from mixjax.search.policies.regmix import RegMix, fit_trees
from mixjax.search.policies.uniform import Uniform
from mixjax.search.space import Space

pytestmark = pytest.mark.xdist_group("known_optimum")


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
    if cheap == "telling" and isinstance(policy, MixAtlas):
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
