"""What leaving runs out says of a surrogate, shuffled scores of an effect, and trees of both."""

import dataclasses

import numpy as np
import pytest
from peaked import SPACE, fitted, in_parts, observe, pure_noise, runs
from scipy.stats import spearmanr

from mixjax.search import surrogate, total
from mixjax.search.calibration import (
  calibration,
  cross_validation,
  effect_evidence,
  second_opinion,
)
from mixjax.search.observations import Observations, matches

pytestmark = pytest.mark.xdist_group("peaked")


def test_the_card_describes_leaving_one_out():
  card, left_out = calibration(fitted()), fitted().leave_one_out()
  errors = runs().scores - left_out.mean
  z = errors / left_out.sd
  assert card.runs == 44
  assert card.spearman == pytest.approx(spearmanr(runs().scores, left_out.mean)[0])
  assert card.rmse == pytest.approx(np.sqrt(np.mean(errors**2)))
  assert card.rmse_ratio == pytest.approx(card.rmse / runs().scores.std())
  assert card.r2 == pytest.approx(1 - np.mean(errors**2) / runs().scores.var())
  assert (card.z_mean, card.z_sd) == pytest.approx((z.mean(), z.std()))
  for percent, wide in {"50": 0.674490, "80": 1.281552, "95": 1.959964}.items():
    assert card.coverage[percent] == np.mean(np.abs(z) < wide)
  assert card.r2 > 0.8


def test_a_run_that_went_wrong_is_an_outlier():
  good = observe(40)
  scores = good.scores.copy()
  scores[7] -= 3
  card = calibration(surrogate.fit(Observations(good.mixtures, scores), SPACE))
  assert card.outliers == (7,)
  assert calibration(surrogate.fit(good, SPACE)).outliers == ()


def test_cross_validation_leaves_replicates_out_together():
  """Scores that belong to a mixture but to nothing about it can be told only from a replicate."""
  mixtures = SPACE.pool[:20]
  own = np.random.default_rng(0).normal(size=20)
  twice = Observations(np.tile(mixtures, (2, 1)), np.tile(own, 2))
  by_replicate = surrogate.condition(
    twice, SPACE, surrogate.Hyperparameters((0.05,) * SPACE.dim, 1.0, 0.1)
  )
  assert calibration(by_replicate).r2 > 0.9
  assert cross_validation(twice, SPACE).r2 < 0.1


def test_cross_validation_equals_fitting_without_the_fold():
  whole = observe(12, repeats=2)
  stderr = np.linspace(0, 0.5, 12)
  whole = Observations(whole.mixtures, whole.scores, stderr)
  # As many folds as mixtures: each is left out alone.
  card = cross_validation(whole, SPACE, folds=10)
  errors, z = [], []
  for i in range(12):
    rest = ~matches(whole.mixtures, whole.mixtures[[i]])
    fit = surrogate.fit(Observations(whole.mixtures[rest], whole.scores[rest], stderr[rest]), SPACE)
    (mean,), (sd,) = fit.predict(whole.mixtures[[i]])
    errors.append(whole.scores[i] - mean)
    z.append(errors[-1] / np.sqrt(sd**2 + fit.noise_sd**2 + stderr[i] ** 2))
  assert card.rmse == pytest.approx(np.sqrt(np.mean(np.square(errors))))
  assert card.z_sd == pytest.approx(np.std(z))


def test_parts_are_left_out_with_their_runs():
  whole = observe(14, 0.1)
  half = 0.5 * whole.scores + np.random.default_rng(3).normal(size=14)
  parts = in_parts(whole, half, whole.scores - half)
  card = cross_validation(parts, SPACE, folds=2)
  # The folds do not depend on the fit: one that writes them down tells them.
  rests = []

  def spy(runs, space):
    rests.append(runs)
    return lambda points: (np.zeros(len(points)), np.ones(len(points)))

  assert cross_validation(parts, SPACE, folds=2, fit=spy).rmse > card.rmse
  errors = []
  for rest in rests:
    out = ~matches(parts.mixtures, rest.mixtures)
    np.testing.assert_array_equal(rest.parts, parts.parts[~out])
    errors.extend(parts.scores[out] - total.fit(rest, SPACE).predict(parts.mixtures[out])[0])
  assert card.rmse == pytest.approx(np.sqrt(np.mean(np.square(errors))))
  with pytest.raises(ValueError, match="does not state"):
    cross_validation(parts, SPACE, fit=lambda runs, space: lambda p: (np.zeros(len(p)), None))


def test_there_must_be_something_to_leave_out():
  with pytest.raises(ValueError, match="1 different mixtures in 5 folds"):
    cross_validation(Observations(SPACE.pool[[0, 0]], [1.0, 2.0]), SPACE)


def test_evidence_for_an_effect_and_for_none():
  assert [effect_evidence(observe(24, 0.1, seed), SPACE).p for seed in range(3)] == [0.05] * 3
  # By design one study of pure noise in twenty looks like an effect.
  found = [effect_evidence(pure_noise(24, seed), SPACE).p for seed in range(30)]
  assert sum(p <= 0.05 for p in found) <= 4


def test_evidence_of_parts_is_of_whole_runs():
  """Twice the same part gains twice as much, and as often by chance."""
  faint = observe(16, 0.5, 4)
  alone = effect_evidence(faint, SPACE)
  assert 0.05 < alone.p < 1
  both = effect_evidence(in_parts(faint, faint.scores / 2, faint.scores / 2), SPACE)
  assert both.p == alone.p and both.gain == pytest.approx(2 * alone.gain, rel=1e-4)
  # What one benchmark gains the other loses: the sum alone cannot tell.
  noise = np.random.default_rng(0).normal(size=(2, 24)) * 0.1
  exact = observe(24, 0.0)
  traded = in_parts(exact, exact.scores + noise[0], noise[1] - exact.scores)
  assert effect_evidence(traded, SPACE).p == 0.05
  assert effect_evidence(dataclasses.replace(traded, parts=None), SPACE).p > 0.05


def test_evidence_counts_shuffles_and_nats():
  """Sure stated errors make both marginal likelihoods those of known normal distributions."""
  noise = pure_noise(10)
  stated = Observations(noise.mixtures, noise.scores, np.full(10, 50.0))
  found = effect_evidence(stated, SPACE)
  assert found.gain == pytest.approx(0, abs=0.02)
  strong = effect_evidence(observe(40), SPACE, shuffles=3)
  assert strong.p == 0.25 and strong.gain > 20


def test_opinions_agree_on_plain_facts_and_differ_on_others():
  many = observe(128)
  agreed = second_opinion(many, SPACE)
  assert agreed.spearman > 0.8 and not agreed.disagree
  assert agreed.skill == {"process": None, "trees": None}
  reverse = surrogate.fit(Observations(many.mixtures, -many.scores), SPACE)
  apart = second_opinion(many, SPACE, surrogate=reverse)
  assert apart.spearman < -0.8 and apart.disagree and min(apart.share.values()) > 1
  assert min(apart.skill.values()) > 0.8


def test_regrets_are_those_of_the_other():
  found = second_opinion(runs(), SPACE, SPACE.pool[:50], surrogate=fitted())
  mean, _ = fitted().predict(SPACE.pool[:50])
  assert found.favourite["process"] == SPACE.as_dict(SPACE.pool[np.argmax(mean)])
  theirs, _ = fitted().predict(SPACE.from_dict(found.favourite["trees"])[None])
  assert found.regret["trees"] == pytest.approx(mean.max() - theirs[0])
  assert found.share["trees"] == pytest.approx(found.regret["trees"] / (mean.max() - mean.mean()))
