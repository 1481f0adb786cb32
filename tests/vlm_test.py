"""The full vision-language step: what image tokens show, what moves, and the same on a mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import meshes
import numpy as np
import pytest
from flax import nnx
from tiny import TEXT, VISION

from mixjax.models import clip
from mixjax.training import vlm


@pytest.fixture(scope="module")
def model():
  config = vlm.VlmConfig(TEXT, VISION, batch=4, length=32, image_tokens=12, tiles=3)
  return jax.jit(lambda: vlm.Vlm(config, rngs=nnx.Rngs(0)))()


def batch_of(model):
  chance = np.random.default_rng(0)
  shapes = model.config.batch_shapes()
  batch = {
    "ids": chance.integers(0, 512, shapes["ids"].shape),
    "positions": np.tile(np.arange(32), (4, 1)),
    "segments": np.ones((4, 32)),
    "loss_mask": np.tile(np.arange(32) >= 20, (4, 1)),
    "shown": np.full((4, 32), -1),
    "tiles": chance.integers(0, 256, shapes["tiles"].shape),
  }
  batch["shown"][0, 3:7] = [5, 12, 0, 11]  # 3 tiles of 4 patches; 12 is the newline
  return {name: jnp.asarray(value, shapes[name].dtype) for name, value in batch.items()}


def test_image_tokens_show_the_patch_of_their_number_and_the_newline(model):
  batch = batch_of(model)

  @jax.jit
  def both(model):
    x = model.embed(batch["ids"], batch["tiles"], batch["shown"])
    features = model.vision.features(clip.preprocess(batch["tiles"][0]), -2)
    return x, model.projector(features.reshape(1, 12, -1))[0], model.text.embed(batch["ids"])

  x, patches, text = both(model)
  newline = model.image_newline[...]
  expected = jnp.stack([patches[5], newline, patches[0], patches[11]])
  np.testing.assert_allclose(x[0, 3:7], expected, rtol=0, atol=1e-5)
  np.testing.assert_array_equal(x[1], text[1])


def slope_of(config):
  """`(model, *batch) -> gradient` of the objective of a model of this config."""
  graphdef, _ = nnx.split(nnx.eval_shape(lambda: vlm.Vlm(config, rngs=nnx.Rngs(0))))
  names = list(config.batch_shapes())

  def slope(model, *arrays):
    mean = vlm.objective(graphdef, 16)
    return jax.grad(mean)(nnx.split(model)[1], dict(zip(names, arrays, strict=True)))

  return slope


@pytest.fixture(scope="module")
def alone(model):
  batch = batch_of(model)
  arrays = [batch[name] for name in model.config.batch_shapes()]
  return meshes.run(slope_of(model.config), model, *arrays, shape=None), arrays


def moved(slope):
  return {
    name: sum(float(jnp.sum(jnp.abs(leaf))) for leaf in jax.tree.leaves(slope[name]))
    for name in ("vision", "projector", "text")
  }


@pytest.mark.slow
def test_a_full_fine_tune_moves_the_tower_and_a_frozen_one_stays(model, alone):
  whole, arrays = alone
  assert all(moved(whole).values())
  frozen = slope_of(dataclasses.replace(model.config, frozen_tower=True))
  stays = moved(meshes.run(frozen, model, *arrays, shape=None))
  assert stays["vision"] == 0 and stays["projector"] and stays["text"]


@pytest.mark.slow
def test_gradients_agree_on_a_mesh(model, alone):
  whole, arrays = alone
  split = meshes.run(slope_of(model.config), model, *arrays, shape=(4, 2))
  for ours, theirs in zip(jax.tree.leaves(split), jax.tree.leaves(whole), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
