"""The full vision-language step: packed rows as if alone, what moves, and the same on a mesh."""

import jax
import jax.numpy as jnp
import meshes
import numpy as np
import pytest
from flax import nnx
from tiny import CONFIG, SHAPE, packed_batch

from mixjax.models import clip
from mixjax.models.anyres import NOTHING
from mixjax.models.llava_next import LlavaNext, Tiles
from mixjax.training import vlm

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


def slope_of(frozen=()):
  """`(model, *batch) -> gradient` of the objective."""

  def slope(model, *arrays):
    graphdef, params = nnx.split(model)
    mean = vlm.objective(graphdef, 16, frozen)
    return jax.grad(mean)(params, dict(zip(NAMES, arrays, strict=True)))

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
