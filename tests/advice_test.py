import dataclasses
import json

import numpy as np
import pytest
from scipy.stats import norm, spearmanr

from mixjax.search import stopping, surrogate, total
from mixjax.search.acquire import choose_batch
from mixjax.search.advice import warnings
from mixjax.search.calibration import (
  Evidence,
  calibration,
  cross_validation,
  effect_evidence,
  second_opinion,
)
from mixjax.search.effects import at_weights, main_effects, pair_effects
from mixjax.search.observations import Observations, matches
from mixjax.search.policies.mixatlas import MixAtlas
from mixjax.search.space import Space, candidates
from mixjax.search.stopping import Gain, expected_gain, run_noise, should_stop

CONCEPTS, TASKS = ("maps", "charts", "faces", "signs"), ("caption", "ocr", "vqa")
SPACE = Space.product(CONCEPTS, TASKS)
SPACE = SPACE.with_pool(candidates(SPACE, 300, 0))
# Well inside both simplices.
PEAK = np.array([0.35, 0.25, 0.2, 0.2, 0.4, 0.35, 0.25])


def truth(mixtures):
  """One peak inside, and charts that are worth most with much OCR."""
  apart = np.sum((np.sqrt(mixtures) - np.sqrt(PEAK)) ** 2, axis=1)
  return 2 - apart + 3 * mixtures[:, 1] * mixtures[:, 5]


def observe(count, noise=0.02, seed=0, score=truth, repeats=0):
  """`count` runs at random from the pool, the first `repeats` of them twice."""
  rng = np.random.default_rng(seed)
  rows = rng.permutation(len(SPACE.pool))[: count - repeats]
  mixtures = SPACE.pool[np.concatenate([rows, rows[:repeats]])]
  return Observations(mixtures, score(mixtures) + noise * rng.normal(size=count))


def pure_noise(count, seed=0):
  return observe(count, 1.0, seed, score=lambda mixtures: np.zeros(len(mixtures)))


@pytest.fixture(scope="module")
def runs():
  return observe(44, repeats=6)


@pytest.fixture(scope="module")
def fitted(runs):
  return surrogate.fit(runs, SPACE)


def in_parts(observed, *parts):
  """The same mixtures, scored by the sum of `parts`."""
  parts = np.stack(parts, axis=1)
  return Observations(observed.mixtures, parts.sum(axis=1), parts=parts)


def said(words, sentences):
  return any(words in sentence for sentence in sentences)


# Calibration


def test_the_card_describes_leaving_one_out(runs, fitted):
  card, left_out = calibration(fitted), fitted.leave_one_out()
  errors = runs.scores - left_out.mean
  z = errors / left_out.sd
  assert card.runs == 44
  assert card.spearman == pytest.approx(spearmanr(runs.scores, left_out.mean)[0])
  assert card.rmse == pytest.approx(np.sqrt(np.mean(errors**2)))
  assert card.rmse_ratio == pytest.approx(card.rmse / runs.scores.std())
  assert card.r2 == pytest.approx(1 - np.mean(errors**2) / runs.scores.var())
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


# Effects


def test_the_path_keeps_proportions_and_bounds():
  space = Space.product(CONCEPTS, TASKS, floor=0.2)
  points = candidates(space, 20, 1)
  moved = at_weights(space, points, {"ocr": 0.5})
  np.testing.assert_allclose(space.check(moved), moved, atol=1e-12)
  assert (moved[:, 5] == 0.5).all() and (moved >= space.lower - 1e-12).all()
  np.testing.assert_allclose(moved[:, :4], points[:, :4], rtol=1e-14)
  above, before = moved - space.lower, points - space.lower
  np.testing.assert_allclose(above[:, 4] * before[:, 6], above[:, 6] * before[:, 4], atol=1e-12)
  both = at_weights(space, points, {"maps": 0.3, "charts": 0.4, "vqa": 0.1})
  assert (both[:, [0, 1, 6]] == [0.3, 0.4, 0.1]).all()
  np.testing.assert_allclose(both[:, [2, 3]].sum(axis=1), 0.3)
  # Nothing to keep proportions of: equal shares.
  corner = at_weights(SPACE, np.array([[1.0, 0, 0, 0, 0, 1, 0]]), {"maps": 0.4, "ocr": 0.5})
  np.testing.assert_allclose(corner, [[0.4, 0.2, 0.2, 0.2, 0.25, 0.5, 0.25]])


@pytest.mark.parametrize("weights", [{"ocr": 0.9}, {"ocr": -0.1}, {"maps": 0.6, "charts": 0.5}])
def test_weights_that_leave_too_little_are_refused(weights):
  space = Space.product(CONCEPTS, TASKS, floor=0.2)
  with pytest.raises(ValueError, match="no mixture on product"):
    at_weights(space, candidates(space, 3, 1), weights)


def true_effect(effect, bases):
  """The (second) difference of the truth that `effect` is about."""
  if len(effect.names) == 1:
    return np.mean(
      truth(at_weights(SPACE, bases, effect.high)) - truth(at_weights(SPACE, bases, effect.low))
    )
  a, b = effect.names
  corners = {
    (i, j): truth(at_weights(SPACE, bases, {a: x[a], b: y[b]})).mean()
    for i, x in enumerate((effect.low, effect.high))
    for j, y in enumerate((effect.low, effect.high))
  }
  return corners[1, 1] - corners[1, 0] - corners[0, 1] + corners[0, 0]


def test_effects_cover_the_truth():
  bases = SPACE.pool[:40]
  inside, found = {1: [], 2: []}, {1: [], 2: []}
  for seed in range(16):
    fit = surrogate.fit(observe(60, 0.05, seed), SPACE)
    # The effects of one fit are not independent: seven of them need more fits than 21 pairs do.
    pairs = pair_effects(fit, bases=bases) if seed < 4 else ()
    for effect in (*main_effects(fit, bases=bases), *pairs):
      low, high = effect.interval
      inside[len(effect.names)].append(low <= true_effect(effect, bases) <= high)
      found[len(effect.names)].append(abs(effect.mean) / effect.sd)
  assert len(inside[1]) == 16 * 7 and len(inside[2]) == 4 * 21
  for names in (1, 2):
    assert np.mean(inside[names]) >= 0.9
  # Not by being wide: most effects of one weight are told from none.
  assert np.median(found[1]) > 2


def test_an_interaction_is_found_and_none_is_invented():
  def additive(mixtures):
    return truth(mixtures) - 3 * mixtures[:, 1] * mixtures[:, 5]

  across = [(concept, task) for concept in CONCEPTS for task in TASKS]
  fit = surrogate.fit(observe(90, 0.02), SPACE)
  found = {effect.names: effect for effect in pair_effects(fit)}
  assert found["charts", "ocr"].interval[0] > 0.3
  assert max(across, key=lambda names: found[names].mean) == ("charts", "ocr")
  fit = surrogate.fit(observe(90, 0.02, score=additive), SPACE)
  none = [effect for effect in pair_effects(fit) if effect.names in across]
  assert len(none) == 12
  assert sum(effect.interval[0] < 0 < effect.interval[1] for effect in none) >= 11


def test_effects_use_the_joint_posterior_and_their_names(fitted):
  (effect,) = main_effects(fitted, ["ocr"], bases=SPACE.pool[:30])
  assert (effect.low, effect.high) == tuple(
    {"ocr": np.quantile(SPACE.pool[:, 5], q)} for q in (0.1, 0.9)
  )
  points = [at_weights(SPACE, SPACE.pool[:30], weights) for weights in (effect.high, effect.low)]
  mean, covariance = fitted.joint(np.concatenate(points))
  draws = np.random.default_rng(0).multivariate_normal(mean, covariance, 20000, method="eigh")
  changes = draws[:, :30].mean(axis=1) - draws[:, 30:].mean(axis=1)
  assert effect.mean == pytest.approx(changes.mean(), abs=5 * effect.sd / 20000**0.5)
  assert effect.sd == pytest.approx(changes.std(), rel=0.03)
  assert effect.interval == (effect.mean - 1.96 * effect.sd, effect.mean + 1.96 * effect.sd)
  assert main_effects(fitted) == main_effects(fitted)
  assert main_effects(fitted)[5] == main_effects(fitted, ["ocr"])[0]
  with pytest.raises(ValueError, match="'loc'"):
    main_effects(fitted, ["loc"])


def test_axes_of_one_and_two():
  space = Space.product(("all",), ("text", "boxes"))
  pool = candidates(space, 50, 0)
  fit = surrogate.fit(Observations(pool[:12], pool[:12, 1]), space.with_pool(pool))
  alone, text, boxes = main_effects(fit)
  assert (alone.mean, alone.sd) == pytest.approx((0, 0), abs=1e-9)
  assert boxes.mean < 0 < text.mean
  # text and boxes cannot move apart; `all` does not move.
  assert [effect.names for effect in pair_effects(fit)] == [("all", "text"), ("all", "boxes")]
  assert all(effect.mean == pytest.approx(0, abs=1e-9) for effect in pair_effects(fit))


# The next batch, and when to stop


def test_the_gain_of_one_run_is_an_integral(fitted):
  unseen = SPACE.pool[~matches(SPACE.pool, fitted.data.rows[: fitted.count])]
  gain = expected_gain(fitted, unseen, 1, samples=20000)
  mean, sd = fitted.predict(unseen)
  chosen = unseen[np.argmax(mean + 2 * sd)]
  options = np.concatenate([[chosen], unseen, fitted.data.rows[: fitted.count]])
  mean, covariance = fitted.joint(options)
  noise = fitted.noise_sd
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


def test_chunks_change_nothing(fitted, monkeypatch):
  unseen = SPACE.pool[200:]
  pending = SPACE.pool[198:200]
  whole = expected_gain(fitted, unseen, 3, pending=pending)
  monkeypatch.setattr(stopping, "CHUNK", 40)
  parts = expected_gain(fitted, unseen, 3, pending=pending)
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


# The second opinion


def test_opinions_agree_on_plain_facts_and_differ_on_others():
  many = observe(128)
  agreed = second_opinion(many, SPACE)
  assert agreed.spearman > 0.8 and not agreed.disagree
  assert agreed.skill == {"process": None, "trees": None}
  reverse = surrogate.fit(Observations(many.mixtures, -many.scores), SPACE)
  apart = second_opinion(many, SPACE, surrogate=reverse)
  assert apart.spearman < -0.8 and apart.disagree and min(apart.share.values()) > 1
  assert min(apart.skill.values()) > 0.8


def test_regrets_are_those_of_the_other(fitted, runs):
  found = second_opinion(runs, SPACE, SPACE.pool[:50], surrogate=fitted)
  mean, _ = fitted.predict(SPACE.pool[:50])
  assert found.favourite["process"] == SPACE.as_dict(SPACE.pool[np.argmax(mean)])
  theirs, _ = fitted.predict(SPACE.from_dict(found.favourite["trees"])[None])
  assert found.regret["trees"] == pytest.approx(mean.max() - theirs[0])
  assert found.share["trees"] == pytest.approx(found.regret["trees"] / (mean.max() - mean.mean()))


# Warnings


def test_nothing_is_said_of_a_sound_study(runs, fitted):
  assert warnings(runs, fitted) == ()


def test_a_total_is_judged_as_one_process_is(runs, fitted):
  apart = np.random.default_rng(5).normal(size=len(runs))
  parts = in_parts(runs, runs.scores / 2 + apart, runs.scores / 2 - apart)
  both = total.fit(parts, SPACE)
  gain = expected_gain(both, SPACE.pool[50:], 4)
  assert gain.noise == pytest.approx(both.noise_sd) and gain.sd > 0
  assert len(main_effects(both)) == SPACE.dim and calibration(both).runs == 44
  doubled = total.fit(in_parts(runs, runs.scores / 2, runs.scores / 2), SPACE)
  assert warnings(in_parts(runs, runs.scores / 2, runs.scores / 2), doubled) == ()
  for mine, theirs in zip(main_effects(doubled), main_effects(fitted), strict=True):
    assert mine.mean == pytest.approx(theirs.mean, abs=0.01)


def test_no_effect_is_said_and_then_no_optimum():
  silent = pure_noise(40, 1)
  found = warnings(silent, surrogate.fit(silent, SPACE))
  assert said("No effect of the mixture", found)
  assert not said("best candidate", found) and not said("trees", found)


DESIGNS = {
  "13 different mixtures are too few for 7 weights: run 1 more": observe(17, repeats=4),
  "No mixture was run twice": observe(30),
  "Each of the 5 repeated runs has exactly": Observations(
    observe(30).mixtures[np.r_[:25, :5]], observe(30).scores[np.r_[:25, :5]]
  ),
  "All 20 runs have the same score, 0.7": Observations(SPACE.pool[:20], np.full(20, 0.7)),
  "different scores: the benchmark is too coarse": Observations(
    observe(30).mixtures, np.round(observe(30).scores)
  ),
}


@pytest.mark.parametrize("words", DESIGNS)
def test_runs_that_cannot_tell(words, runs, fitted):
  found = warnings(DESIGNS[words], surrogate.fit(DESIGNS[words], SPACE), evidence=Evidence(9, 0.05))
  assert said(words, found)


def test_a_weight_that_never_varied_is_named():
  mixtures = at_weights(SPACE, observe(30).mixtures, {"ocr": 0.3})
  still = Observations(mixtures, truth(mixtures))
  assert said(
    "'ocr' had the same weight in every run", warnings(still, surrogate.fit(still, SPACE))
  )


def test_noise_that_dominates():
  loud = observe(120, 1.0, 2, repeats=60)
  fit = surrogate.fit(loud, SPACE)
  assert said("Noise dominates", warnings(loud, fit, evidence=Evidence(9, 0.05)))


def test_an_optimum_at_the_edge_is_named():
  def score(mixtures):
    return 2 * mixtures[:, 5] - mixtures[:, 4] + mixtures[:, 3]

  corner = np.array([[0, 0, 0, 1.0, 0, 1, 0]])
  floored = Space.product(CONCEPTS, TASKS, floor=0.3)
  lowest = floored.raise_to_floor(corner)
  inside = SPACE.pool[(SPACE.pool > 0.05).all(axis=1) & (SPACE.pool[:, 5] < 0.5)]
  most = np.array([[0.1, 0.1, 0.1, 0.7, 0.05, 0.6, 0.35]])
  spaces = {
    "whole": SPACE.with_pool(np.concatenate([SPACE.pool, corner])),
    "between": SPACE.with_pool(np.concatenate([inside, most])),
    "floored": floored.with_pool(np.concatenate([candidates(floored, 300, 0), lowest])),
  }
  found = {}
  for name, space in spaces.items():
    mixtures = space.pool[np.random.default_rng(0).permutation(len(space.pool))[:50]]
    known = Observations(
      mixtures, score(mixtures) + 0.01 * np.random.default_rng(1).normal(size=50)
    )
    found[name] = warnings(known, surrogate.fit(known, space), evidence=Evidence(9, 0.05))
  names = "'maps', 'charts', 'faces', 'caption', 'vqa'"
  assert said(f"edge of the space, almost without {names}:", found["whole"])
  assert said(f"has {names} at the lower bound", found["floored"])
  assert said("has the most 'signs', 'ocr' of the pool", found["between"])
  assert said("has the least 'caption' of the pool", found["between"])
  assert not said("of the pool", found["whole"] + found["floored"])


def test_disagreement_and_bad_intervals_are_said(runs, fitted):
  doubt = dataclasses.replace(second_opinion(runs, SPACE, surrogate=fitted), disagree=True)
  assert said("Boosted trees disagree", warnings(runs, fitted, opinion=doubt))
  lengths = (2.0 * SPACE.dim**0.5,) * SPACE.dim
  for noise, word in ((1e-3, "narrow"), (3.0, "wide")):
    wrong = surrogate.condition(runs, SPACE, surrogate.Hyperparameters(lengths, 1e-2, noise))
    assert said(f"too {word}", warnings(runs, wrong))
  assert said("more than 3 sds", warnings(runs, wrong)) is False


def test_an_outlier_is_counted_among_all_runs():
  good = observe(40)
  scores = np.concatenate([np.zeros(3), good.scores])
  scores[3 + 7] -= 3
  mixtures = np.concatenate([SPACE.pool[:3], good.mixtures])
  both = Observations(mixtures, scores, fidelity=np.repeat([0.1, 1.0], [3, 40]))
  fit = surrogate.fit(both.at_target(), SPACE)
  assert said("Runs 10 (counted from 0)", warnings(both, fit, evidence=Evidence(9, 0.05)))
  with pytest.raises(ValueError, match="at the highest fidelity"):
    warnings(both, surrogate.fit(both, SPACE))


def test_a_surrogate_of_other_runs_is_refused(runs, fitted):
  with pytest.raises(ValueError, match=r"other runs \(44\) than these 30"):
    warnings(observe(30), fitted)
  with pytest.raises(ValueError, match="other runs"):
    warnings(observe(44, seed=5), fitted)


HOSTILE = {
  "one run": (SPACE.pool[:1], [0.3]),
  "one run at zero": (SPACE.pool[:1], [0.0]),
  "two runs": (SPACE.pool[:2], [0.3, 0.5]),
  "constant": (SPACE.pool[:9], [-4.0] * 9),
  "one mixture": (np.tile(SPACE.pool[:1], (6, 1)), np.arange(6.0)),
  "copies": (np.tile(SPACE.pool[:4], (3, 1)), np.tile(np.arange(4.0), 3)),
  "corners": (np.eye(7)[[0, 1, 2, 3, 0, 1]] + np.eye(7)[[4, 5, 6, 4, 5, 6]], np.arange(6.0)),
  "one outlier": (SPACE.pool[:20], [0.0] * 19 + [1e9]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_runs_give_sane_answers(name):
  observed = Observations(*HOSTILE[name])
  fit = surrogate.fit(observed, SPACE)
  evidence, opinion = effect_evidence(observed, SPACE), second_opinion(observed, SPACE)
  gain = expected_gain(fit, SPACE.pool[50:], 4)
  answers = [calibration(fit), evidence, opinion, gain, should_stop(gain)]
  answers += [*main_effects(fit), *pair_effects(fit, ["maps", "charts", "ocr"])]
  if len(np.unique(observed.mixtures, axis=0)) > 1:
    answers.append(cross_validation(observed, SPACE))
  json.dumps([dataclasses.asdict(answer) for answer in answers], allow_nan=False)
  assert gain.mean >= 0
  assert not should_stop(gain).stop or len(observed) >= 14
  found = warnings(observed, fit, evidence=evidence, opinion=opinion)
  assert all(sentence.endswith(".") for sentence in found)
  assert not said("nan", found)
  if name == "constant":
    assert evidence.p == 1 and opinion.spearman is None and calibration(fit).spearman is None
