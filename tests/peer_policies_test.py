"""What holds for the policies of all others."""

import numpy as np
import pytest
from peers import BARE, FLOORED, PRODUCT, SPACE, runs_on, truth
from scipy.stats import spearmanr

from mixjax.search import tables
from mixjax.search.observations import Observations, matches
from mixjax.search.policies.bimix import BiMix, fit_power_law
from mixjax.search.policies.climb import Climb
from mixjax.search.policies.mixing_laws import MixingLaws, fit_mixing_law
from mixjax.search.policies.modomodo import (
  MoDoMoDo,
  fit_quadratic,
)
from mixjax.search.policies.olmix import Olmix, fit_log_linear

POLICIES = {
  "climb": lambda space: Climb(space, budget=28),
  "quadratic": MoDoMoDo,
  "quadratic in pool": lambda space: MoDoMoDo(space, over="pool"),
  "best split": lambda space: MoDoMoDo(space, fit="best split"),
  "olmix": Olmix,
  "mixing laws": MixingLaws,
  "bimix": BiMix,
}
POOLLESS = ("quadratic", "olmix", "mixing laws", "bimix")


@pytest.mark.parametrize("space", [SPACE, PRODUCT], ids=["simplex", "product"])
@pytest.mark.parametrize("name", POLICIES)
def test_answers_are_a_function_of_the_target_runs_and_the_key(name, space):
  policy = POLICIES[name](space)
  runs = runs_on(space, 20)
  asked = policy.ask(runs, 6, 7)
  assert matches(asked, space.pool).all() and not matches(asked, runs.mixtures).any()
  assert len(np.unique(asked, axis=0)) == 6
  mixed = Observations(
    np.concatenate([runs.mixtures, runs.mixtures]),
    np.concatenate([runs.scores, -9 * runs.scores]),
    fidelity=np.repeat([1.0, 0.1], 20),
  )
  np.testing.assert_array_equal(policy.ask(mixed, 6, 7), asked)
  assert not np.array_equal(policy.ask(runs, 6, 8), asked)
  waiting = Observations(runs.mixtures, runs.scores, pending=asked)
  assert not matches(policy.ask(waiting, 6, 7), asked).any()
  first, second = policy.recommend(runs), policy.recommend(mixed)
  np.testing.assert_array_equal(first.mixture, second.mixture)
  assert (first.mean, first.sd) == (second.mean, None)
  np.testing.assert_allclose(space.check(first.mixture[None])[0], first.mixture, atol=1e-12)


@pytest.mark.parametrize("name", ["quadratic", "olmix", "mixing laws", "bimix", "climb"])
def test_the_random_design_does_not_depend_on_the_batch(name):
  for space in (SPACE,) if name == "climb" else (SPACE, BARE):
    policy = POLICIES[name](space)
    one_by_one = Observations.none(space)
    for _ in range(8):
      asked = np.concatenate([one_by_one.mixtures, policy.ask(one_by_one, 1, 3)])
      one_by_one = Observations(asked, truth(asked))
    at_once = policy.ask(Observations.none(space), 8, 3)
    np.testing.assert_array_equal(one_by_one.mixtures, at_once)


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("count", [1, 2, 5, 30])
def test_few_runs_of_any_scale_give_a_sane_answer(name, count):
  policy = POLICIES[name](SPACE)
  if name == "best split" and count < 4:
    with pytest.raises(ValueError, match="cannot be split"):
      policy.recommend(runs_on(SPACE, count))
    return
  plain = policy.recommend(runs_on(SPACE, count))
  for scale in (1e-6, 1e6):
    scaled = policy.recommend(runs_on(SPACE, count, scale))
    # Rounding moves an optimiser a little: worth the same rather than bit for bit the same.
    assert abs(truth(scaled.mixture[None]) - truth(plain.mixture[None])) < 1e-3
    assert scaled.mean == pytest.approx(scale * plain.mean, rel=1e-2)
  if count >= 30:
    quantile = 0.5 if name == "best split" else 0.9
    assert truth(plain.mixture[None])[0] > np.quantile(truth(SPACE.pool), quantile)


@pytest.mark.parametrize("name", POOLLESS)
def test_without_a_pool_and_within_bounds(name):
  policy = POLICIES[name](FLOORED)
  asked = policy.ask(Observations.none(FLOORED), 30, 1)
  assert (asked >= FLOORED.lower - 1e-12).all()
  # A run outside the bounds, better than anything allowed.
  outside = FLOORED.check([[1, 0, 0, 1, 0, 0]])
  scores = np.append(truth(asked), 2.05)
  advice = policy.recommend(Observations(np.concatenate([asked, outside]), scores))
  assert (advice.mixture >= FLOORED.lower - 1e-12).all()
  np.testing.assert_allclose(FLOORED.check(advice.mixture[None])[0], advice.mixture, atol=1e-12)
  assert truth(advice.mixture[None])[0] > np.median(truth(asked))


def test_recorded_proxy_runs_are_ranked_as_published_fits_rank_them(regmix):
  """RegMix's 1M-parameter runs, 512 to fit and 256 to judge, one of their thirteen losses.

  The figures are those of an independent program with the same laws; another optimum of the
  log-linear law, or another ridge, is off by more.
  """
  table = tables.read(regmix)
  scores = -table.metrics["metric/the_pile_pile_cc_val_loss"]
  runs = Observations(table.mixtures[~table.test], scores[~table.test])

  def judged(fit):
    predicted, truth = fit(runs)(table.mixtures[table.test]), scores[table.test]
    return 100 * spearmanr(predicted, truth)[0], np.mean((predicted - truth) ** 2)

  for fit in (fit_log_linear, fit_mixing_law):
    assert judged(fit) == pytest.approx((96.23, 0.0093), rel=0.005, abs=0.0003)
  assert judged(fit_quadratic) == pytest.approx((93.95, 0.0131), abs=0.02)
  assert judged(fit_power_law)[0] > 90
