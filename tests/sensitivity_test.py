import numpy as np
import pytest
from scipy.stats import spearmanr

from mixjax.recipes.sensitivity import correlate, quadratic, rank_agreement

RNG = np.random.default_rng(0)
NAMES = ("a", "b", "c", "d")
WEIGHTS = RNG.dirichlet(np.ones(4), 60)
BENCHMARKS = ("linear", "pair", "noise", "constant")
SCORES = np.stack(
  [
    2 * WEIGHTS[:, 0] + 0.05 * RNG.normal(size=60),
    8 * WEIGHTS[:, 1] * WEIGHTS[:, 2] + 0.02 * RNG.normal(size=60),
    RNG.normal(size=60),
    np.full(60, 0.25),
  ],
  axis=1,
)


def test_the_map_equals_scipy():
  found = correlate(WEIGHTS, SCORES, NAMES, BENCHMARKS, permutations=100)
  for j in range(4):
    for b in range(3):
      assert found.rho[j, b] == pytest.approx(spearmanr(WEIGHTS[:, j], SCORES[:, b])[0], abs=1e-12)
  ties = correlate(np.round(WEIGHTS, 1), SCORES, NAMES, BENCHMARKS, permutations=1)
  assert ties.rho[0, 0] == pytest.approx(spearmanr(np.round(WEIGHTS[:, 0], 1), SCORES[:, 0])[0])


def test_p_values_tell_signal_from_noise():
  found = correlate(WEIGHTS, SCORES, NAMES, BENCHMARKS, permutations=1000)
  assert found.p[0, 0] == pytest.approx(1 / 1001) == found.p_map[0, 0]
  assert (found.p[:, 2] > 0.02).all() and (found.p_map >= found.p).all()
  for j in range(4):
    exact = spearmanr(WEIGHTS[:, j], SCORES[:, 2])[1]
    assert found.p[j, 2] == pytest.approx(exact, abs=0.06)
  assert (found.rho[:, 3] == 0).all() and (found.p[:, 3] == 1).all()
  again = correlate(WEIGHTS, SCORES, NAMES, BENCHMARKS, permutations=1000)
  np.testing.assert_array_equal(found.p, again.p)


def test_under_the_null_one_map_in_twenty_has_a_small_p():
  rng = np.random.default_rng(1)
  small = [
    correlate(
      rng.dirichlet(np.ones(4), 15), rng.normal(size=(15, 2)), NAMES, "xy", permutations=99, seed=i
    ).p_map.min()
    <= 0.05
    for i in range(200)
  ]
  assert 0.01 <= np.mean(small) <= 0.10


def test_the_regression_recovers_slopes_and_interactions():
  found = quadratic(WEIGHTS, SCORES, NAMES, BENCHMARKS)
  slopes = found.marginals[:, 0]
  np.testing.assert_allclose(slopes - slopes.mean(), [1.5, -0.5, -0.5, -0.5], atol=0.1)
  assert np.unravel_index(np.argmax(found.interactions[..., 1]), (4, 4)) in ((1, 2), (2, 1))
  np.testing.assert_array_equal(found.interactions, np.swapaxes(found.interactions, 0, 1))
  assert (np.diagonal(found.interactions) == 0).all()
  assert found.skill[0] > 0.97 and found.skill[1] > 0.97
  assert found.skill[2] < 0.1 and found.skill[3] == 0
  fresh = np.random.default_rng(2).dirichlet(np.ones(4), 30)
  np.testing.assert_allclose(found.predict(fresh)[:, 1], 8 * fresh[:, 1] * fresh[:, 2], atol=0.08)
  np.testing.assert_allclose(found.predict(fresh)[:, 3], 0.25)


def test_fitting_noise_earns_no_skill():
  """56 coefficients on 20 runs: a fit without shrinkage would be perfect."""
  rng = np.random.default_rng(3)
  weights = rng.dirichlet(np.ones(10), 20)
  found = quadratic(weights, rng.normal(size=(20, 3)), "abcdefghij", "xyz")
  assert (found.skill < 0.3).all()
  assert np.isfinite(found.marginals).all() and np.isfinite(found.interactions).all()


def test_weights_that_never_vary_get_no_slope():
  weights = np.concatenate([WEIGHTS, np.zeros((60, 1))], axis=1)
  names = (*NAMES, "unused")
  found = quadratic(weights, SCORES, names, BENCHMARKS)
  assert (found.marginals[4] == 0).all() and (found.interactions[4] == 0).all()
  assert (correlate(weights, SCORES, names, BENCHMARKS, permutations=5).p[4] == 1).all()


def test_rank_agreement_covers_the_truth():
  rng = np.random.default_rng(4)
  inside = []
  for seed in range(60):
    proxy = rng.normal(size=40)
    target = 0.7 * proxy + np.sqrt(1 - 0.7**2) * rng.normal(size=40)
    found = rank_agreement(proxy, target, resamples=300, seed=seed)
    assert found.low <= found.rho <= found.high and found.n == 40
    assert found.rho == pytest.approx(spearmanr(proxy, target)[0])
    inside.append(found.low <= 6 / np.pi * np.arcsin(0.35) <= found.high)
  assert np.mean(inside) > 0.85
  perfect = rank_agreement(np.arange(9.0), np.arange(9.0) ** 3)
  assert (perfect.rho, perfect.low, perfect.high) == pytest.approx((1, 1, 1))
  unknown = rank_agreement(np.zeros(5), np.arange(5.0))
  assert (unknown.rho, unknown.low, unknown.high) == (0, -1, 1)


@pytest.mark.parametrize("analyse", [correlate, quadratic])
def test_what_cannot_be_analysed_says_why(analyse):
  with pytest.raises(ValueError, match="do not fit"):
    analyse(WEIGHTS, SCORES, NAMES[:3], BENCHMARKS)
  with pytest.raises(ValueError, match="three are the least"):
    analyse(WEIGHTS[:2], SCORES[:2], NAMES, BENCHMARKS)
  with pytest.raises(ValueError, match="finite"):
    analyse(WEIGHTS, SCORES * np.nan, NAMES, BENCHMARKS)
