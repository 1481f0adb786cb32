import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import meshes
import numpy as np
import pytest
from safetensors.numpy import load_file

from mixjax.models import hf
from mixjax.models.llava import LlavaConfig

GOLDEN = pathlib.Path(__file__).parent / "golden" / "llava"


@pytest.fixture(scope="module")
def model():
  return hf.load_llava(GOLDEN)


@pytest.fixture(scope="module")
def io():
  return jax.tree.map(jnp.asarray, load_file(GOLDEN / "io.safetensors"))


def logits(model, ids, mask, pixels):
  return model.logits(model(ids, model.encode_image(pixels), mask=mask))


def assert_parity(folder, shape=None):
  io = load_file(folder / "io.safetensors")
  batch = io["ids"], io["mask"], io["pixels"]
  ours = np.asarray(meshes.run(logits, hf.load_llava(folder), *batch, shape=shape))
  np.testing.assert_allclose(ours[io["mask"]], io["logits"][io["mask"]], rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", meshes.SHAPES)
def test_logits_match_the_golden(shape):
  assert_parity(GOLDEN, shape)


def test_logits_match_torch(tmp_path):
  pytest.importorskip("torch")
  from golden import make_golden

  make_golden.llava(tmp_path, seed=15)
  assert_parity(tmp_path)


def test_gradients_agree_on_a_mesh(model, io):
  def slope(model, ids, mask, features):
    def loss(model):
      hidden = model(ids, features, mask=mask)
      return jnp.mean(jnp.square(hidden))

    return jax.grad(loss)(model)

  small = hf.load_llava(GOLDEN, tower=False)
  batch = io["ids"], io["mask"], model.encode_image(io["pixels"])
  alone = meshes.run(slope, small, *batch, shape=None)
  split = meshes.run(slope, small, *batch, shape=(4, 2))
  up = jax.typeof(split.text.layers.mlp.up.kernel[...]).sharding.spec
  assert up == jax.P(None, "data", "model")
  for ours, theirs in zip(jax.tree.leaves(alone), jax.tree.leaves(split), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_a_row_without_image_is_plain_text(model, io):
  features = model.encode_image(io["pixels"])
  text = io["ids"][2:3]
  mixed = jax.jit(type(model).__call__)(model, io["ids"], features)[2:3]
  plain = model.text(model.text.embed(text), jnp.arange(16)[None])
  np.testing.assert_allclose(mixed, plain, rtol=0, atol=1e-6)
  alone = model(text, features[:1])  # a batch without any image token
  np.testing.assert_allclose(alone, plain, rtol=0, atol=1e-6)


def test_features_fill_the_image_tokens_in_order(model, io):
  ids = io["ids"]
  features = model.encode_image(io["pixels"])
  merged, text = model.embed(ids, features), model.text.embed(ids)
  image = np.asarray(ids == model.config.image_token_id)
  np.testing.assert_array_equal(np.asarray(merged)[~image], np.asarray(text)[~image])
  filled = np.asarray(merged)[image].reshape(3, 9, 16)
  np.testing.assert_array_equal(filled, model.projector(features)[jnp.array([0, 1, 3])])


def test_no_gradient_reaches_features_that_no_token_shows(model, io):
  features = model.encode_image(io["pixels"])
  loss = lambda features: jnp.sum(jnp.square(model(io["ids"], features)))  # noqa: E731
  size = np.abs(jax.jit(jax.grad(loss))(features)).sum((1, 2))
  assert size[2] == 0 and np.all(size[[0, 1, 3]] > 0)


def test_without_tower_it_lives_on_cached_features(model, io):
  features = model.encode_image(io["pixels"])
  small = hf.load_llava(GOLDEN, tower=False)
  assert small.vision is None
  np.testing.assert_array_equal(small(io["ids"], features), model(io["ids"], features))
  with pytest.raises(ValueError, match="tower=True"):
    small.encode_image(io["pixels"])


def test_an_image_token_outside_the_vocabulary_leaves_no_nan(model, io):
  other = hf.load_llava(GOLDEN, tower=False)
  other.config = dataclasses.replace(model.config, image_token_id=1000)
  ids = jnp.where(io["ids"] == 39, 1000, io["ids"])

  def loss(other):
    return jnp.sum(jnp.square(other(ids, jnp.ones((4, 9, 16)))))

  value, slope = jax.jit(jax.value_and_grad(loss))(other)
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((value, slope)))


def test_config_round_trip_and_refusals(model):
  config = model.config.to_hf()
  assert LlavaConfig.from_hf(config) == model.config
  for name, value in {
    "projector_hidden_act": "relu",
    "vision_feature_select_strategy": "full",
    "vision_feature_layer": [-2, -3],
  }.items():
    with pytest.raises(ValueError, match=name):
      LlavaConfig.from_hf({**config, name: value})
