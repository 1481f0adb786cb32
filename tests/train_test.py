"""Training on the finished tiny corpus: resumable with the same bits, and the mixture is only
data.
"""

import jax
import numpy as np
import pytest

from mixjax.data.loader import EncodedCells, Loader
from mixjax.data.mixture import uniform
from mixjax.jobs.atlas import STANDINS
from mixjax.models import hf
from mixjax.training import train as train_lib
from mixjax.training.population import population_step, stack, unstack
from mixjax.training.step import init_state

LOSS_FROM = 37


@pytest.fixture(scope="module")
def cells(finished):
  return EncodedCells.load(finished / "atlas" / "encoded")


@pytest.fixture(scope="module")
def start():
  from flax import nnx

  return nnx.split(hf.load_llava(STANDINS / "proxy", tower=False))


def run(start, cells, folder, steps=4, weights=None, stop=None, log_every=2, **options):
  loader = Loader(cells, weights or uniform(cells.rows), seed=0, batch_size=8)
  config = train_lib.TrainConfig(steps=steps, log_every=log_every, **options)

  def on_step(step, loss):
    if step == stop:
      raise KeyboardInterrupt

  return train_lib.train(*start, loader, config, folder, LOSS_FROM, on_step=on_step)


def equal(a, b):
  return all(jax.tree.leaves(jax.tree.map(lambda x, y: np.array_equal(x, y), a, b)))


def test_stopped_and_resumed_gives_the_same_bits_and_the_same_log(start, cells, tmp_path):
  whole = run(start, cells, tmp_path / "whole", save_every=2)
  with pytest.raises(KeyboardInterrupt):
    run(start, cells, tmp_path / "parts", save_every=2, stop=4)
  parts = run(start, cells, tmp_path / "parts", save_every=2)
  assert equal(whole, parts)
  logs = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "parts")]
  assert logs[0] == logs[1] and logs[0].count("\n") == 2


def test_training_leaves_the_shared_start_alone_and_moves_the_copy(start, cells, tmp_path):
  before = jax.tree.map(np.array, start[1])
  after = run(start, cells, tmp_path, steps=2)
  assert equal(before, start[1])
  assert not equal(before, after)


def test_every_mixture_runs_the_same_program(start, cells, tmp_path):
  filled = [cell for cell, rows in cells.rows.items() if rows]
  train_lib.compiled_step.cache_clear()
  for i, cell in enumerate(filled[:3]):
    one_hot = {name: float(name == cell) for name in cells.rows}
    run(start, cells, tmp_path / str(i), steps=2, weights=one_hot)
  _, step = train_lib.compiled_step(
    start[0], train_lib.TrainConfig(steps=2, log_every=2), LOSS_FROM
  )
  assert train_lib.compiled_step.cache_info().misses == 1
  assert step._cache_size() == 1


def test_a_loss_that_is_not_finite_names_the_step(start, cells, tmp_path):
  from mixjax.training.optimizer import OptimizerConfig

  with pytest.raises(FloatingPointError, match="step 2"):
    run(start, cells, tmp_path, steps=4, optimizer=OptimizerConfig(learning_rate=float("nan")))
  with pytest.raises(FloatingPointError, match="step 3"):  # before it is saved, logged or not
    wrong = OptimizerConfig(learning_rate=float("nan"))
    run(start, cells, tmp_path, log_every=4, save_every=3, optimizer=wrong)
  assert not (tmp_path / "checkpoints" / "3").exists()


@pytest.mark.parametrize("wrong", [dict(steps=0), dict(log_every=0), dict(save_every=-1)])
def test_a_run_that_cannot_be_is_refused(wrong):
  with pytest.raises(ValueError, match=f"{next(iter(wrong))}=.*or more"):
    train_lib.TrainConfig(**{"steps": 1} | wrong)


def test_a_population_trains_each_member_as_if_alone(start, cells):
  graphdef, params = start
  tx, alone = train_lib.compiled_step(graphdef, train_lib.TrainConfig(steps=4), LOSS_FROM)
  together = population_step(graphdef, tx, LOSS_FROM)
  batches = []
  for seed in (0, 1):
    batch = Loader(cells, uniform(cells.rows), seed, batch_size=8).batch(0)
    batch.pop("cell")
    batches.append(batch)
  states = stack([init_state(params, tx), init_state(params, tx)])
  stacked = jax.tree.map(lambda *x: np.stack(x), *batches)
  states, metrics = together(states, stacked)
  for batch, state, loss in zip(batches, unstack(states), metrics["loss"], strict=True):
    expected, said = alone(init_state(params, tx), batch)
    assert float(said["loss"]) == pytest.approx(float(loss), abs=1e-5)
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(expected.params), strict=True):
      np.testing.assert_allclose(a, b, atol=1e-5)


def test_the_step_donates_its_state(start, cells):
  graphdef, params = start
  tx, step = train_lib.compiled_step(graphdef, train_lib.TrainConfig(steps=4), LOSS_FROM)
  batch = Loader(cells, uniform(cells.rows), 0, batch_size=8).batch(0)
  batch.pop("cell")
  state = init_state(params, tx)
  step(state, batch)
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
