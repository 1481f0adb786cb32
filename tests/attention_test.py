"""Packed rows, and every implementation of attention against the plain one."""

import dataclasses

import jax
import jax.numpy as jnp
import meshes
import numpy as np
import pytest
from flax import nnx

from mixjax.models import attention
from mixjax.models.qwen2 import Qwen2, Qwen2Config

CONFIG = Qwen2Config(
  vocab_size=40,
  hidden_size=32,
  intermediate_size=48,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
)
LENGTHS = (100, 30, 90)  # of the pieces of a row of 256; the rest is padding


def make(**running):
  return Qwen2(dataclasses.replace(CONFIG, **running), rngs=nnx.Rngs(0))


def packed(rows=1, lengths=LENGTHS, length=256):
  """(ids, positions, segments) of rows of several pieces, each row in an order of its own."""
  chance = np.random.default_rng(0)
  ids = chance.integers(0, 40, (rows, length)).astype(np.int32)
  positions, segments = np.zeros_like(ids), np.zeros_like(ids)
  for row in range(rows):
    start = 0
    for number, size in enumerate(np.roll(lengths, row), 1):
      positions[row, start : start + size] = np.arange(size)
      segments[row, start : start + size] = number
      start += size
  return tuple(map(jnp.asarray, (ids, positions, segments)))


def hidden(model, ids, positions, segments):
  return model(model.embed(ids), positions, segments=segments)


def slope(model, ids, positions, segments):
  def loss(model):
    y = hidden(model, ids, positions, segments)
    return jnp.sum(jnp.square(y) * (segments > 0)[:, :, None]) / y.size

  return jax.grad(loss)(model)


def assert_close(ours, theirs, atol=1e-5):
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize("implementation", ["xla", "splash"])
def test_a_packed_row_equals_its_separate_rows(implementation):
  ids, positions, segments = packed()
  together = jax.jit(hidden)(make(attention=implementation), ids, positions, segments)
  plain, start = make(), 0
  for size in LENGTHS:
    x = plain.embed(ids[:, start : start + size])
    alone = jax.jit(lambda x: plain(x, jnp.arange(x.shape[1])[None]))(x)
    np.testing.assert_allclose(together[:, start : start + size], alone, rtol=0, atol=1e-5)
    start += size


@pytest.mark.parametrize("shape", [None, pytest.param((4, 2), marks=pytest.mark.slow)])
def test_splash_gives_the_gradient_of_xla_on_a_mesh_too(shape):
  rows = 1 if shape is None else 4
  plain = meshes.run(slope, make(), *packed(rows), shape=None)
  kernel = meshes.run(
    slope, make(attention="splash", remat="nothing_saveable"), *packed(rows), shape=shape
  )
  assert_close(kernel, plain)


def test_segments_and_a_mask_join():
  """A token that the mask hides is seen by none of its segment, as in a row by itself."""
  ids, positions, segments = packed()
  mask = jnp.ones_like(ids, bool).at[0, 3].set(False)
  outs = [
    jax.jit(lambda m: m(m.embed(ids), positions, mask, segments))(make(attention=name))
    for name in ("xla", "splash")
  ]
  alone = make()(make().embed(ids[:, :100]), positions[:, :100], mask[:, :100])
  kept = np.asarray(mask & (segments > 0))
  np.testing.assert_allclose(outs[0][kept], outs[1][kept], rtol=0, atol=1e-5)
  np.testing.assert_allclose(
    outs[0][:, :100][kept[:, :100]], alone[kept[:, :100]], rtol=0, atol=1e-5
  )


@pytest.mark.slow
def test_cudnn_is_asked_for_what_xla_computes(monkeypatch):
  """No GPU here: jax's own reference stands in for the kernel, so that the arguments are tested."""
  real = jax.nn.dot_product_attention
  asked = []

  def stand_in(*args, implementation, **options):
    asked.append(implementation)
    return real(*args, implementation="xla", **options)

  monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
  monkeypatch.setattr(attention, "platform", lambda: "gpu")
  for shape in (None, (4, 2)):
    batch = packed(4, length=224)
    plain = meshes.run(slope, make(), *batch, shape=None)
    assert_close(meshes.run(slope, make(attention="cudnn"), *batch, shape=shape), plain)
  assert set(asked) == {"cudnn"}


def test_what_cannot_be_computed_is_refused_with_the_remedy():
  with pytest.raises(ValueError, match="multiple: pad the rows, or use attention='xla'"):
    attention.causal(200, implementation="splash")
  with pytest.raises(ValueError, match="NVIDIA GPU, not cpu"):
    attention.causal(256, implementation="cudnn")
  with pytest.raises(ValueError, match="attention='flash': choose one of xla, splash, cudnn"):
    attention.causal(256, implementation="flash")


def test_the_best_for_a_platform():
  found = [attention.best(name, "bfloat16") for name in ("cpu", "tpu", "gpu", "cuda")]
  assert found == ["xla", "splash", "cudnn", "cudnn"]


def test_how_attention_runs_is_in_no_checkpoint():
  assert "attention" not in make(attention="splash").config.to_hf()
