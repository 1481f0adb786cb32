"""BiMix: its power law, recovered and minimised."""

import numpy as np
import pytest
from peers import BARE, SPACE, truth
from scipy.optimize import minimize

from mixjax.search.observations import Observations
from mixjax.search.policies import bimix
from mixjax.search.policies.bimix import BiMix, PowerLaw, fit_power_law


def test_bimix_recovers_its_law_and_minimises_it():
  law = PowerLaw(0.3, np.array([2.0, 0.5, 0.0, 1.0, 4.0]), np.array([0.5, 1, 0, 0.2, 0.3]), 1, 2)
  runs = Observations(SPACE.pool[:150], law(SPACE.pool[:150]))
  np.testing.assert_allclose(
    fit_power_law(runs)(SPACE.pool[150:]), law(SPACE.pool[150:]), atol=0.02 * runs.scores.std()
  )
  found = bimix.least_loss(law, BARE)
  assert found.sum() == pytest.approx(1, abs=1e-12) and found.min() >= bimix.FLOOR - 1e-12
  theirs = minimize(
    lambda p: law.loss(p[None])[0],
    BARE.uniform(),
    method="SLSQP",
    bounds=[(bimix.FLOOR, 1)] * 5,
    constraints=[{"type": "eq", "fun": lambda p: p.sum() - 1}],
    options={"ftol": 1e-14, "maxiter": 500},
  )
  assert law.loss(found[None])[0] <= theirs.fun + 1e-9
  advice = BiMix(BARE).recommend(runs)
  assert law(advice.mixture[None])[0] == pytest.approx(law(found[None])[0], abs=1e-3)
  np.testing.assert_array_equal(
    BiMix(SPACE).recommend(runs).mixture, SPACE.pool[np.argmax(law(SPACE.pool))]
  )


def test_a_zero_weight_is_no_infinite_loss():
  corners = np.concatenate([np.eye(5), SPACE.pool[:20]])
  predict = fit_power_law(Observations(corners, truth(corners)))
  predicted = predict(np.concatenate([corners, SPACE.pool]))
  assert np.isfinite(predicted).all() and np.ptp(predicted) < 10 * np.ptp(truth(corners))
