"""Olmix: its law, and its proposer against a grid."""

import itertools

import numpy as np
import pytest
from peers import BARE, FLOORED, SPACE, TASKS, runs_on, truth
from scipy.optimize import minimize
from scipy.special import rel_entr

from mixjax.search.observations import Observations, matches
from mixjax.search.policies import olmix
from mixjax.search.policies.bimix import fit_power_law
from mixjax.search.policies.mixing_laws import MixingLaws, fit_mixing_law
from mixjax.search.policies.modomodo import (
  fit_quadratic,
)
from mixjax.search.policies.olmix import LogLinear, Olmix, fit_log_linear
from mixjax.search.space import Space, candidates


def test_the_log_linear_fits_recover_their_law():
  held_out = SPACE.pool[200:]
  for fit in (fit_log_linear, fit_mixing_law):
    law = fit(runs_on(SPACE, 60))
    assert law.center - law.scale * law.floor == pytest.approx(2, abs=1e-3)
    np.testing.assert_allclose(law(held_out), truth(held_out), atol=1e-3)
  # A Huber loss: three absurd scores out of sixty change little.
  runs = runs_on(SPACE, 60)
  scores = runs.scores.copy()
  scores[[3, 30, 50]] += [-4, 6, -8]
  law = fit_log_linear(Observations(runs.mixtures, scores))
  assert np.abs(law(held_out) - truth(held_out)).mean() < 0.05


def test_one_run_is_a_constant_law():
  for fit in (fit_log_linear, fit_mixing_law, fit_power_law, fit_quadratic):
    predict = fit(Observations(SPACE.pool[3:4], [-0.7]))
    np.testing.assert_allclose(predict(SPACE.pool), -0.7, atol=1e-3)
    with pytest.raises(ValueError, match="no finished run"):
      fit(Observations.none(SPACE))


GRID = (
  np.array(
    [(i, j, 200 - i - j) for i, j in itertools.product(range(201), repeat=2) if i + j <= 200]
  )
  / 200
)


@pytest.mark.parametrize("pull", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("caps", [None, dict(a=0.4), dict(a=0.2, b=0.45, c=0.5)])
@pytest.mark.parametrize("floor", [0.0, 0.3])
def test_the_proposer_is_exact_in_three_dimensions(pull, caps, floor):
  space = Space.simplex("domain", ("a", "b", "c"), floor=floor)
  prior = np.array([0.2, 0.5, 0.3])
  upper = olmix.limits(space, caps)
  law = LogLinear(0.0, np.array([-2.0, 1.0, -1.5]), 0.0, 1.0)

  def cost(points):
    return law.loss(points) + pull * rel_entr(points, prior).sum(axis=1)

  found = olmix.least_loss(law, space, prior, pull, upper)
  inside = (found >= space.lower - 1e-12) & (found <= upper + 1e-12)
  assert inside.all() and found.sum() == pytest.approx(1, abs=1e-12)
  grid = GRID[((space.lower - 1e-9 <= GRID) & (upper + 1e-9 >= GRID)).all(axis=1)]
  best = cost(grid).min()
  # No point of the grid is better; the best of them is only better than ours by the least pull.
  assert cost(found[None])[0] <= best + 1e-5
  assert cost(found[None])[0] >= best - 1e-3


def test_the_proposer_is_exact_on_two_axes():
  prior = candidates(FLOORED, 5, 9)[4]
  upper = olmix.limits(FLOORED, dict(charts=0.35, vqa=0.6))
  law = LogLinear(0.0, np.array([-1.0, -3.0, 0.5, 1.0, -0.5, -2.0]), 0.0, 1.0)
  found = olmix.least_loss(law, FLOORED, prior, 0.1, upper)

  def cost(p):
    return np.exp(p @ law.slope) + 0.1 * rel_entr(p, prior).sum()

  theirs = minimize(
    cost,
    FLOORED.uniform(),
    method="SLSQP",
    bounds=list(zip(FLOORED.lower, upper, strict=True)),
    constraints=[{"type": "eq", "fun": lambda p: [p[:3].sum() - 1, p[3:].sum() - 1]}],
    options={"ftol": 1e-14, "maxiter": 500},
  )
  assert cost(found) <= theirs.fun + 1e-9
  np.testing.assert_allclose(found, theirs.x, atol=1e-4)


def test_olmix_stays_near_its_prior_and_under_its_caps():
  runs = runs_on(BARE, 40)
  prior = dict(caption=0.4, ocr=0.3, grounded=0.1, detection=0.1, vqa=0.1)
  point = BARE.from_dict(prior)

  def advised(space=BARE, **options):
    return Olmix(space, prior=prior, **options).recommend(runs).mixture

  np.testing.assert_allclose(advised(pull=1e4), point, atol=1e-3)
  apart = [rel_entr(advised(pull=pull), point).sum() for pull in (0.0, 0.05, 1.0)]
  assert apart[0] > apart[1] > apart[2] > 0
  assert np.argmax(advised(pull=0.0)) == 4 and advised(pull=0.0)[4] > 0.999
  capped = advised(pull=0.0, caps=dict(vqa=0.25, caption=0.5))
  np.testing.assert_allclose(capped, [0.5, 0, 0.25, 0, 0.25], atol=1e-3)
  for caps in (dict(vqa=0.25), dict(vqa=0.25, caption=0.3)):
    policy = Olmix(SPACE, prior=prior, caps=caps)
    assert policy.recommend(runs).mixture[4] <= 0.25
    assert (policy.ask(runs, 20, 0)[:, 4] <= 0.25).all()
    assert matches(policy.recommend(runs).mixture[None], SPACE.pool)[0]
  np.testing.assert_array_equal(advised(SPACE, over="simplex"), advised())
  zero = dict(prior, ocr=0.0, caption=0.7)
  assert Olmix(BARE, prior=zero).recommend(runs).mixture[1] == 0
  with pytest.raises(ValueError, match="no pool"):
    Olmix(BARE, over="pool").recommend(runs)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(caps=dict(tasks=0.1)), "no coordinate"),
    (dict(caps={name: 0.1 for name in TASKS}), "leave room for 0.5"),
    (dict(caps=dict(ocr=-1.0)), "under its bound"),
    (dict(prior=dict(caption=1.0)), "no weight for"),
    (dict(pull=-1.0), "not negative"),
    (dict(over="moon"), "'pool', 'simplex' or None"),
    (
      dict(prior=dict(caption=0.0, ocr=0.0, grounded=0.0, detection=0, vqa=1), caps=dict(vqa=0.5)),
      "leave room for 0.5",
    ),
  ],
)
def test_what_olmix_cannot_do_it_says(options, message):
  with pytest.raises(ValueError, match=message):
    Olmix(BARE, **options)
  if "prior" not in options and "pull" not in options:
    with pytest.raises(ValueError, match=message):
      MixingLaws(BARE, **options)
