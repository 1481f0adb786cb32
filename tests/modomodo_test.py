"""MoDoMoDo: fits of a known quadratic, pilots, and heuristics by hand."""

import numpy as np
import pytest
from peers import BARE, PRODUCT, SLOPE, SPACE, TASKS, truth
from sklearn.linear_model import Ridge

from mixjax.search.observations import Observations, matches
from mixjax.search.policies.modomodo import (
  MoDoMoDo,
  alpha,
  coli,
  fit_best_split,
  fit_quadratic,
  norm,
  pilots,
)
from mixjax.search.space import Space


def test_the_quadratic_fits_recover_a_quadratic():
  rng = np.random.default_rng(1)
  linear, square = rng.normal(size=5), rng.normal(size=(5, 5))

  def quadratic(w):
    return 7 + w @ linear + np.einsum("ni,ij,nj->n", w, square, w)

  runs = Observations(SPACE.pool[:100], quadratic(SPACE.pool[:100]))
  held_out = SPACE.pool[100:]
  for predict in (fit_best_split(runs), fit_quadratic(runs, ridge=1e-8)):
    np.testing.assert_allclose(predict(held_out), quadratic(held_out), atol=1e-4)
  # Few noisy runs: the ridge is what keeps it from the splits' selection on noise.
  noisy = Observations(
    runs.mixtures[:24], runs.scores[:24] + 0.3 * np.random.default_rng(0).normal(size=24)
  )
  ridge, split = (
    np.mean((predict(held_out) - quadratic(held_out)) ** 2)
    for predict in (fit_quadratic(noisy), fit_best_split(noisy))
  )
  assert ridge < 0.5 * split


def test_gaussian_candidates_reach_a_peak_between_the_runs():
  peak = np.array([0.3, 0.1, 0.2, 0.25, 0.15])
  runs = Observations(SPACE.pool[:60], -np.sum((SPACE.pool[:60] - peak) ** 2, axis=1))
  found = {over: MoDoMoDo(SPACE, over=over).recommend(runs).mixture for over in ("pool", None)}
  found["bare"] = MoDoMoDo(BARE).recommend(runs).mixture
  apart = {over: np.abs(mixture - peak).max() for over, mixture in found.items()}
  assert apart[None] < 0.05 and apart["bare"] < 0.05
  assert matches(found["pool"][None], SPACE.pool)[0]
  assert not matches(found[None][None], SPACE.pool)[0]


def test_pilots_are_singles_leave_one_outs_and_all():
  mixtures, members = pilots(BARE)
  np.testing.assert_array_equal(mixtures[:5], np.eye(5))
  np.testing.assert_allclose(mixtures[5:10], (1 - np.eye(5)) / 4)
  np.testing.assert_allclose(mixtures[10], 0.2)
  np.testing.assert_array_equal(members, mixtures > 0)
  lifted, _ = pilots(Space.simplex("task", TASKS, floor=0.25))
  assert lifted.min() == pytest.approx(0.05) and lifted[0, 0] == pytest.approx(0.8)
  near, _ = pilots(SPACE)
  assert matches(near, SPACE.pool).all() and len(np.unique(near, axis=0)) == 11
  assert (np.argmax(near[:5], axis=1) == np.arange(5)).all()
  assert (np.argmin(near[5:10], axis=1) == np.arange(5)).all()
  with pytest.raises(ValueError, match="one axis"):
    pilots(PRODUCT)
  with pytest.raises(ValueError, match="a pool of 4"):
    pilots(BARE.with_pool(SPACE.pool[:4]))


def test_heuristics_by_hand():
  _, members = pilots(Space.simplex("domain", ("a", "b", "c")))
  scores = np.array([5.0, 1, 2, 4, 7, 6, 8])
  # In: a = 5+7+6+8, b = 1+4+6+8, c = 2+4+7+8. Out: a = 1+2+4, b = 5+2+7, c = 5+1+6.
  inside, outside = np.array([7, 0, 2]) / 7, np.array([0, 7, 5]) / 7
  np.testing.assert_allclose(alpha(members, scores), inside / inside.sum())
  np.testing.assert_allclose(alpha(members, scores, 0.0), outside / outside.sum())
  np.testing.assert_allclose(alpha(members, scores, 0.5), np.full(3, 1 / 3))
  np.testing.assert_allclose(alpha(members, np.ones(7)), np.full(3, 1 / 3))
  ridge = Ridge(1e-3, fit_intercept=False).fit(members.astype(float), scores)
  inflation = np.diag(np.linalg.inv(members.T.astype(float) @ members + 1e-3 * np.eye(3)))
  expected = np.maximum(ridge.coef_ / inflation, 0)
  np.testing.assert_allclose(coli(members, scores), expected / expected.sum(), rtol=1e-9)
  np.testing.assert_allclose(coli(members, -scores * 0), np.full(3, 1 / 3))
  # Best without b (0.1), worst without a (0.2), c two thirds of the way.
  np.testing.assert_allclose(norm(np.array([4.0, 7, 6])), np.array([3, 1.5, 2]) / 6.5)


@pytest.mark.parametrize("how", ["alpha", "coli", "norm"])
@pytest.mark.parametrize("space", [BARE, SPACE], ids=["bare", "pool"])
def test_heuristics_ask_for_the_pilots_first_and_answer_from_them(how, space):
  policy = MoDoMoDo(space, recommend_by=how)
  design, _ = pilots(space)
  asked = policy.ask(Observations.none(space), 7, 0)
  np.testing.assert_array_equal(asked, design[:7])
  part = Observations(asked, truth(asked))
  with pytest.raises(ValueError, match="4 of 11 pilots are no finished run"):
    policy.recommend(part)
  rest = policy.ask(part, 9, 0)
  np.testing.assert_array_equal(rest[:4], design[7:])
  assert not matches(rest[4:], design).any()
  runs = Observations(np.concatenate([asked, rest]), truth(np.concatenate([asked, rest])))
  # Whatever else has run, the scores' zero and scale: only the pilots' order and spacing count.
  alone = Observations(runs.mixtures[:11], -3e6 + 1e6 * runs.scores[:11])
  advice = policy.recommend(runs)
  np.testing.assert_allclose(advice.mixture, policy.recommend(alone).mixture, atol=1e-6)
  # The domain that hurts most gets least. The two that are worth most get most: exactly in order
  # from exact pilots, while the pool's are not pure enough to tell two saturated scores apart.
  assert np.argmax(advice.mixture) in ((4,) if space is BARE else (0, 4))
  assert np.argmin(advice.mixture) == np.argmax(SLOPE)
  inside = MoDoMoDo(SPACE, recommend_by=how, over="pool").recommend
  if space is SPACE:
    assert matches(inside(runs).mixture[None], SPACE.pool)[0]
