"""Warnings: what is said of a study, and that nothing is said of a sound one."""

import dataclasses
import json

import numpy as np
import pytest
from peaked import CONCEPTS, SPACE, TASKS, fitted, in_parts, observe, pure_noise, runs, truth

from mixjax.search import surrogate, total
from mixjax.search.advice import warnings
from mixjax.search.calibration import (
  Evidence,
  calibration,
  cross_validation,
  effect_evidence,
  second_opinion,
)
from mixjax.search.effects import at_weights, main_effects, pair_effects
from mixjax.search.observations import Observations
from mixjax.search.space import Space, candidates
from mixjax.search.stopping import expected_gain, should_stop

pytestmark = pytest.mark.xdist_group("peaked")


def said(words, sentences):
  return any(words in sentence for sentence in sentences)


def test_nothing_is_said_of_a_sound_study():
  assert warnings(runs(), fitted()) == ()


def test_a_total_is_judged_as_one_process_is():
  apart = np.random.default_rng(5).normal(size=len(runs()))
  parts = in_parts(runs(), runs().scores / 2 + apart, runs().scores / 2 - apart)
  both = total.fit(parts, SPACE)
  gain = expected_gain(both, SPACE.pool[50:], 4)
  assert gain.noise == pytest.approx(both.noise_sd) and gain.sd > 0
  assert len(main_effects(both)) == SPACE.dim and calibration(both).runs == 44
  doubled = total.fit(in_parts(runs(), runs().scores / 2, runs().scores / 2), SPACE)
  assert warnings(in_parts(runs(), runs().scores / 2, runs().scores / 2), doubled) == ()
  for mine, theirs in zip(main_effects(doubled), main_effects(fitted()), strict=True):
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
def test_runs_that_cannot_tell(words):
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


def test_disagreement_and_bad_intervals_are_said():
  doubt = dataclasses.replace(second_opinion(runs(), SPACE, surrogate=fitted()), disagree=True)
  assert said("Boosted trees disagree", warnings(runs(), fitted(), opinion=doubt))
  lengths = (2.0 * SPACE.dim**0.5,) * SPACE.dim
  for noise, word in ((1e-3, "narrow"), (3.0, "wide")):
    wrong = surrogate.condition(runs(), SPACE, surrogate.Hyperparameters(lengths, 1e-2, noise))
    assert said(f"too {word}", warnings(runs(), wrong))
  assert said("more than 3 sds", warnings(runs(), wrong)) is False


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


def test_a_surrogate_of_other_runs_is_refused():
  with pytest.raises(ValueError, match=r"other runs \(44\) than these 30"):
    warnings(observe(30), fitted())
  with pytest.raises(ValueError, match="other runs"):
    warnings(observe(44, seed=5), fitted())


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
