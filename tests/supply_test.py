"""Cells that run out: what was chosen happens, and is said before the run begins."""

import re

import numpy as np
import pytest

from mixjax.data import supply
from mixjax.data.sampler import Sampler
from mixjax.data.stages import Stages
from mixjax.data.supply import Plan

SIZES = {"a": 100, "b": 300, "c": 1000, "d": 0}
WEIGHTS = {"a": 0.5, "b": 0.3, "c": 0.2}


def test_without_a_limit_or_with_repeat_the_weights_stay():
  assert supply.plan(WEIGHTS, SIZES, 10**6) == Plan(Stages.of(WEIGHTS), {})
  # "c" would have to give every fifth sample.
  run_out = {"a": 400, "b": 2000, "c": 10000}
  assert supply.plan(WEIGHTS, SIZES, 10**6, 2.0, "repeat") == Plan(Stages.of(WEIGHTS), run_out)
  assert supply.plan(WEIGHTS, SIZES, 200, 1.0, "redistribute") == Plan(Stages.of(WEIGHTS), {})


def test_stop_names_cells_samples_and_rows():
  assert supply.plan(WEIGHTS, SIZES, 200, 1.0, "stop") == Plan(Stages.of(WEIGHTS), {})
  short = "in 2000 samples 'a' would give 1000 samples and has 100, 'b' would give 600 samples and"
  with pytest.raises(ValueError, match=short):
    supply.plan(WEIGHTS, SIZES, 2000, 1.0, "stop")
  with pytest.raises(ValueError, match=r"'a' would give 150 samples and has 100 \(rows"):
    supply.plan(Stages.of({"b": 1.0}).then(100, {"a": 1.0}), SIZES, 250, {"a": 1.0}, "stop")
  with pytest.raises(ValueError, match="repeat, stop, redistribute, not 'wrap'"):
    supply.plan(WEIGHTS, SIZES, 10, 1.0, "wrap")


def test_the_weight_of_an_exhausted_cell_flows_to_the_others_in_proportion():
  planned = supply.plan(WEIGHTS, SIZES, 1400, 1.0, "redistribute")
  stages = list(planned.stages)
  # "a" is read out after 100 / 0.5 samples; "b", of which 60 are read then, 240 / 0.6 later.
  assert [stage.start for stage in stages] == [0, 200, 600]
  assert planned.run_out == {"a": 200, "b": 600}
  assert stages[0].weights == WEIGHTS
  assert stages[1].weights == pytest.approx({"b": 0.6, "c": 0.4})
  assert stages[2].weights == {"c": 1.0}
  sampler = Sampler(Stages(tuple(stages)), SIZES, seed=0)
  cell, row = sampler.rows(0, 1400)
  np.testing.assert_array_equal(np.bincount(cell, minlength=4), [100, 300, 1000, 0])
  assert len(set(zip(cell.tolist(), row.tolist(), strict=True))) == 1400, "a row was seen twice"


def test_no_row_is_seen_more_often_than_allowed_in_any_recipe():
  random = np.random.default_rng(0)
  stages_seen = 0
  for recipe in range(40):
    count = int(random.integers(2, 60))
    sizes = {f"c{i}": int(rows) for i, rows in enumerate(random.integers(1, 300, count))}
    weights = random.dirichlet(np.full(count, random.choice([0.1, 1, 20])))
    if recipe % 2:
      weights = np.where(random.random(count) < 0.3, 1e-9, weights)
    weights = dict(zip(sizes, (weights / weights.sum()).tolist(), strict=True))
    caps = supply.limits(sizes, repetition := float(random.choice([0.5, 1, 2.5])))
    samples = int(random.uniform(0.2, 0.9) * caps.sum())
    stages = supply.plan(weights, sizes, samples, repetition, "redistribute").stages
    stages_seen += len(stages)
    counts = Sampler(stages, sizes, seed=0).counts(samples)
    assert counts.sum() == samples
    assert np.all(counts <= caps)
    out = [i for i, cell in enumerate(sizes) if not list(stages)[-1].weights.get(cell)]
    assert np.all(counts[out] >= caps[out] - 2), "a cell was left before it had run out"
  assert stages_seen > 200


def test_a_curriculum_is_redistributed_stage_by_stage():
  stages = Stages.of({"a": 1.0}).then(60, WEIGHTS).then(500, {"a": 0.5, "c": 0.5})
  planned = list(supply.plan(stages, SIZES, 800, 1.0, "redistribute").stages)
  assert [stage.start for stage in planned] == [0, 60, 140, 500]
  assert planned[2].weights == pytest.approx({"b": 0.6, "c": 0.4})
  assert planned[3].weights == {"c": 1.0}


def test_a_run_longer_than_its_supply_is_refused():
  with pytest.raises(ValueError, match="every cell with weight has run out at sample 1400"):
    supply.plan(WEIGHTS, SIZES, 1401, 1.0, "redistribute")


def test_limits_are_whole_samples_and_named_cells_exist():
  np.testing.assert_array_equal(supply.limits({"a": 100, "b": 3}, 0.29), [29, 0])
  np.testing.assert_array_equal(supply.limits({"a": 100, "b": 3}, {"b": 4.0}), [np.inf, 12])
  with pytest.raises(ValueError, match="no cell is called 'x'"):
    supply.limits({"a": 1}, {"x": 2.0})
  with pytest.raises(ValueError, match=re.escape("'a' is -1")):
    supply.limits({"a": 1}, {"a": -1})
  for epochs in (-1.0, float("nan")):
    with pytest.raises(ValueError, match=f"the repetition is {epochs}"):
      supply.limits({}, epochs)
