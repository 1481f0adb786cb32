import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import spearmanr

from mixjax.search import process, surrogate, warp
from mixjax.search.observations import Observations
from mixjax.search.space import Space, candidates

SPACE = Space.simplex("domain", ["a", "b", "c", "d"])
POINTS = candidates(SPACE, 400, 0)
SCORES = np.array([-2.5, -0.4, 0.0, 0.3, 1.1])
REAL = np.ones(5)


def lopsided(points):
  """Losses that explode where a domain is missing, as scores: a long tail of bad mixtures."""
  return -np.sum(0.05 / (points + 0.02), axis=1)


def runs(score, count=40, noise=0.0):
  errors = noise * np.random.default_rng(1).normal(size=count)
  return Observations(POINTS[:count], score(POINTS[:count]) + errors)


@pytest.mark.parametrize("w", [-0.3, -1e-5, -1e-7, 0.0, 1e-7, 1e-5, 0.4])
def test_scores_come_back_and_slopes_are_derivatives(w):
  with process.exact():
    warped, slope = warp.apply(SCORES, REAL, w)
    back = warp.mean(warped, jnp.zeros(5), w)
    derivative = jax.vmap(jax.grad(lambda y: warp.apply(y[None], np.ones(1), w)[0][0]))(SCORES)
  np.testing.assert_allclose(back, SCORES, rtol=0, atol=1e-9)
  np.testing.assert_allclose(slope, derivative, rtol=1e-5)
  assert (np.diff(warped) > 0).all()
  if not w:
    np.testing.assert_array_equal(warped, SCORES)


@pytest.mark.parametrize("w", [-0.3, 0.4, 1e-7, 0.0])
def test_moments_are_those_of_draws(w):
  mean = np.array([0.2, -0.5])
  covariance = np.array([[0.3, 0.12], [0.12, 0.2]])
  warped = np.random.default_rng(0).multivariate_normal(mean, covariance, 400_000)
  drawn = -np.expm1(-w * warped) / w if w else warped
  with process.exact():
    expected = warp.mean(mean, np.diag(covariance), w)
    together = warp.covariance(covariance, expected[:, None], expected, w)
  np.testing.assert_allclose(expected, drawn.mean(axis=0), atol=0.005)
  np.testing.assert_allclose(together, np.cov(drawn.T), atol=0.006)


def test_the_best_score_is_never_infinitely_far():
  with process.exact():
    for z in (-50.0, 50.0):
      w = warp.from_normal(z, SCORES, REAL)
      warped, slope = warp.apply(SCORES, REAL, w)
      assert np.isfinite(warped).all() and (np.asarray(slope) > 0).all()
      assert np.sign(w) == np.sign(z)
    assert warp.from_normal(0.0, SCORES, REAL) == 0
    # Where nothing is known, the most extreme bend stays finite too.
    mean = warp.mean(np.zeros(1), np.full(1, 1e8), w)
    assert np.isfinite(warp.covariance(np.full(1, 1e8), mean, mean, w)).all()


def test_a_long_tail_is_found_at_its_end_and_none_where_there_is_none():
  below = surrogate.fit(runs(lopsided), SPACE)
  above = surrogate.fit(runs(lambda p: -lopsided(p)), SPACE)
  even = surrogate.fit(runs(lambda p: p[:, 0] - p[:, 1], noise=0.1), SPACE)
  # A positive bend stretches the top, where the many good mixtures crowd.
  assert below.hyper.warp > 0.2 and above.hyper.warp < -0.2 and abs(even.hyper.warp) < 0.1


def test_it_predicts_a_lopsided_score_better():
  truth = lopsided(POINTS[40:])
  with_it = surrogate.fit(runs(lopsided, noise=0.05), SPACE)
  without = surrogate.fit(runs(lopsided, noise=0.05), SPACE, warp=0.0)
  mean, sd = with_it.predict(POINTS[40:])
  other, _ = without.predict(POINTS[40:])
  assert np.mean((mean - truth) ** 2) < 0.7 * np.mean((other - truth) ** 2)
  assert spearmanr(mean, truth).statistic > spearmanr(other, truth).statistic
  assert np.mean(np.abs(mean - truth) <= 1.96 * np.hypot(sd, with_it.noise_sd)) > 0.9


def test_joint_and_leave_one_out_are_in_score_units():
  fitted = surrogate.fit(runs(lopsided, noise=0.05), SPACE)
  mean, sd = fitted.predict(POINTS[40:60])
  together, covariance = fitted.joint(POINTS[40:60])
  np.testing.assert_allclose(together, mean, rtol=1e-9)
  np.testing.assert_allclose(np.sqrt(np.diag(covariance)), sd, rtol=1e-6)
  assert np.linalg.eigvalsh(covariance).min() > -1e-9 * np.trace(covariance)
  left_out = fitted.leave_one_out()
  scores = runs(lopsided, noise=0.05).scores
  assert spearmanr(left_out.mean, scores).statistic > 0.9
  assert 0.85 <= left_out.coverage <= 1


def test_few_scores_are_not_bent():
  for score, count in ((lopsided, 7), (lambda p: np.ones(len(p)), 40)):
    assert surrogate.fit(runs(score, count), SPACE).hyper.warp == 0
