import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from objective_test import NAMES, SPACE, problem

from mixjax.search import pareto
from mixjax.search.benchmarks import Benchmarks
from mixjax.search.constrained import recommend
from mixjax.search.objective import Objective
from mixjax.search.pareto import front, front_of, hypervolume, trade_off

# Few different values: ties and equal rows are what fronts go wrong on.
SCORES = arrays(
  np.float64,
  st.tuples(st.integers(0, 12), st.integers(1, 4)),
  elements=st.sampled_from([-2.0, -0.1, 0.0, 0.1, 0.1 + 1e-16, 1.0, 1e17, 1e17 + 64]),
)


def beaten(scores, row):
  return any(all(other >= row) and any(other > row) for other in scores)


@settings(max_examples=300, deadline=None)
@given(SCORES)
def test_the_front_is_every_row_that_no_other_beats(scores):
  expected = [not beaten(scores, row) for row in scores]
  np.testing.assert_array_equal(front(scores), expected)


def test_equal_rows_are_on_the_front_together():
  np.testing.assert_array_equal(front([[1, 2], [1, 2], [1, 1], [2, 0]]), [True, True, False, True])


def test_a_score_that_is_not_a_number_is_named():
  with pytest.raises(ValueError, match="score 1 of row 2"):
    front([[1, 2], [1, 3], [0, np.nan]])


@settings(max_examples=100, deadline=None)
@given(
  arrays(np.int64, st.tuples(st.integers(0, 8), st.integers(1, 3)), elements=st.integers(-1, 5))
)
def test_hypervolume_counts_the_unit_cubes_below_the_front(scores):
  """On whole numbers the volume above the origin is the number of lattice cubes covered."""
  corners = np.indices((5,) * scores.shape[1]).reshape(scores.shape[1], -1).T
  inside = [(scores >= corner + 1).all(axis=1).any() for corner in corners]
  assert hypervolume(scores, np.zeros(scores.shape[1])) == sum(inside)


def test_hypervolume_is_measured_from_the_reference():
  scores = np.array([[0.5, 2.0], [1.5, 1.0], [-3.0, 9.0]])
  assert hypervolume(scores, np.array([-1.0, 0.5])) == pytest.approx(1.5 * 1.5 + 1.0 * 0.5)
  assert hypervolume(scores[::-1], np.array([-1.0, 0.5])) == pytest.approx(2.75)
  with pytest.raises(ValueError, match="reference"):
    hypervolume(scores, np.zeros(3))


def test_probability_of_the_front_is_calibrated():
  """Over problems drawn from the prior: as many are truly on the front as the draws say."""
  names = ("captions", "counting")
  said, held = [], []
  for seed in range(15):
    benchmarks, truth = problem(seed)
    found = front_of(benchmarks, SPACE.pool, names=names, draws=64)
    said.append(found.probability)
    held.append(front(truth[:, [0, 2]]))
  said, held = np.concatenate(said), np.concatenate(held)
  assert said.sum() == pytest.approx(held.sum(), rel=0.15)
  sure = said > 0.5
  assert sure.sum() > 20
  assert held[sure].mean() == pytest.approx(said[sure].mean(), abs=0.12)
  assert held[said < 0.02].mean() < 0.03


def test_the_front_believed_in():
  benchmarks, _ = problem(0)
  found = front_of(benchmarks, names=("counting", "captions"), draws=32, key=3)
  forecast = benchmarks.forecast()
  np.testing.assert_array_equal(found.mean, forecast.mean[:, [2, 0]])
  np.testing.assert_array_equal(found.mixtures, forecast.mixtures)
  np.testing.assert_array_equal(found.on_front, front(found.mean))
  again = front_of(benchmarks, names=("counting", "captions"), draws=32, key=3)
  np.testing.assert_array_equal(found.probability, again.probability)
  with pytest.raises(ValueError, match="ocr"):
    front_of(benchmarks, names=("ocr",))


def test_leaving_hopeless_mixtures_out_of_the_draws_changes_nothing(monkeypatch):
  benchmarks, _ = problem(0)
  drawn = []

  def draw(self, points, *arguments):
    drawn.append(len(points))
    return original(self, points, *arguments)

  original = Benchmarks.draw
  monkeypatch.setattr(Benchmarks, "draw", draw)
  found = front_of(benchmarks, SPACE.pool, names=("captions", "charts"), draws=2000)
  monkeypatch.setattr(pareto, "SURE", np.inf)
  whole = front_of(benchmarks, SPACE.pool, names=("captions", "charts"), draws=2000)
  assert drawn[0] < 0.9 * drawn[1] == 0.9 * len(SPACE.pool)
  np.testing.assert_allclose(found.probability, whole.probability, atol=0.05)


def test_the_front_of_losses_is_on_the_other_side():
  benchmarks, _ = problem(0)
  found = front_of(benchmarks, SPACE.pool, names=NAMES[:2], minimize=True, draws=32)
  np.testing.assert_array_equal(found.on_front, front(-found.mean))
  worst = found.mean.sum(axis=1).argmax()
  assert found.probability[worst] < 0.2 and not found.on_front[worst]


def test_a_trade_off_goes_along_the_front_from_one_objective_to_the_other():
  benchmarks, _ = problem(1)
  forecast = benchmarks.forecast()
  start, end = Objective({"captions": 2.0}), Objective({"counting": 1.0})
  path = trade_off(benchmarks, start, end, 7, forecast=forecast)
  ends = [recommend(benchmarks, objective, forecast=forecast) for objective in (start, end)]
  for found, expected in zip((path[0], path[-1]), ends, strict=True):
    np.testing.assert_array_equal(found.mixture, expected.mixture)
    assert found.mean == pytest.approx(expected.mean)
  rows = [np.argmin(np.abs(forecast.mixtures - choice.mixture).sum(axis=1)) for choice in path]
  assert front(forecast.mean[:, [0, 2]])[rows].all()
  assert (np.diff(forecast.mean[rows, 0]) <= 0).all() and (
    np.diff(forecast.mean[rows, 2]) >= 0
  ).all()
  assert len(set(rows)) > 2


def test_a_trade_off_keeps_the_floors_of_both_ends():
  benchmarks, _ = problem(1)
  forecast = benchmarks.forecast()
  floor = float(np.median(forecast.mean[:, 1]))
  start = Objective({"captions": 1.0}, {"charts": floor})
  end = Objective({"counting": 1.0}, {"charts": floor - 1, "captions": -1.0})
  for choice in trade_off(benchmarks, start, end, 3, forecast=forecast):
    assert choice.feasible and set(choice.kept) == {"charts", "captions"}
    row = np.argmin(np.abs(forecast.mixtures - choice.mixture).sum(axis=1))
    assert forecast.mean[row, 1] > floor


def test_a_trade_off_of_losses_and_what_cannot_be():
  benchmarks, _ = problem(1)
  losses = [Objective({n: 1.0}, minimize=True) for n in ("captions", "counting")]
  path = trade_off(benchmarks, *losses, 2)
  assert [-choice.mean for choice in path] == pytest.approx(
    benchmarks.forecast().mean[:, [0, 2]].min(axis=0)
  )
  with pytest.raises(ValueError, match="direction"):
    trade_off(benchmarks, losses[0], Objective(), 2)
  with pytest.raises(ValueError, match="at least 2 steps"):
    trade_off(benchmarks, Objective(), Objective(), 1)
