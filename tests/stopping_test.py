"""The gain of another batch, and when to stop."""

import dataclasses

import numpy as np
import pytest
from peaked import SPACE, fitted, observe, truth
from scipy.stats import norm

from mixjax.search import stopping, surrogate
from mixjax.search.acquire import choose_batch
from mixjax.search.observations import Observations, matches
from mixjax.search.policies.mixatlas import MixAtlas
from mixjax.search.stopping import Gain, expected_gain, run_noise, should_stop

pytestmark = pytest.mark.xdist_group("peaked")


def test_the_gain_of_one_run_is_an_integral():
  unseen = SPACE.pool[~matches(SPACE.pool, fitted().data.rows[: fitted().count])]
  gain = expected_gain(fitted(), unseen, 1, samples=20000)
  mean, sd = fitted().predict(unseen)
  chosen = unseen[np.argmax(mean + 2 * sd)]
  options = np.concatenate([[chosen], unseen, fitted().data.rows[: fitted().count]])
  mean, covariance = fitted().joint(options)
  noise = fitted().noise_sd
  slopes = covariance[0] / np.sqrt(covariance[0, 0] + noise**2)
  grid = np.linspace(-8, 8, 4001)
  tops = np.array([np.max(mean + slopes * z) for z in grid])
  expected = np.trapezoid(tops * norm.pdf(grid), grid) - mean.max()
  assert expected > 5 * gain.error > 0
  assert gain.mean == pytest.approx(expected, abs=4 * gain.error)
  assert gain.best == pytest.approx(mean.max())
  assert gain.sd == pytest.approx(np.sqrt(covariance[np.argmax(mean), np.argmax(mean)]))
  assert gain.noise == pytest.approx(noise) and (gain.runs, gain.weights) == (38, 7)


def test_pending_runs_take_their_part_of_the_gain():
  fit = surrogate.fit(observe(12), SPACE)
  unseen = SPACE.pool[~matches(SPACE.pool, fit.data.rows[: fit.count])]
  first = expected_gain(fit, unseen, 2)
  chosen = unseen[choose_batch(fit, unseen, 2)]
  rest = unseen[~matches(unseen, chosen)]
  after = expected_gain(fit, rest, 2, pending=chosen)
  both = expected_gain(fit, unseen, 4)
  # Greedy: the batch of four is the first two and then the two chosen with them pending.
  assert first.mean + after.mean == pytest.approx(
    both.mean, abs=4 * np.hypot(first.error, both.error)
  )
  assert 0 < after.mean < first.mean


def test_chunks_change_nothing(monkeypatch):
  unseen = SPACE.pool[200:]
  pending = SPACE.pool[198:200]
  whole = expected_gain(fitted(), unseen, 3, pending=pending)
  monkeypatch.setattr(stopping, "CHUNK", 40)
  parts = expected_gain(fitted(), unseen, 3, pending=pending)
  assert dataclasses.astuple(parts) == pytest.approx(dataclasses.astuple(whole), rel=1e-6)


def test_noise_of_a_run_includes_its_stated_error():
  stated = Observations(*dataclasses.astuple(observe(20))[:2], np.full(20, 0.3))
  fit = surrogate.fit(stated, SPACE)
  assert run_noise(fit) == pytest.approx(np.hypot(fit.noise_sd, 0.3))


def test_stops_after_convergence_and_not_before():
  policy, rng = MixAtlas(SPACE, seeds=14), np.random.default_rng(2)
  noise, best = 0.02, truth(SPACE.pool).max()
  known, stops, regrets = Observations.none(SPACE), [], []
  while len(known) < 48:
    asked = policy.ask(known, 4 if len(known) else 6, 2)
    scores = truth(asked) + noise * rng.normal(size=len(asked))
    mixtures = np.concatenate([known.mixtures, asked])
    known = Observations(mixtures, np.concatenate([known.scores, scores]))
    fit = surrogate.fit(known, SPACE)
    unseen = SPACE.pool[~matches(SPACE.pool, known.mixtures)]
    stops.append(should_stop(expected_gain(fit, unseen, 4)).stop)
    regrets.append(best - truth(SPACE.pool[[np.argmax(fit.predict(SPACE.pool)[0])]])[0])
  assert stops[-3:] == [True] * 3
  assert regrets[stops.index(True)] < 2 * noise
  assert not any(stops[:2])


def test_the_verdict_gives_its_numbers():
  gain = Gain(4, 0.1, 0.01, 2.0, 0.05, 0.3, runs=30, weights=7)
  assert should_stop(gain).stop and "0.1 (simulated to 0.01)" in should_stop(gain).reason
  assert not should_stop(dataclasses.replace(gain, error=0.03)).stop
  assert not should_stop(gain, threshold=0.11).stop
  assert should_stop(gain, threshold=0.13).stop
  few = should_stop(dataclasses.replace(gain, runs=13))
  assert not few.stop and "13 different mixtures of 7 weights" in few.reason
