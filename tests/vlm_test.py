"""The full vision-language step: packed rows as if alone, what moves, and the same on a mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import meshes
import numpy as np
import optax
import pytest
from flax import nnx
from tiny import CONFIG, SHAPE, packed_batch

from mixjax.models import clip
from mixjax.models.anyres import NOTHING
from mixjax.models.llava_next import LlavaNext, Tiles
from mixjax.training import step, vlm

NAMES = tuple(SHAPE.arrays())


@pytest.fixture(scope="module")
def model():
  return jax.jit(lambda: LlavaNext(CONFIG, rngs=nnx.Rngs(0)))()


@pytest.fixture(scope="module")
def batch():
  return {name: jnp.asarray(array) for name, array in packed_batch().items()}


def test_the_loss_of_a_packed_row_is_that_of_its_examples_alone(model, batch):
  graphdef, params = nnx.split(model)
  mean = jax.jit(vlm.objective(graphdef, 8))(params, batch)

  @jax.jit
  def logits_of(model, ids, pixels, index):
    features = model.encode_image(clip.preprocess(pixels)[None])
    return model.logits(model(ids, Tiles(features, index)))

  total = count = 0
  rows = SHAPE.rows // SHAPE.groups
  for row in range(SHAPE.rows):
    segments, seen = np.asarray(batch["segments"][row]), 0
    for number in range(1, segments.max() + 1):
      here = segments == number
      ids = np.zeros((1, SHAPE.length), np.int32)  # padded, so that one program does for all
      ids[0, : here.sum()] = batch["ids"][row, here]
      images = int(np.sum(ids == CONFIG.image_token_id))
      index = np.full((1, SHAPE.image_tokens), NOTHING, np.int32)
      index[0, :images] = batch["index"][row, seen : seen + images]
      seen += images
      logits = logits_of(model, ids, batch["tiles"][row // rows], index)[0, : here.sum() - 1]
      nll = -jax.nn.log_softmax(logits)[np.arange(len(logits)), ids[0, 1 : here.sum()]]
      counted = batch["loss_mask"][row, here][1:]
      total, count = total + jnp.sum(nll * counted), count + counted.sum()
  assert count == batch["loss_mask"].sum() > 10
  np.testing.assert_allclose(mean, total / count, rtol=0, atol=1e-5)


def slope_of(frozen=(), accumulate=1):
  """`(model, *batch) -> gradient` of the objective."""

  def slope(model, *arrays):
    graphdef, params = nnx.split(model)
    down = vlm.slope(graphdef, 16, frozen, accumulate)
    return down(params, dict(zip(NAMES, arrays, strict=True)))[1]

  return slope


@pytest.fixture(scope="module")
def alone(model, batch):
  arrays = [batch[name] for name in NAMES]
  return meshes.run(slope_of(), model, *arrays, shape=None), arrays


def moved(slope):
  return {
    name: sum(float(jnp.sum(jnp.abs(leaf))) for leaf in jax.tree.leaves(part))
    for name, part in slope.items()
  }


@pytest.mark.slow
def test_a_full_fine_tune_moves_all_and_frozen_parts_stay(model, alone):
  whole, arrays = alone
  assert set(moved(whole)) == {"vision", "projector", "image_newline", "text"}
  assert all(moved(whole).values())
  stays = moved(meshes.run(slope_of(("vision", "text")), model, *arrays, shape=None))
  assert stays["vision"] == stays["text"] == 0 and stays["projector"] and stays["image_newline"]


@pytest.mark.slow
def test_gradients_agree_on_a_mesh(model, alone):
  whole, arrays = alone
  split = meshes.run(slope_of(), model, *arrays, shape=(4, 2))
  for ours, theirs in zip(jax.tree.leaves(split), jax.tree.leaves(whole), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_a_step_in_parts_is_the_whole_step_in_less_memory(model):
  """The same 16 rows, with more and with fewer words to learn, at once and by fours."""
  shape = dataclasses.replace(SHAPE, rows=16, tiles=24, groups=4)
  batch = packed_batch(1, shape)
  batch["loss_mask"][:6, :-20] = False
  counted = batch["loss_mask"].reshape(4, 4, -1).sum(axis=(1, 2))
  assert counted.min() * 1.5 < counted.max()  # a mean of means would be another step
  graphdef, params = nnx.split(model)
  tx, found = optax.sgd(1.0), {}  # moves by the gradient itself
  for parts in (1, 4):
    update = step.descend(vlm.slope(graphdef, 16, accumulate=parts), tx)
    compiled = jax.jit(update).lower(step.init_state(params, tx), batch).compile()
    memory = compiled.memory_analysis().temp_size_in_bytes
    found[parts] = compiled(step.init_state(params, tx), batch), memory
  (whole, at_once), (summed, by_fours) = found[1], found[4]
  for ours, theirs in zip(jax.tree.leaves(summed), jax.tree.leaves(whole), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
  assert by_fours < 0.5 * at_once, (by_fours, at_once)


@pytest.mark.slow
def test_parts_on_a_mesh_are_the_whole(model, alone):
  whole, arrays = alone
  parted = meshes.run(slope_of(accumulate=2), model, *arrays, shape=(2, 2))
  for ours, theirs in zip(jax.tree.leaves(parted), jax.tree.leaves(whole), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


def test_groups_that_do_not_make_the_parts_are_refused(model, batch):
  graphdef, params = nnx.split(model)
  with pytest.raises(ValueError, match="4 groups of rows do not make 3 parts"):
    vlm.slope(graphdef, 16, accumulate=3)(params, batch)
