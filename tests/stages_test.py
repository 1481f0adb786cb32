"""Mixtures that change during a run: what each cell is given, and what a restart finds again."""

import json

import numpy as np
import pytest

from mixjax.data.sampler import Sampler
from mixjax.data.schedule import Schedule
from mixjax.data.stages import StagedSchedule, Stages

SIZES = {"a/vqa": 7, "b/vqa": 100, "c/vqa": 30, "d/ocr": 1}
EARLY = {"a/vqa": 0.7, "b/vqa": 0.3}
LATE = {"b/vqa": 0.25, "c/vqa": 0.5, "d/ocr": 0.25}


def deviations(starts, weights, n):
  """(of counts from what all stages promised so far, of each stage's own counts), at worst."""
  cells, earlier = StagedSchedule(starts, weights).at(np.arange(n))
  counts = np.cumsum(cells[:, None] == np.arange(len(weights[0])), axis=0)
  np.testing.assert_array_equal(earlier, counts[np.arange(n), cells] - 1)
  stage = np.searchsorted(starts, np.arange(n), "right") - 1
  given = np.array(weights)[stage]
  assert np.all(given[np.arange(n), cells] > 0), "a cell of weight 0 was read"
  owed = np.cumsum(given, axis=0) - counts
  at_start = np.concatenate([np.zeros((1, owed.shape[1])), owed])[np.array(starts)[stage]]
  return np.abs(owed).max(), np.abs(owed - at_start).max()


def test_one_stage_is_a_schedule():
  weights = np.random.default_rng(0).dirichlet(np.ones(20))
  for one, other in zip(
    StagedSchedule([0], [weights]).at(np.arange(5000)),
    Schedule(weights).at(np.arange(5000)),
    strict=True,
  ):
    np.testing.assert_array_equal(one, other, strict=True)


def test_a_stage_of_equal_weights_changes_nothing():
  weights = np.random.default_rng(1).dirichlet(np.ones(20))
  cells, earlier = StagedSchedule([0, 64, 65, 3000], [weights] * 4).at(np.arange(6000))
  expected = Schedule(weights).at(np.arange(6000))
  np.testing.assert_array_equal(cells, expected[0])
  np.testing.assert_array_equal(earlier, expected[1])


@pytest.mark.parametrize("length", [1, 13, 200])
def test_weights_that_move_at_every_stage_are_followed_within_one_sample(length):
  """As an online mixer moves them; anew at each stage, cells would end tens of samples off."""
  random = np.random.default_rng(2)
  for cells in (2, 10, 50):
    moves = 0.1 * random.normal(size=(60, cells)).cumsum(axis=0) + random.normal(size=cells)
    weights = np.exp(moves) / np.exp(moves).sum(axis=1, keepdims=True)
    total, own = deviations(np.arange(60) * length, weights, 60 * length)
    assert total < 1
    assert own < 2


def test_weights_that_jump_to_zero_are_followed_within_two_samples():
  random = np.random.default_rng(3)
  for cells in (3, 8, 40):
    weights = random.dirichlet(np.ones(cells), size=30) * (random.random((30, cells)) < 0.4)
    weights[:, 0] += 1e-9  # never all zero
    weights /= weights.sum(axis=1, keepdims=True)
    starts = np.concatenate([[0], np.cumsum(random.integers(1, 200, 29))])
    total, _ = deviations(starts, weights, int(starts[-1]) + 500)
    assert total < 2


def test_a_far_position_needs_no_pass_over_those_before():
  weights = np.random.default_rng(4).dirichlet(np.ones(12), size=3)
  starts = [0, 10**9, 10**9 + 77]
  schedule = StagedSchedule(starts, weights, period=4096)
  end = 2 * 10**9
  cells, earlier = schedule.at(np.arange(end - 9000, end))
  np.testing.assert_array_equal(
    schedule.counts(end) - schedule.counts(end - 9000), np.bincount(cells, minlength=12)
  )
  for cell in range(12):
    first = schedule.counts(end - 9000)[cell]
    np.testing.assert_array_equal(earlier[cells == cell], first + np.arange(np.sum(cells == cell)))
  promised = 10**9 * weights[0] + 77 * weights[1] + (end - starts[2]) * weights[2]
  np.testing.assert_allclose(schedule.quotas(end), promised)
  assert np.abs(schedule.counts(end) - promised).max() < 1.5


def test_no_cell_loses_its_place_in_its_epoch():
  stages = Stages.of(EARLY).then(50, LATE).then(90, EARLY)
  cell, row = Sampler(stages, SIZES, seed=1).rows(0, 1000)
  for name, rows in SIZES.items():
    mine = row[cell == list(SIZES).index(name)]
    assert np.all(np.sort(mine[: len(mine) // rows * rows].reshape(-1, rows)) == np.arange(rows))
    alone = Sampler({name: 1.0}, SIZES, seed=1).rows(0, len(mine))[1]
    np.testing.assert_array_equal(mine, alone)


def test_a_stage_appended_during_a_run_leaves_what_was_read():
  online = Sampler(EARLY, SIZES, seed=1)
  read = online.rows(0, 128)
  online.append(128, LATE)
  online.append(300, EARLY)
  known = Sampler(Stages.of(EARLY).then(128, LATE).then(300, EARLY), SIZES, seed=1)
  for window in ((0, 128), (100, 60), (128, 400)):
    for one, other in zip(online.rows(*window), known.rows(*window), strict=True):
      np.testing.assert_array_equal(one, other)
  for one, other in zip(read, known.rows(0, 128), strict=True):
    np.testing.assert_array_equal(one, other)
  np.testing.assert_array_equal(online.counts(500), known.counts(500))
  with pytest.raises(ValueError, match="from sample 300 on cannot follow one from 300 on"):
    online.append(300, LATE)
  with pytest.raises(ValueError, match=r"from sample 400 on, the weights sum to 0\.5"):
    online.append(400, {"a/vqa": 0.5})
  assert len(online.stages) == 3


def test_the_list_is_read_back_to_the_last_bit(tmp_path):
  stages = Stages.at_steps({30: LATE, 0: {"a/vqa": 1 / 3, "b/vqa": 2 / 3}}, batch_size=8)
  assert [stage.start for stage in stages] == [0, 240]
  stages.save(tmp_path / "stages.json")
  assert Stages.load(tmp_path / "stages.json") == stages
  assert [path.name for path in tmp_path.iterdir()] == ["stages.json"]
  for text in ("", "[]", json.dumps({"format": 1, "stages": [{"start": 0}]})):
    (tmp_path / "torn.json").write_text(text)
    with pytest.raises(ValueError, match=r"torn\.json is no list of stages"):
      Stages.load(tmp_path / "torn.json")
  (tmp_path / "new.json").write_text(json.dumps({"format": 2, "stages": []}))
  with pytest.raises(ValueError, match="format 2"):
    Stages.load(tmp_path / "new.json")


def test_positions_may_be_numpys():
  """Their products with shares are beyond 64 bits."""
  plain = Schedule([0.3, 0.3, 0.4])
  np.testing.assert_array_equal(plain.counts(np.int64(100_000)), [30_000, 30_000, 40_000])
  np.testing.assert_array_equal(plain.lag_after(np.int64(7)), plain.lag_after(7))
  staged = StagedSchedule([0], [[0.5, 0.5]])
  staged.append(np.int64(400_000), [0.25, 0.75])
  np.testing.assert_array_equal(staged.counts(800_000), [300_000, 500_000])


def test_stages_begin_at_zero_and_are_in_order():
  with pytest.raises(ValueError, match="starts at sample 0, not at 8"):
    Stages.at_steps({1: EARLY}, batch_size=8)
  with pytest.raises(ValueError, match="starts at sample 0, not at none"):
    Stages(())
  with pytest.raises(ValueError, match="from sample 0 on cannot follow"):
    Stages.of(EARLY).then(0, LATE)
