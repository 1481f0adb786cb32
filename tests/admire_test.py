"""ADMIRE, with one fidelity and with several."""

import dataclasses

import numpy as np
import pytest
from two_fidelities import CHEAP, HYPER, POOL, SPACE, informative, target, two_levels

from mixjax.search.constraints import Constraints
from mixjax.search.multifidelity import condition, fit
from mixjax.search.observations import Observations, matches
from mixjax.search.policies.admire import (
  Admire,
  AdmireMultiFidelity,
)
from mixjax.search.policies.within import narrowed
from mixjax.search.space import Space, candidates

pytestmark = pytest.mark.xdist_group("two_fidelities")


@pytest.mark.parametrize("key", [0, *(pytest.param(k, marks=pytest.mark.slow) for k in (2, 4))])
def test_an_informative_cheap_fidelity_finds_the_optimum_at_half_the_cost(key):
  def regret(advice):
    top = target(POOL).max()
    return (top - target(advice.mixture[None])[0]) / (top - np.median(target(POOL)))

  policy = AdmireMultiFidelity(SPACE, {CHEAP: CHEAP, 1.0: 1.0})
  runs = Observations(np.zeros((0, 3)), np.zeros(0), fidelity=np.zeros(0))
  while runs.fidelity.sum() < 4:
    mixtures, fidelity = policy.ask_with_fidelity(runs, 1, key)
    scores = np.where(fidelity == 1, target(mixtures), informative(mixtures))
    runs = Observations(
      np.concatenate([runs.mixtures, mixtures]),
      np.append(runs.scores, scores),
      fidelity=np.append(runs.fidelity, fidelity),
    )
  assert runs.fidelity.sum() < 5
  assert regret(policy.recommend(runs)) < 0.05

  single, runs = Admire(SPACE), Observations.none(SPACE)
  while len(runs) < 10:
    mixtures = single.ask(runs, 1, key)
    scores = np.append(runs.scores, target(mixtures))
    runs = Observations(np.concatenate([runs.mixtures, mixtures]), scores)
    assert regret(single.recommend(runs)) > 0.05


def test_single_fidelity_finds_the_optimum_of_something_smooth():
  best = POOL[37]

  def smooth(points):
    return -np.sum((points - best) ** 2, axis=1)

  policy, runs = Admire(SPACE), Observations.none(SPACE)
  while len(runs) < 12:
    asked = policy.ask(runs, 2, 1)
    assert not matches(asked, runs.mixtures).any() and not matches(asked[:1], asked[1:]).any()
    scores = np.append(runs.scores, smooth(asked))
    runs = Observations(np.concatenate([runs.mixtures, asked]), scores)
  advice = policy.recommend(runs)
  gaps = smooth(POOL).max() - smooth(np.stack([advice.mixture, np.median(POOL, axis=0)]))
  assert gaps[0] < 0.02 * gaps[1]
  assert abs(advice.mean - smooth(advice.mixture[None])[0]) < 0.02


def test_a_batch_is_asked_for_at_once_or_one_by_one():
  runs = two_levels(informative, 5)
  # Pending runs are taken to be the cheapest asked for, which the last policy always chooses.
  nearly_free = AdmireMultiFidelity(SPACE, {CHEAP: 1e-6, 1.0: 1.0})
  for ask in (
    Admire(SPACE).ask,
    AdmireMultiFidelity(SPACE, {CHEAP: CHEAP, 1.0: 1.0}).ask,
    lambda *arguments: nearly_free.ask_with_fidelity(*arguments)[0],
  ):
    together = ask(runs, 4, 0)
    waiting = np.zeros((0, 3))
    for _ in range(4):
      then = dataclasses.replace(runs, pending=waiting)
      waiting = np.concatenate([waiting, ask(then, 1, 0)])
    np.testing.assert_array_equal(waiting, together)

  policy = AdmireMultiFidelity(SPACE, {CHEAP: CHEAP, 1.0: 1.0})
  mixtures, fidelity = policy.ask_with_fidelity(runs, 6, 0)
  again = policy.ask_with_fidelity(runs, 6, 0)
  np.testing.assert_array_equal(mixtures, again[0])
  np.testing.assert_array_equal(fidelity, again[1])
  rows = np.column_stack([mixtures, fidelity])
  assert len(np.unique(rows, axis=0)) == 6
  for share in CHEAP, 1.0:
    seen = runs.mixtures[runs.fidelity == share]
    assert not matches(mixtures[fidelity == share], seen).any()
  then = dataclasses.replace(runs, pending=mixtures)
  assert not matches(policy.ask_with_fidelity(then, 6, 0)[0], mixtures).any()
  assert not matches(policy.ask(then, 6, 0), np.concatenate([mixtures, runs.mixtures[:5]])).any()


def test_the_first_runs_are_random_and_cheap():
  policy = AdmireMultiFidelity(SPACE, {1.0: 1.0, CHEAP: CHEAP}, seeds=3)
  nothing = Observations.none(SPACE)
  mixtures, fidelity = policy.ask_with_fidelity(nothing, 5, 2)
  assert (fidelity == CHEAP).all()
  np.testing.assert_array_equal(mixtures, Admire(SPACE).ask(nothing, 5, 2))
  runs = Observations(mixtures[:2], informative(mixtures[:2]), fidelity=fidelity[:2])
  then, fidelity = policy.ask_with_fidelity(runs, 2, 2)
  np.testing.assert_array_equal(then[0], mixtures[2])
  assert fidelity[0] == CHEAP and not matches(then[1:], mixtures[:3]).all()


def test_each_fidelity_can_have_its_own_candidates():
  pools = {CHEAP: POOL[:40], 1.0: POOL[100:130]}
  bare = Space.simplex("domain", "abc")
  policy = AdmireMultiFidelity(bare, {CHEAP: CHEAP, 1.0: 1.0}, pools)
  points = np.concatenate([POOL[:5], POOL[100:105]])
  scores = np.concatenate([informative(points[:5]), target(points[5:])])
  runs = Observations(points, scores, fidelity=np.repeat([CHEAP, 1.0], 5))
  mixtures, fidelity = policy.ask_with_fidelity(runs, 60, 0)
  assert matches(mixtures[fidelity == CHEAP], POOL[5:40]).sum() == 35
  assert matches(mixtures[fidelity == 1], POOL[105:130]).sum() == 25
  assert matches(policy.recommend(runs).mixture[None], POOL[100:130]).all()
  with pytest.raises(ValueError, match="only 60 not yet run"):
    policy.ask_with_fidelity(runs, 61, 0)
  with pytest.raises(ValueError, match="no pool"):
    AdmireMultiFidelity(bare, {CHEAP: CHEAP, 1.0: 1.0}).ask_with_fidelity(runs, 1, 0)


def test_the_recommendation_is_the_highest_posterior_mean_at_the_target():
  runs = two_levels(informative, 6)
  multi = AdmireMultiFidelity(SPACE, {CHEAP: CHEAP, 1.0: 1.0}).recommend(runs)
  mean, sd = fit(runs, SPACE).predict(POOL, 1.0)
  best = np.argmax(mean)
  np.testing.assert_array_equal(multi.mixture, POOL[best])
  assert (multi.mean, multi.sd) == pytest.approx((mean[best], sd[best]))
  # With one fidelity only the highest counts, whatever the unit of its budget.
  steps = dataclasses.replace(runs, fidelity=4000 * runs.fidelity)
  alone = Observations(runs.mixtures[:6], runs.scores[:6])
  for policy in Admire(SPACE), Admire(SPACE, fidelity=0.3), Admire(SPACE, coordinates="sqrt"):
    advice, same = policy.recommend(steps), policy.recommend(alone)
    np.testing.assert_array_equal(advice.mixture, same.mixture)
    assert advice.mean == same.mean and advice.sd > 0
    np.testing.assert_array_equal(policy.ask(steps, 2, 0), policy.ask(alone, 2, 0))
  floored = Space.simplex("domain", "abc", floor=0.3)
  floored = floored.with_pool(candidates(floored, 50, 0))
  assert (Admire(floored).recommend(runs).mixture >= floored.lower - 1e-12).all()


HOSTILE = {
  "one run": (POOL[:1], [0.3], [1.0]),
  "one cheap run": (POOL[:1], [0.3], [CHEAP]),
  "constant": (POOL[:8], [2.0] * 8, [CHEAP, 1.0] * 4),
  "one mixture, two scores": (POOL[[0, 0]], [0.0, 1.0], [1.0, 1.0]),
  "corners": (np.eye(3), [0.0, 1.0, 2.0], [CHEAP, CHEAP, 1.0]),
  "one outlier": (POOL[:8], [0.0] * 7 + [1e9], [CHEAP, 1.0] * 4),
  "free": (POOL[:8], np.arange(8.0), [0.0, 1.0] * 4),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_runs_give_finite_answers(name):
  mixtures, scores, fidelity = HOSTILE[name]
  runs = Observations(mixtures, scores, fidelity=fidelity)
  process = fit(runs, SPACE)
  for share in 0.0, CHEAP, 1.0:
    assert np.isfinite(process.predict(POOL, share)).all()
    assert -1 <= process.fidelity_correlation(share) <= 1
  policy = AdmireMultiFidelity(SPACE, {CHEAP: CHEAP, 1.0: 1.0})
  advice = policy.recommend(runs)
  assert np.isfinite([advice.mean, advice.sd]).all()
  assert policy.ask_with_fidelity(runs, 2, 0)[0].shape == (2, 3)
  assert Admire(SPACE).ask(runs, 2, 0).shape == (2, 3)


def test_what_cannot_be_answered_says_why():
  runs = two_levels(informative, 4)
  with pytest.raises(ValueError, match=r"fidelity 4000.0 is no share .* divide every budget"):
    fit(dataclasses.replace(runs, fidelity=4000 * runs.fidelity), SPACE)
  with pytest.raises(ValueError, match="'raw' or 'sqrt', not 'log'"):
    fit(runs, SPACE, coordinates="log")
  with pytest.raises(ValueError, match="at least one finished run"):
    Admire(SPACE).recommend(Observations.none(SPACE))
  with pytest.raises(ValueError, match="pass at most 1024"):
    fit(runs, SPACE).joint(np.tile(POOL, (6, 1)), 1.0)
  with pytest.raises(ValueError, match="needs a pool"):
    fit(runs, Space.simplex("domain", "abc")).fidelity_correlation(CHEAP)
  with pytest.raises(ValueError, match="2 length-scales for 3"):
    condition(runs, SPACE, dataclasses.replace(HYPER, bias_lengths=(1.0, 1.0)))
  with pytest.raises(ValueError, match=r"in \(0, 1\], not 2"):
    Admire(SPACE, fidelity=2)
  with pytest.raises(ValueError, match=r"with 1, not \[0.05\]"):
    AdmireMultiFidelity(SPACE, {CHEAP: 1.0})
  with pytest.raises(ValueError, match="costs are above 0"):
    AdmireMultiFidelity(SPACE, {CHEAP: 0.0, 1.0: 1.0})
  with pytest.raises(ValueError, match=r"pools at \[0.5\]"):
    AdmireMultiFidelity(SPACE, {CHEAP: 0.1, 1.0: 1.0}, {0.5: POOL})
  for policy in Admire(SPACE), AdmireMultiFidelity(SPACE, {CHEAP: 0.1, 1.0: 1.0}):
    with pytest.raises(ValueError, match="at least one"):
      policy.ask(runs, 0, 0)
    with pytest.raises(ValueError, match="has only"):
      policy.ask(runs, 201, 0)


def test_under_constraints_a_narrowed_space_is_all_it_takes():
  constraints = Constraints(SPACE, upper={"a": 0.3})
  policy = AdmireMultiFidelity(narrowed(SPACE, constraints), {1.0: 1.0, CHEAP: CHEAP})
  runs = two_levels(informative, 12)
  mixtures, shares = policy.ask_with_fidelity(runs, 3, 0)
  chosen = np.concatenate([mixtures, policy.recommend(runs).mixture[None]])
  assert constraints.within(chosen).all() and set(shares) <= {1.0, CHEAP}
  free = AdmireMultiFidelity(SPACE, {1.0: 1.0, CHEAP: CHEAP})
  assert not constraints.within(free.ask_with_fidelity(runs, 3, 0)[0]).all()
