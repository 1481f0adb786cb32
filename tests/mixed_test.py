"""Climbing what is linked to cheaper runs, or a sum of which a part is."""

import dataclasses

import numpy as np
import pytest
from linked_runs import POOL, SPACE, TARGET, observe

from mixjax.search import fidelities, moments, process, total
from mixjax.search.acquire import KAPPA, choose_batch
from mixjax.search.constraints import Constraints
from mixjax.search.fidelities import Linked
from mixjax.search.maximize import maximize
from mixjax.search.mixed import model_of
from mixjax.search.observations import Observations, matches
from mixjax.search.policies.mixatlas import MixAtlas
from mixjax.search.space import candidates

pytestmark = pytest.mark.xdist_group("linked_runs")


@pytest.fixture(scope="module")
def runs():
  return observe(2, 0.9)[0]


@pytest.fixture(scope="module")
def linked(runs):
  found = fidelities.fit(runs, SPACE)
  assert isinstance(found, Linked)
  return found


@pytest.fixture(scope="module")
def sum_of_two(runs):
  """Two benchmarks, of which cheap runs tell of the first alone."""
  parts = np.stack([runs.scores, observe(2, 0.0)[0].scores], axis=1)
  several = Observations(runs.mixtures, parts.sum(axis=1), fidelity=runs.fidelity, parts=parts)
  found = fidelities.fit(several, SPACE)
  assert [isinstance(one, Linked) for one in found.processes] == [True, False]
  # As if the errors of the two went along, which they hardly do.
  return dataclasses.replace(found, correlation=np.array([[1.0, 0.4], [0.4, 1.0]]))


def moments_at(parts, points, told=POOL[:0], **options):
  with process.exact():
    return moments.moments_at(model_of(parts, **options), moments.Told.of(told), points)


def test_what_is_climbed_is_what_the_surrogate_says(linked):
  np.testing.assert_allclose(moments_at([linked], POOL), linked.predict(POOL), rtol=1e-6)


@pytest.mark.slow
def test_a_sum_is_climbed_as_it_says_in_whichever_order_its_parts_come(sum_of_two):
  found = moments_at(sum_of_two.processes, POOL, correlation=sum_of_two.correlation)
  np.testing.assert_allclose(found, sum_of_two.predict(POOL), rtol=1e-6)
  turned = moments_at(sum_of_two.processes[::-1], POOL, correlation=sum_of_two.correlation)
  np.testing.assert_allclose(turned, found, rtol=1e-10)


def test_runs_that_are_told_leave_the_mean_and_take_doubt(linked):
  told, points = POOL[[5, 90, 5]], POOL[40:80]
  mean, sd = moments_at([linked], points, told)
  before, covariance = linked.joint(np.concatenate([told, points]))
  here, cross = covariance[:3, :3] + linked.noise_sd**2 * np.eye(3), covariance[:3, 3:]
  left = np.diag(covariance)[3:] - np.sum(cross * np.linalg.solve(here, cross), axis=0)
  np.testing.assert_allclose(mean, before[3:], rtol=1e-6)
  np.testing.assert_allclose(sd, np.sqrt(left), rtol=1e-5)
  assert (sd < linked.predict(points)[1]).all()


def test_the_best_mixture_is_above_all_of_a_pool_and_a_batch_is_new(linked, runs):
  points = maximize([linked], 3)
  mean, sd = linked.predict(np.concatenate([points[:1], POOL, candidates(SPACE, 2000, 5)]))
  bound = mean + KAPPA * sd
  assert bound[0] > bound[1:].max()
  for place in range(3):
    known = np.concatenate([runs.mixtures[:TARGET], points[:place]])
    assert not matches(points[[place]], known).any()
  chosen = POOL[choose_batch(linked, POOL, 3)]
  mine, theirs = (
    sum(np.sum(moments_at([linked], batch[[n]], batch[:n])) for n in range(3))
    for batch in (points, chosen)
  )
  assert mine > theirs


@pytest.mark.slow
def test_under_constraints(sum_of_two):
  limits = Constraints(SPACE, upper={"a": 0.2, "b": 0.3})
  options = dict(correlation=sum_of_two.correlation, constraints=limits, kappa=0.0, repeat=True)
  (point,) = maximize(sum_of_two.processes, **options)
  assert limits.within(point[None])[0]
  inside = POOL[limits.within(POOL)]
  assert sum_of_two.predict(point[None])[0] >= sum_of_two.predict(inside)[0].max()


def test_the_policy_climbs_what_cheap_runs_are_found_to_tell(runs, linked):
  policy = MixAtlas(SPACE, seeds=8, continuous=True)
  advice, known = policy.recommend(runs), np.concatenate([POOL, runs.mixtures[:TARGET]])
  assert advice.mean >= linked.predict(known)[0].max()
  found = linked.predict(advice.mixture[None])
  assert (advice.mean, advice.sd) == pytest.approx([float(value[0]) for value in found])
  np.testing.assert_array_equal(policy.ask(runs, 2, 0), maximize([linked], 2, key=0))


@pytest.mark.slow
def test_without_a_link_it_is_the_search_of_the_target_alone_to_the_bit():
  runs = observe(2, 0.0)[0]
  assert not isinstance(fidelities.fit(runs, SPACE), Linked)
  policy = MixAtlas(SPACE, seeds=8, continuous=True)
  np.testing.assert_array_equal(policy.ask(runs, 2, 0), policy.ask(runs.at_target(), 2, 0))


def test_parts_of_other_runs_are_refused(linked, runs):
  fewer = total.fit(runs.only(np.arange(TARGET - 1)), SPACE)
  with pytest.raises(ValueError, match="process 1 was fitted to other mixtures"):
    maximize([linked, fewer])
