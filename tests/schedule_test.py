"""Exact quotas: no cell is ever a sample off, wherever one looks."""

import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixjax.data.schedule import Schedule

weight_vectors = st.one_of(
  st.lists(st.floats(0, 1, allow_subnormal=False), min_size=1, max_size=200),
  # A few heavy cells among light ones of all magnitudes, and exact zeros.
  st.lists(st.sampled_from([0.0, 1e-9, 1e-6, 1e-3, 0.1, 1.0, 7.0]), min_size=1, max_size=200),
).filter(lambda w: sum(w) > 1e-6)


def worst_deviation(cells, weights):
  """Of any cell's count from n x weight, over all prefixes."""
  worst = 0.0
  n = np.arange(1, len(cells) + 1)
  for cell, weight in enumerate(weights):
    count = np.cumsum(cells == cell)
    worst = max(worst, np.abs(count - n * weight).max())
  return worst


@settings(max_examples=60, deadline=None)
@given(weight_vectors, st.integers(1, 2000))
def test_every_prefix_is_within_one_sample(raw, n):
  weights = np.array(raw) / np.sum(raw)
  cells, earlier = Schedule(raw).at(np.arange(n))
  assert worst_deviation(cells, weights) < 1
  assert set(cells) <= set(np.flatnonzero(weights))
  for cell in set(cells):
    np.testing.assert_array_equal(earlier[cells == cell], np.arange(np.sum(cells == cell)))


@pytest.mark.parametrize("concentration", [0.05, 1.0, 50.0])
def test_long_prefixes_keep_tijdemans_bound(concentration):
  weights = np.random.default_rng(0).dirichlet(np.full(50, concentration))
  weights[::7] = 0
  weights /= weights.sum()
  used = np.count_nonzero(weights)
  cells, _ = Schedule(weights).at(np.arange(20_000))
  assert worst_deviation(cells, weights) <= 1 - 1 / (2 * used - 2) + 1e-9


def test_the_sequence_is_tijdemans():
  """Position by position against the rule as published, in exact rational arithmetic."""
  weights = [Fraction(n, 64) for n in (30, 17, 9, 5, 2, 1)]
  slack = 1 - Fraction(1, 2 * len(weights) - 2)
  counts = [0] * len(weights)
  cells, _ = Schedule([float(w) for w in weights]).at(np.arange(200))
  for n, cell in enumerate(cells, 1):
    lag = [n * w - count for w, count in zip(weights, counts, strict=True)]
    open_to = [i for i in range(len(weights)) if lag[i] >= 1 - slack]
    deadline = [(counts[i] + slack) / w // 1 for i, w in enumerate(weights)]
    assert cell in open_to
    assert deadline[cell] == min(deadline[i] for i in open_to)
    counts[cell] += 1


@pytest.mark.parametrize("weights", [[1.0], [0.0, 3.0, 0.0], [1.0, 1e-300]])
def test_one_hot(weights):
  cells, earlier = Schedule(weights).at(np.arange(5000))
  assert np.all(cells == np.argmax(weights))
  np.testing.assert_array_equal(earlier, np.arange(5000))


def test_positions_may_be_asked_for_in_any_order():
  weights = np.random.default_rng(1).dirichlet(np.ones(20))
  whole = Schedule(weights).at(np.arange(9000))
  scattered = np.random.default_rng(2).integers(0, 9000, 500)
  schedule = Schedule(weights)
  for part in np.split(scattered, 10):
    cells, earlier = schedule.at(part)
    np.testing.assert_array_equal(cells, whole[0][part])
    np.testing.assert_array_equal(earlier, whole[1][part])
  assert [len(found) for found in schedule.at(np.arange(0))] == [0, 0]


def test_a_far_position_continues_the_count():
  """At 10**9 the counts are within 1 + the number of periods passed, and rows are not skipped."""
  weights = np.random.default_rng(3).dirichlet(np.ones(12))
  schedule = Schedule(weights, period=5000)
  far = 10**9
  assert np.all(np.abs(schedule.counts(far) - far * weights) < 1 + far / 5000)
  assert schedule.counts(far).sum() == far
  cells, earlier = schedule.at(np.arange(far - 6000, far))
  before = schedule.counts(far - 6000)
  for cell in range(12):
    expected = before[cell] + np.arange(np.sum(cells == cell))
    np.testing.assert_array_equal(earlier[cells == cell], expected)
  np.testing.assert_array_equal(schedule.counts(far) - before, np.bincount(cells, minlength=12))


def test_a_proxys_draws_are_cheap():
  weights = np.random.default_rng(4).dirichlet(np.ones(50))
  seconds = []
  for _ in range(3):
    began = time.perf_counter()
    Schedule(weights).at(np.arange(4000))
    seconds.append(time.perf_counter() - began)
  assert min(seconds) < 0.05


@pytest.mark.parametrize("weights", [[], [0.0, 0.0], [1.0, -1.0], [np.nan], [np.inf], [[1.0]]])
def test_bad_weights_are_refused(weights):
  with pytest.raises(ValueError, match=r"weights? "):
    Schedule(weights)
