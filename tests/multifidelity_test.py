"""The process over fidelities, by hand, and what it learns of cheap runs."""

import dataclasses

import numpy as np
import pytest
import scipy.integrate
from two_fidelities import CHEAP, HYPER, POOL, SPACE, bumps, informative, target, two_levels

from mixjax.search.multifidelity import Hyperparameters, condition, fit
from mixjax.search.observations import Observations
from mixjax.search.process import JITTER

pytestmark = pytest.mark.xdist_group("two_fidelities")


def unrelated(points):
  centers = [[0.5, 0.45, 0.05], [0.05, 0.4, 0.55], [0.3, 0.3, 0.4]]
  return bumps(points, centers, [1.0, 1.0, 0.8])


def matern(x, y, lengths):
  r = np.sqrt(5) * np.linalg.norm((x[:, None] - y) / np.array(lengths), axis=-1)
  return (1 + r + r**2 / 3) * np.exp(-r)


def kernel(x, s, y, t, hyper=HYPER):
  fading = (1 - s[:, None]) * (1 - t) * (1 + s[:, None] * t) ** hyper.power
  bias = hyper.bias_amplitude**2 * matern(x, y, hyper.bias_lengths)
  return hyper.amplitude**2 * matern(x, y, hyper.lengths) + fading * bias


@pytest.mark.parametrize("coordinates", ["raw", "sqrt"])
@pytest.mark.parametrize("stated", [False, True])
def test_the_process_is_the_linear_truncated_kernel_conditioned_on_the_runs(coordinates, stated):
  rng = np.random.default_rng(0)
  change = np.sqrt if coordinates == "sqrt" else np.asarray
  shares = np.tile([0.0, CHEAP, 0.3, 1.0], 5)
  stderr = rng.uniform(0, 0.2, 20) if stated else None
  runs = Observations(POOL[:20], target(POOL[:20]) + shares, stderr, shares)
  process = condition(runs, SPACE, HYPER, coordinates=coordinates)

  scale, center = runs.scores.std(), runs.scores.mean()
  x, new, at = change(POOL[:20]), change(POOL[20:60]), rng.uniform(0, 1, 40)
  noise = 0.2**2 + JITTER + (0 if stderr is None else (stderr / scale) ** 2)
  gram = kernel(x, shares, x, shares) + noise * np.eye(20)
  standardised = (runs.scores - center) / scale

  def posterior(y, t, z, u):
    cross = kernel(y, t, x, shares) @ np.linalg.solve(gram, kernel(x, shares, z, u))
    return scale**2 * (kernel(y, t, z, u) - cross)

  mean, sd = process.predict(POOL[20:60], at)
  ours = kernel(new, at, x, shares) @ np.linalg.solve(gram, standardised)
  np.testing.assert_allclose(mean, center + scale * ours, rtol=0, atol=1e-9)
  expected = posterior(new, at, new, at)
  np.testing.assert_allclose(sd, np.sqrt(np.diag(expected)), rtol=0, atol=1e-8)
  joint_mean, joint = process.joint(POOL[20:60], at)
  np.testing.assert_allclose(joint_mean, mean, rtol=0, atol=1e-12)
  np.testing.assert_allclose(joint, expected, rtol=0, atol=1e-9)
  np.testing.assert_allclose(
    process.covariance(POOL[20:60], at, POOL[25], at[5]), expected[:, 5], rtol=0, atol=1e-9
  )
  np.testing.assert_allclose(
    process.covariance_with_target(POOL[20:60], at),
    np.diag(posterior(new, at, new, np.ones(40))),
    rtol=0,
    atol=1e-9,
  )
  density = scipy.stats.multivariate_normal(cov=gram).logpdf(standardised)
  assert process.log_marginal == pytest.approx(density, rel=1e-9)


def test_the_fit_is_a_maximum():
  runs = two_levels(informative, 12)
  fitted = fit(runs, SPACE)
  typical = np.sqrt(2 * 2 / (3 * 4))
  medians = [typical] * 6 + [1, 1, 1, 0.1]
  spreads = np.array([1.0] * 8 + [0.5, 1.5])
  names = [field.name for field in dataclasses.fields(Hyperparameters)]

  def flat(hyper):
    return np.hstack([getattr(hyper, name) for name in names])

  def posterior(values):
    hyper = Hyperparameters(tuple(values[:3]), tuple(values[3:6]), *values[6:])
    z = np.log(values / np.array(medians)) / spreads
    return condition(runs, SPACE, hyper).log_marginal - 0.5 * np.sum(z**2)

  best = posterior(flat(fitted.hyper))
  for i in range(10):
    for factor in (0.8, 1.25):
      values = flat(fitted.hyper)
      values[i] *= factor
      assert posterior(values) < best


def test_cheap_runs_help_to_predict_the_target():
  few = two_levels(informative, 28)
  few = Observations(few.mixtures[24:], few.scores[24:], fidelity=few.fidelity[24:])
  alone, rest = few.at_target(), POOL[100:]
  errors = [np.std(fit(r, SPACE).predict(rest, 1.0)[0] - target(rest)) for r in (few, alone)]
  assert errors[0] < 0.5 * errors[1]


def test_the_correlation_of_fidelities_is_found():
  for cheap in informative, unrelated:
    truth = np.corrcoef(cheap(POOL), target(POOL))[0, 1]
    found = fit(two_levels(cheap, 30), SPACE).fidelity_correlation(CHEAP)
    assert found == pytest.approx(truth, abs=0.1)
    assert found > 0.9 if cheap is informative else abs(found) < 0.2
  # Few runs tell more where both fidelities ran the same mixtures.
  apart = two_levels(unrelated, 10)
  same = np.tile(POOL[:10], (2, 1))
  scores = np.concatenate([target(POOL[:10]), unrelated(POOL[:10])])
  together = Observations(same, scores, fidelity=apart.fidelity)
  apart, together = (fit(r, SPACE).fidelity_correlation(CHEAP) for r in (apart, together))
  assert together < apart - 0.2
  process = fit(two_levels(unrelated, 5), SPACE)
  assert process.fidelity_correlation(1.0) == pytest.approx(1)
  # The expected covariance over the expected spreads, here by drawing both functions.
  points = POOL[:15]
  mean, covariance = process.joint(np.tile(points, (2, 1)), np.repeat([CHEAP, 1.0], 15))
  values, vectors = np.linalg.eigh(covariance)
  drawn = np.random.default_rng(0).normal(size=(20_000, 30)) * np.sqrt(np.maximum(values, 0))
  drawn = (mean + drawn @ vectors.T).reshape(-1, 2, 15)
  drawn -= drawn.mean(axis=2, keepdims=True)
  spread = np.einsum("nai,nbi->ab", drawn, drawn)
  expected = spread[0, 1] / np.sqrt(spread[0, 0] * spread[1, 1])
  assert process.fidelity_correlation(CHEAP, points) == pytest.approx(expected, abs=0.01)
