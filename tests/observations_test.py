import numpy as np
import pytest

from mixjax.search.observations import Observations
from mixjax.search.space import Space

ROWS = np.array([[0.2, 0.8], [0.5, 0.5], [0.9, 0.1]])
LOST = np.array([[0.6, 0.4], [0.7, 0.3]])


def test_what_is_infeasible_counts_as_the_worst_run_part_by_part():
  parts = np.array([[1.0, 2.0], [3.0, -4.0], [0.0, 0.5]])
  errors = parts**2
  runs = Observations(
    ROWS, parts.sum(axis=1), parts=parts, part_stderr=errors, pending=ROWS[:1], infeasible=LOST
  )
  seen = runs.as_worst()
  np.testing.assert_array_equal(seen.mixtures, np.concatenate([ROWS, LOST]))
  assert seen.scores.tolist() == [3.0, -1.0, 0.5, -1.0, -1.0]
  np.testing.assert_array_equal(seen.parts[3:], parts[[1, 1]])
  np.testing.assert_array_equal(seen.part_stderr[3:], errors[[1, 1]])
  np.testing.assert_array_equal(seen.pending, ROWS[:1])
  assert seen.infeasible is None and seen.as_worst() is seen
  np.testing.assert_array_equal(runs.known(), np.concatenate([ROWS, ROWS[:1], LOST]))


def test_the_worst_is_one_of_the_highest_fidelity():
  runs = Observations(ROWS, [-9.0, 2.0, 1.0], fidelity=[1.0, 8.0, 8.0], infeasible=LOST)
  seen = runs.as_worst()
  assert seen.scores[3:].tolist() == [1.0, 1.0] and seen.fidelity[3:].tolist() == [8.0, 8.0]


def test_without_a_run_nothing_is_the_worst():
  none = Observations(np.zeros((0, 2)), np.zeros(0), infeasible=LOST)
  assert none.as_worst() is none
  np.testing.assert_array_equal(none.known(), LOST)


def test_infeasible_mixtures_are_checked_as_all_are():
  with pytest.raises(ValueError, match=r"infeasible has shape \(1, 3\)"):
    Observations(ROWS, np.zeros(3), infeasible=[[0.2, 0.3, 0.5]])
  with pytest.raises(ValueError, match="infeasible mixture 0: its weights sum to"):
    Observations(ROWS, np.zeros(3), infeasible=[[0.2, 0.3]])


@pytest.mark.parametrize(
  ("rows", "message"),
  [
    ([[0.601, 0.3, 0.1]], "mixture 0: its weights sum to 1.001"),
    ([[0.2, 0.3, 0.5], [1.2, -0.2, 0.0]], "mixture 1: weight 1 is -0.2"),
    ([[np.nan, 0.5, 0.5]], "mixture 0: weight 0 is nan"),
  ],
)
def test_mixtures_that_are_none_are_refused_with_the_runs(rows, message):
  with pytest.raises(ValueError, match=message):
    Observations(rows, np.zeros(len(rows)))
  with pytest.raises(ValueError, match="pending " + message):
    Observations([[0.2, 0.3, 0.5]], [1.0], pending=rows)
  with pytest.raises(ValueError, match=r"3 weights but pending has shape \(1, 2\)"):
    Observations([[0.2, 0.3, 0.5]], [1.0], pending=[[0.5, 0.5]])


def test_scores_beyond_all_measure_are_refused_and_tiny_ones_are_zero():
  with pytest.raises(ValueError, match=r"scores of run 1 is -1e\+200"):
    Observations(ROWS, [1.0, -1e200, 2.0])
  runs = Observations(ROWS, [1e-170, 0.0, -3e-200], parts=[[1e-170], [0.0], [-3e-200]])
  assert not runs.scores.any() and not runs.parts.any()


def test_cheap_runs_of_unknown_fidelity_do_not_join_others():
  cheap = Observations(ROWS[:2], [1.0, 2.0], fidelity=[1.0, 1.0])
  with pytest.raises(ValueError, match="only some of the runs state their fidelity"):
    Observations.concatenate([cheap, Observations(ROWS[:1], [1.0])])
  together = Observations.concatenate([Observations.none(Space.simplex("two", "ab")), cheap])
  np.testing.assert_array_equal(together.fidelity, cheap.fidelity)
