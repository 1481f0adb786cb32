"""Stages by step and cells that run out, in packed rows: as asked for, to the row and the bit."""

import json

import numpy as np
import pytest
from packed_corpus import (
  BLOCK,
  SHAPE,
  SIZES,
  WEIGHTS,
  assert_equal,
  build,
  corpus,
  examples_in,
  loader_of,
  train_tokenizer,
)

from mixjax.data import packing
from mixjax.data.packed_stages import planned_loader
from mixjax.data.stages import Stages
from mixjax.jobs import mixtures

FLOWS = {"exhausted": "redistribute"}
OCR = {"charts/ocr": 1.0}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
  tokenizer = train_tokenizer(tmp_path_factory.mktemp("tokenizer"))
  return build(tmp_path_factory.mktemp("good"), tokenizer, corpus())


def plan(measured, weights, steps, **options):
  return planned_loader(measured, weights, 1, SHAPE, steps, block=BLOCK, **options)


def cells_of(loader, samples):
  return loader.measured.cell_of(loader._flat(np.arange(samples)))


def times_seen(loader, steps):
  """How often each row is in the batches of a run."""
  positions = np.concatenate(list(loader._positions(steps * SHAPE.rows)))
  return np.bincount(loader._flat(positions), minlength=len(loader.measured.table))


def test_a_stage_begins_with_the_first_block_that_no_earlier_batch_reads(measured):
  loader, found = plan(measured, {0: WEIGHTS, 4: OCR, 60: WEIGHTS}, 40)
  by_hand = loader_of(measured)
  start = by_hand.change(4, OCR)
  assert found.stages == by_hand.sampler.stages  # that of step 60 never comes
  assert [stage.start for stage in found.stages] == [0, start] and not found.run_out
  for step in range(4):
    assert_equal(loader.batch(step), loader_of(measured).batch(step))
  assert_equal(loader.batch(20), by_hand.batch(20))
  assert set(cells_of(loader, 3000)[start:]) == {list(measured.rows).index("charts/ocr")}


def test_a_restart_and_a_list_by_sample_give_the_same_bits(measured, tmp_path, monkeypatch):
  middle = {"maps/caption": 0.4, "maps/vqa": 0.3, "charts/ocr": 0.3}
  curriculum = {0: WEIGHTS, 5: middle, 11: WEIGHTS}
  options = dict(repetition=4.0, **FLOWS)
  loader, found = plan(measured, curriculum, 15, **options)
  assert len(found.stages) > 3 and "maps/caption" in found.run_out
  batches = {step: loader.batch(step) for step in (4, 7, 14)}
  found.stages.save(tmp_path / "stages.json")
  listed, _ = plan(measured, Stages.load(tmp_path / "stages.json"), 15, **options)
  assert listed.sampler.stages == found.stages
  monkeypatch.setattr(packing, "pack", lambda *_: pytest.fail("packed again"))
  again, refound = plan(measured, curriculum, 15, **options)
  assert refound == found
  monkeypatch.undo()
  for step, batch in batches.items():
    assert_equal(again.batch(step), batch)
    assert_equal(listed.batch(step), batch)


@pytest.mark.parametrize("repetition", [1.0, 2.0])
def test_no_row_is_read_more_often_than_allowed(measured, repetition):
  free = times_seen(loader_of(measured), 7)
  assert free.max() > repetition  # it would be
  steps = 2 if repetition == 1.0 else 6
  loader, found = plan(measured, {0: WEIGHTS}, steps, repetition=repetition, **FLOWS)
  assert found.run_out and found.run_out.keys() < SIZES.keys()
  seen = times_seen(loader, steps)
  assert seen.max() <= np.ceil(repetition)
  counts = loader.counts(steps)
  for name, size in SIZES.items():
    assert counts[name]["realised"] <= repetition * size
  # A stage begins in the very sample after a cell's last.
  assert {stage.start for stage in found.stages} == {0, *found.run_out.values()}
  for name, start in found.run_out.items():
    cell = list(measured.rows).index(name)
    assert name not in [c for s in found.stages if s.start >= start for c in s.weights]
    assert np.sum(cells_of(loader, start) == cell) >= repetition * SIZES[name] - 2
  assert len(examples_in(loader.batch(steps - 1)))


def test_stop_refuses_what_repeat_reads(measured):
  plain = loader_of(measured)
  loader, found = plan(measured, {0: WEIGHTS}, 6, repetition=1.0, exhausted="repeat")
  assert_equal(loader.batch(5), plain.batch(5))
  assert found.stages == plain.sampler.stages
  assert found.run_out["talk/vqa"] == 50  # 10 rows at a share of 0.2
  with pytest.raises(ValueError, match=r"'talk/vqa' would give \d+ samples and has 10, "):
    plan(measured, {0: WEIGHTS}, 6, repetition=1.0)
  loader, found = plan(measured, {0: WEIGHTS}, 6, repetition=40.0)
  assert_equal(loader.batch(5), plain.batch(5))
  assert found.run_out == {}
  with pytest.raises(ValueError, match="every cell with weight has run out at sample 1"):
    plan(measured, {0: WEIGHTS}, 20, repetition=1.0, **FLOWS)


def test_a_cell_that_runs_out_long_after_the_run_costs_nothing(measured, monkeypatch):
  packed = []
  pack = packing.pack
  monkeypatch.setattr(packing, "pack", lambda *args: packed.append(1) or pack(*args))
  _, found = plan(measured, {0: WEIGHTS}, 3, repetition=1e6, **FLOWS)
  assert found.run_out == {} and len(packed) < 10


def test_two_stages_in_one_block_are_refused(measured):
  with pytest.raises(ValueError, match="the stages of steps 1 and 2 begin in one block of 640"):
    planned_loader(measured, {0: WEIGHTS, 1: OCR, 2: WEIGHTS}, 1, SHAPE, 40, block=640)


def test_what_is_found_is_plain_data(measured):
  loader, found = plan(measured, {0: WEIGHTS, 3: OCR}, 6, repetition=1.0, exhausted="repeat")
  described = mixtures.describe(found, lambda sample: loader.step_of(sample, 6))
  assert json.loads(json.dumps(described)) == described
  assert "talk/vqa" in described["run_out"]
  assert [stage["start"] for stage in described["stages"]] == [0, loader.start_of(3)]


def test_caps_hold_where_a_list_by_sample_goes_beyond_the_run(measured):
  talk = {"talk/vqa": 0.5, "charts/ocr": 0.2, "maps/vqa": 0.2, "maps/caption": 0.1}
  _, free = plan(measured, {0: talk}, 20)
  end = loader_end(measured, talk, 20)
  listed = Stages.of(talk).then(end, {"talk/vqa": 1.0})
  for weights in ({0: talk}, listed, Stages.of(talk).then(660, {"talk/vqa": 1.0})):
    with pytest.raises(ValueError, match=rf"in {end} samples 'talk/vqa' would give"):
      plan(measured, weights, 20, repetition=6.0)
  options = dict(repetition=6.0, exhausted="repeat")
  _, found = plan(measured, listed, 20, **options)
  assert found.stages == free.stages and found.unread == (f"sample {end}",)
  assert found.run_out == plan(measured, {0: talk}, 20, **options)[1].run_out
  # One sample earlier it is in the last block, of which batches have rows.
  _, found = plan(measured, Stages.of(talk).then(end - 1, OCR), 20, **options)
  assert len(found.stages) == 2 and not found.unread


def loader_end(measured, weights, steps):
  return planned_loader(measured, {0: weights}, 1, SHAPE, steps, block=BLOCK)[0].start_of(steps)


def test_a_stage_after_the_run_takes_nothing_and_is_named(measured):
  listed = Stages.of(WEIGHTS).then(100_000, OCR)
  for repetition in (0.0, 40.0):
    _, found = plan(measured, listed, 6, repetition=repetition)
    assert found.stages == Stages.of(WEIGHTS) and found.unread == ("sample 100000",)
  _, found = plan(measured, {0: WEIGHTS, 6: OCR, 60: WEIGHTS}, 6, repetition=40.0)
  assert found.stages == Stages.of(WEIGHTS) and found.unread == ("step 6", "step 60")
  # Step 1 is of the run, and yet all of its rows are of the block that step 0 begins.
  _, found = planned_loader(measured, {0: WEIGHTS, 1: OCR}, 1, SHAPE, 2, block=640)
  assert found.stages == Stages.of(WEIGHTS) and found.unread == ("step 1",)
