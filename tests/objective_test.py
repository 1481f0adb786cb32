"""Weights, floors, and the score vectors of trials."""

import numpy as np
import pytest
from scipy.stats import t
from three_benchmarks import NAMES, SPACE, problem

from mixjax.search.constrained import (
  recommend,
)
from mixjax.search.objective import Objective, ScoreVectors
from mixjax.search.study import observe
from mixjax.search.trial import Trial

pytestmark = pytest.mark.xdist_group("three_benchmarks")


def scored(*scores, stderr=None):
  return {n: {"score": s, "stderr": stderr} for n, s in zip(NAMES, scores, strict=True)}


def test_a_weighted_mean_with_the_error_of_independent_benchmarks():
  scores = {"captions": {"score": 2, "stderr": 0.3}, "charts": {"score": 6, "stderr": 0.4}}
  assert Objective()(scores) == (4.0, pytest.approx(0.25))
  weighted = Objective({"charts": 3, "captions": 1})(scores)
  assert weighted == (5.0, pytest.approx(np.hypot(0.75 * 0.4, 0.25 * 0.3)))
  assert Objective({"charts": 2})(scores) == (6.0, 0.4)
  assert Objective({"charts": 2}, minimize=True)(scores) == (-6.0, 0.4)


def test_an_unknown_error_counts_only_where_there_is_weight():
  scores = {"captions": {"score": 2, "stderr": None}, "charts": {"score": 6, "stderr": 0.4}}
  assert Objective()(scores) == (4.0, None)
  assert Objective({"charts": 1, "captions": 0})(scores) == (6.0, 0.4)


@pytest.mark.parametrize(
  "objective", [Objective({"ocr": 1.0}), Objective(floors={"ocr": 0.0})], ids=["weight", "floor"]
)
def test_a_benchmark_without_score_is_named(objective):
  with pytest.raises(ValueError, match=r"\['ocr'\].*captions"):
    objective(scored(1, 2, 3))
  with pytest.raises(ValueError, match="ocr"):
    recommend(problem(0)[0], objective)


def test_weights_and_floors_are_checked():
  with pytest.raises(ValueError, match="'charts' is -1"):
    Objective({"captions": 2, "charts": -1})
  with pytest.raises(ValueError, match="no benchmark has a weight"):
    Objective({"captions": 0.0})
  with pytest.raises(ValueError, match="floor of 'charts' is nan"):
    Objective(floors={"charts": float("nan")})


def test_not_below_is_the_mean_less_slack_or_its_lower_confidence_bound():
  baseline = [scored(1, 5, 2), scored(3, 5, 2), scored(2, 5, 8)]
  assert Objective().not_below(baseline).floors == {"captions": 2, "charts": 5, "counting": 4}
  lenient = Objective().not_below(baseline, slack={"charts": 1.5})
  assert lenient.floors == {"captions": 2, "charts": 3.5, "counting": 4}
  bound = Objective().not_below(baseline, slack=0.5, level=0.95).floors["captions"]
  assert bound == pytest.approx(1.5 - t.ppf(0.95, 2) / np.sqrt(3))
  losses = Objective(minimize=True).not_below(baseline, slack=0.5, level=0.95).floors["captions"]
  assert losses == pytest.approx(2.5 + t.ppf(0.95, 2) / np.sqrt(3))


def test_the_stricter_of_two_floors_holds():
  baseline = [scored(1, 5, 2)]
  both = Objective(floors={"captions": 3.0, "charts": 4.0}).not_below(baseline)
  assert both.floors == {"captions": 3, "charts": 5, "counting": 2}
  losses = Objective(floors={"captions": 3.0}, minimize=True).not_below(baseline)
  assert losses.floors["captions"] == 1


def test_not_below_needs_replicates_of_the_same_benchmarks():
  with pytest.raises(ValueError, match="1 replicates"):
    Objective().not_below([scored(1, 2, 3)], level=0.9)
  with pytest.raises(ValueError, match="counting"):
    Objective().not_below([scored(1, 2, 3), {n: {"score": 1} for n in NAMES[:2]}])
  with pytest.raises(ValueError, match="ocr"):
    Objective().not_below([scored(1, 2, 3)], slack={"ocr": 1})


def trial(number, scores, axis="three", fidelity=None):
  point = SPACE.as_dict(SPACE.pool[number])
  state = "done" if scores else "queued"
  return Trial(number, "test", axis, point, point, 0, fidelity, state=state, scores=scores)


def test_score_vectors_of_trials_give_what_observe_gives():
  objective = Objective({"captions": 1, "counting": 3})
  trials = [
    trial(3, scored(1, 2, 3, stderr=0.1)),
    trial(4, None),
    trial(5, scored(4, 5, 6), axis="other"),
    trial(6, dict(reversed(scored(7, 8, 9, stderr=0.2).items()))),
  ]
  runs = ScoreVectors.of(trials, SPACE)
  np.testing.assert_array_equal(runs.scores, [[1, 2, 3], [7, 8, 9]])
  ours, theirs = runs.observations(objective), observe(trials, SPACE, objective)
  for field in ("mixtures", "scores", "stderr"):
    np.testing.assert_allclose(getattr(ours, field), getattr(theirs, field), rtol=1e-12)
  np.testing.assert_array_equal(ours.pending, theirs.pending)
  unknown = ScoreVectors.of([*trials, trial(8, scored(1, 1, 1))], SPACE)
  assert unknown.observations(objective).stderr is None


def test_score_vectors_keep_the_highest_fidelity_and_miss_no_benchmark():
  runs = ScoreVectors.of(
    [trial(3, scored(1, 2, 3), fidelity=1.0), trial(4, scored(4, 5, 6), fidelity=2.0)], SPACE
  )
  np.testing.assert_array_equal(runs.scores, [[4, 5, 6]])
  lacking = {n: s for n, s in scored(1, 2, 3).items() if n != "charts"}
  with pytest.raises(ValueError, match=r"trial 4 .*charts"):
    ScoreVectors.of([trial(3, scored(1, 2, 3)), trial(4, lacking)], SPACE)
  with pytest.raises(ValueError, match="none of 1 trials"):
    ScoreVectors.of([trial(3, None)], SPACE)


def test_shapes_of_score_vectors_are_checked():
  with pytest.raises(ValueError, match=r"\(2, 3\), not \(2, 2\)"):
    ScoreVectors(NAMES, SPACE.pool[:2], np.zeros((2, 2)))
