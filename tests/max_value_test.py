"""What a run tells of the maximum at the target: by integration, and by counting."""

import itertools

import numpy as np
import pytest
import scipy.integrate
from scipy.stats import norm
from two_fidelities import CHEAP, POOL, SPACE, informative, two_levels

from mixjax.search.multifidelity import fit
from mixjax.search.observations import matches
from mixjax.search.policies.admire import (
  AdmireMultiFidelity,
  draw_joint_maxima,
  max_value_gain,
)

pytestmark = pytest.mark.xdist_group("two_fidelities")


@pytest.mark.parametrize("rho", [0.999999, 0.95, 0.6, -0.6, 0.1])
@pytest.mark.parametrize("gamma", [-4.0, -1.0, 0.0, 1.5, 4.0])
def test_max_value_gain_equals_integration_of_the_density(gamma, rho):
  rest = np.sqrt(1 - rho**2)

  def integrand(y):
    log_density = norm.logpdf(y) + norm.logcdf((gamma - rho * y) / rest) - norm.logcdf(gamma)
    return -np.exp(log_density) * log_density

  pieces = sorted({-12.0, 12.0, *np.clip(gamma / rho + np.array([-9, 0, 9]) * rest, -12, 12)})
  entropy = sum(
    scipy.integrate.quad(integrand, a, b, epsrel=1e-11, limit=200)[0]
    for a, b in itertools.pairwise(pieces)
  )
  assert max_value_gain(gamma, rho) == pytest.approx(norm.entropy() - entropy, abs=1e-7)


def test_max_value_gain_equals_monte_carlo():
  rng = np.random.default_rng(0)
  sd, noise, gamma = 0.7, 0.4, 0.5
  f = sd * rng.normal(size=2_000_000)
  y = f + noise * rng.normal(size=len(f))

  def entropy(draws):
    share, edges = np.histogram(draws, bins=400)
    share = share[share > 0] / len(draws)
    return -np.sum(share * np.log(share)) + np.log(edges[1] - edges[0])

  expected = entropy(y) - entropy(y[f <= gamma * sd])
  found = max_value_gain(gamma, sd / np.hypot(sd, noise))
  assert found == pytest.approx(expected, abs=2e-3) and found > 0.1
  # A run that has nothing to do with f tells nothing; nor does a maximum out of reach.
  assert max_value_gain(1.0, 0.0) == pytest.approx(0, abs=1e-12)
  assert max_value_gain(40.0, 0.9) == pytest.approx(0, abs=1e-12)
  assert np.isfinite(max_value_gain(np.linspace(-1e3, 1e3, 99), np.linspace(-1, 1, 99))).all()


def test_maxima_are_drawn_from_the_posterior_at_the_target():
  process = fit(two_levels(informative, 4), SPACE)
  pair = POOL[[150, 160]]
  mean, covariance = process.joint(pair, 1.0)
  spread = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
  gap = (mean[0] - mean[1]) / spread
  expected = mean[0] * norm.cdf(gap) + mean[1] * norm.cdf(-gap) + spread * norm.pdf(gap)
  drawn = draw_joint_maxima(process, pair, 40_000, 0)
  assert drawn.mean() == pytest.approx(expected, abs=4 * drawn.std() / 200)


def test_the_choice_tells_most_about_the_maximum_per_cost():
  costs = {CHEAP: 0.2, 1.0: 1.0}
  policy = AdmireMultiFidelity(SPACE, costs, draws=4)
  runs = two_levels(informative, 4)
  process = fit(runs, SPACE)
  maxima = draw_joint_maxima(process, POOL, 4, 7)
  best = {}
  for share, cost in costs.items():
    gains = []
    mean, covariance = process.joint(np.tile(POOL, (2, 1)), np.repeat([1.0, share], 200))
    for i in range(200):
      sd = np.sqrt(covariance[i, i])
      rho = covariance[i, 200 + i] / sd
      rho /= np.sqrt(covariance[200 + i, 200 + i] + process.noise_sd**2)
      gains.append(np.mean(max_value_gain((maxima - mean[i]) / sd, rho)) / cost)
    gains = np.where(matches(POOL, runs.mixtures[runs.fidelity == share]), -1, gains)
    best[share] = (max(gains), POOL[np.argmax(gains)])
  winner = max(best, key=lambda share: best[share][0])
  mixtures, fidelity = policy.ask_with_fidelity(runs, 1, 7)
  assert fidelity == winner
  np.testing.assert_array_equal(mixtures[0], best[winner][1])
  np.testing.assert_array_equal(policy.ask(runs, 1, 7)[0], best[1.0][1])
  # A cheap run that costs as much as the target has no advantage left, and one for nothing has all.
  dear, free = (AdmireMultiFidelity(SPACE, {CHEAP: c, 1.0: 1.0}) for c in (1.0, 1e-6))
  assert dear.ask_with_fidelity(runs, 1, 7)[1] == 1.0
  assert free.ask_with_fidelity(runs, 1, 7)[1] == CHEAP
