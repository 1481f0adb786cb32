"""The vocabulary loss in chunks: equal to the whole one, in less memory, on a mesh too."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import meshes
import numpy as np
import pytest
from flax import nnx

from mixjax.models import hf
from mixjax.models.qwen2 import Qwen2, Qwen2Config
from mixjax.training import loss

GOLDEN = pathlib.Path(__file__).parent / "golden" / "llava"
SMALL = Qwen2Config(
  vocab_size=4096,
  hidden_size=16,
  intermediate_size=32,
  num_hidden_layers=1,
  num_attention_heads=2,
  num_key_value_heads=1,
)


@pytest.fixture(scope="module")
def model():
  return hf.load_llava(GOLDEN, tower=False)


@pytest.fixture(scope="module")
def batch():
  chance = np.random.default_rng(0)
  ids = chance.integers(1, 38, (4, 24)).astype(np.int32)
  ids[:, :9] = 39
  arrays = {
    "ids": ids,
    "loss_mask": chance.random((4, 24)) < 0.6,
    "mask": np.arange(24)[None] < np.array([[24], [20], [12], [24]]),
    "features": chance.normal(size=(4, 9, 16)).astype(np.float32),
  }
  return jax.tree.map(jnp.asarray, arrays)


def whole_and_slope(model, batch, chunk, loss_from=10):
  return jax.jit(
    jax.value_and_grad(lambda model: loss.answer_loss(model, batch, loss_from, chunk))
  )(model)


@pytest.fixture(scope="module")
def unchunked(model, batch):
  return whole_and_slope(model, batch, None)


@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_chunks_change_neither_the_loss_nor_its_gradient(model, batch, unchunked, chunk):
  whole, slope = unchunked
  parts, partly = whole_and_slope(model, batch, chunk)
  assert float(parts) == pytest.approx(float(whole), abs=1e-6)
  for ours, theirs in zip(jax.tree.leaves(partly), jax.tree.leaves(slope), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_chunks_on_a_mesh_give_the_same_gradient(model, batch):
  names = list(batch)

  def slope(model, *arrays):
    rows = dict(zip(names, arrays, strict=True))
    return jax.grad(lambda model: loss.answer_loss(model, rows, 10, 4))(model)

  alone = meshes.run(slope, model, *batch.values(), shape=None)
  split = meshes.run(slope, model, *batch.values(), shape=(4, 2))
  for ours, theirs in zip(jax.tree.leaves(split), jax.tree.leaves(alone), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


def test_tokens_that_are_sent_to_a_split_vocabulary_give_the_same_gradient():
  """Fewer tokens than the vocabulary has: on the mesh it is split over all 8 devices."""
  model = Qwen2(SMALL, rngs=nnx.Rngs(0))
  chance = np.random.default_rng(0)
  hidden = jnp.asarray(chance.normal(size=(4, 30, 16)), jnp.float32)
  targets = jnp.asarray(chance.integers(0, 4096, (4, 30)), jnp.int32)
  counted = jnp.asarray(chance.random((4, 30)) < 0.7)

  def slope(model, hidden, targets, counted):
    total = functools.partial(loss.chunked_nll, targets=targets, counted=counted, chunk=8)
    return jax.grad(total, argnums=(0, 1))(model, hidden)

  alone = meshes.run(slope, model, hidden, targets, counted, shape=None)
  split = meshes.run(slope, model, hidden, targets, counted, shape=(4, 2))
  assert jax.typeof(split[0].embedding[...]).sharding.spec == jax.P("model", "data")
  assert jax.typeof(split[1]).sharding.spec[0] == "data"
  for ours, theirs in zip(jax.tree.leaves(split), jax.tree.leaves(alone), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_the_whole_loss_is_what_the_proxies_were_trained_with(model, batch, unchunked):
  """To the bit: the gallery's committed results depend on it."""

  def before(model):
    hidden = model(batch["ids"], batch["features"], mask=batch["mask"])
    logits = model.logits(hidden[:, 9:-1])
    targets, counted = batch["ids"][:, 10:], batch["loss_mask"][:, 10:]
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    nll = jax.nn.logsumexp(logits, axis=-1) - chosen
    return jnp.sum(nll * counted) / jnp.maximum(jnp.sum(counted), 1)

  value, slope = jax.jit(jax.value_and_grad(before))(model)
  now, also = unchunked
  assert now == value
  assert all(jax.tree.leaves(jax.tree.map(lambda x, y: bool(jnp.all(x == y)), slope, also)))


def compiled(chunk, dtype="float32"):
  model = Qwen2(dataclasses.replace(SMALL, dtype=dtype), rngs=nnx.Rngs(0))

  def objective(model, hidden, targets, counted):
    if chunk is None:
      logits = model.logits(hidden)
      chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
      return jnp.sum((jax.nn.logsumexp(logits, axis=-1) - chosen) * counted)
    return loss.chunked_nll(model, hidden, targets, counted, chunk)

  hidden = jax.ShapeDtypeStruct((2, 256, 16), dtype)
  targets = jax.ShapeDtypeStruct((2, 256), jnp.int32)
  counted = jax.ShapeDtypeStruct((2, 256), bool)
  return jax.jit(jax.grad(objective)).lower(model, hidden, targets, counted).compile()


def test_the_logits_of_one_chunk_are_all_that_is_in_memory():
  whole = 2 * 256 * 4096 * 4  # bytes of all logits
  assert compiled(None).memory_analysis().temp_size_in_bytes > whole
  # Some of a chunk's logits, and the table's float32 gradient.
  assert compiled(16).memory_analysis().temp_size_in_bytes < whole / 4


def test_bfloat16_chunks_add_up_in_float32():
  """2048 equal pieces: bfloat16 would stop counting once a sum is 256 times a piece."""
  model = Qwen2(dataclasses.replace(SMALL, vocab_size=8), rngs=nnx.Rngs(0))
  hidden = jnp.ones((1, 2048, 16), jnp.bfloat16)
  targets, counted = jnp.zeros((1, 2048), jnp.int32), jnp.ones((1, 2048), bool)

  def slope(chunk):
    total = lambda model: loss.chunked_nll(model, hidden, targets, counted, chunk)  # noqa: E731
    return np.asarray(jax.jit(jax.grad(total))(model).embedding[...])

  np.testing.assert_allclose(slope(1), slope(2048), rtol=0.01)


def test_a_chunk_of_nothing_is_refused(model, batch):
  with pytest.raises(ValueError, match="loss_chunk=0"):
    jax.eval_shape(lambda: loss.answer_loss(model, batch, 10, 0))
