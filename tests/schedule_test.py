"""Exact quotas: no cell is ever a sample off, wherever one looks."""

import hashlib
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixjax.data.schedule import Schedule

# Of the weights in `test_recorded_runs_read_the_same_samples`, by the rule as it was first written.
SEQUENCE = "dd9ee9c2577cb92a02f5080353b9e479c1f05f6ada3b37aaf668c64371910515"

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


def test_recorded_runs_read_the_same_samples():
  weights = [1 / n for n in range(1, 60)] + [0.0, 1e-9, 1e-5]
  cells, earlier = Schedule(weights).at(np.arange(20_000))
  digest = hashlib.sha256(cells.astype("<i4").tobytes() + earlier.astype("<i8").tobytes())
  assert digest.hexdigest() == SEQUENCE, (
    "equal weights gave another sequence: no run can be resumed"
  )


@pytest.mark.parametrize("cells", [1, 2, 3, 17, 60])
def test_later_laps_do_not_drift(cells):
  """Beyond the first lap a count is within one sample, or a little more where laps meet."""
  for seed in range(4):
    random = np.random.default_rng([cells, seed])
    weights = random.dirichlet(np.full(cells, random.choice([0.1, 1, 20])))
    weights = np.where(random.random(cells) < 0.2, 1e-9, weights)
    weights /= weights.sum()
    schedule = Schedule(weights, period=500)
    found, earlier = schedule.at(np.arange(20_250))
    counts = np.cumsum(found[:, None] == np.arange(cells), axis=0)
    np.testing.assert_array_equal(earlier, counts[np.arange(20_250), found] - 1)
    deviation = np.abs(counts - np.arange(1, 20_251)[:, None] * weights).max(axis=1)
    assert deviation[:500].max() < 1
    assert deviation.max() < 1.5
    assert np.mean(deviation >= 1) < 0.003


@pytest.mark.parametrize("cells", [12, 1000])
def test_a_far_position_is_as_exact_and_as_quick(cells):
  weights = np.random.default_rng(3).dirichlet(np.ones(cells))
  schedule = Schedule(weights, period=5000)
  far = 10**9 + 1234
  began = time.perf_counter()
  counts = schedule.counts(far)
  assert time.perf_counter() - began < 5, "positions before were gone through"
  assert np.abs(counts - far * weights).max() < 1.5
  assert counts.sum() == far
  found, earlier = schedule.at(np.arange(far - 6000, far))
  before = schedule.counts(far - 6000)
  for cell in range(cells):
    expected = before[cell] + np.arange(np.sum(found == cell))
    np.testing.assert_array_equal(earlier[found == cell], expected)
  np.testing.assert_array_equal(counts - before, np.bincount(found, minlength=cells))


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
