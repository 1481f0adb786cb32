import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import meshes
import numpy as np
import pytest
from safetensors.numpy import load_file

from mixjax.models import hf, layers
from mixjax.models.qwen2 import Qwen2Config

GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def tied():
  return hf.load_qwen2(GOLDEN / "qwen2_tied")


@pytest.fixture(scope="module")
def io():
  return jax.tree.map(jnp.asarray, load_file(GOLDEN / "qwen2_tied" / "io.safetensors"))


def logits(model, ids, mask):
  positions = jnp.arange(ids.shape[1])[None]
  return model.logits(model(model.embed(ids), positions, mask))


def assert_parity(folder, shape=None):
  io = load_file(folder / "io.safetensors")
  ours = meshes.run(logits, hf.load_qwen2(folder), io["ids"], io["mask"], shape=shape)
  np.testing.assert_allclose(
    np.asarray(ours)[io["mask"]], io["logits"][io["mask"]], rtol=0, atol=1e-5
  )
  return ours


@pytest.mark.parametrize("shape", meshes.SHAPES)
@pytest.mark.parametrize("name", ["qwen2_tied", "qwen2_untied"])
def test_logits_match_the_golden(name, shape):
  ours = assert_parity(GOLDEN / name, shape)
  if shape == (4, 2):
    assert jax.typeof(ours).sharding.spec == jax.P("data", None, "model")


@pytest.mark.parametrize("tied", [True, False])
def test_logits_match_torch(tied, tmp_path):
  pytest.importorskip("torch")
  from golden import make_golden

  make_golden.qwen2(tmp_path, seed=11, tied=tied)
  assert_parity(tmp_path)


def test_key_heads_that_the_mesh_does_not_divide(tied, io):
  alone = meshes.run(logits, tied, io["ids"], io["mask"], shape=None)
  split = meshes.run(logits, tied, io["ids"], io["mask"], shape=(2, 4))
  np.testing.assert_allclose(alone, split, rtol=0, atol=1e-5)


def test_a_token_sees_itself_and_the_past_only(tied, io):
  x = tied.embed(io["ids"])
  positions = jnp.arange(10)[None]
  seen = jax.jit(jax.grad(lambda x: jnp.sum(jnp.square(tied(x, positions)[:, 6]))))(x)
  size = np.abs(np.asarray(seen)).sum((0, 2))
  assert np.all(size[:7] > 0) and np.all(size[7:] == 0)


def test_padding_is_never_seen_on_either_side(tied, io):
  ids, short = io["ids"][:2], io["ids"][:2, :7]
  mask = jnp.arange(10)[None] < jnp.full((2, 1), 7)
  positions = jnp.broadcast_to(jnp.arange(7), (2, 7))
  forward = jax.jit(type(tied).__call__)
  alone = forward(tied, tied.embed(short), positions)
  right = forward(tied, tied.embed(ids), jnp.arange(10)[None], mask)
  np.testing.assert_allclose(right[:, :7], alone, rtol=0, atol=1e-5)
  left = forward(
    tied,
    tied.embed(jnp.concatenate([ids[:, 7:], short], axis=1)),
    jnp.concatenate([jnp.zeros((2, 3), int), positions], axis=1),
    mask[:, ::-1],
  )
  np.testing.assert_allclose(left[:, 3:], alone, rtol=0, atol=1e-5)
  assert np.all(np.isfinite(left))


@pytest.mark.parametrize("running", [{"remat": "nothing_saveable"}, {"unroll": 2}])
def test_how_it_runs_does_not_change_values_or_gradients(running, tied, io):
  other = hf.load_qwen2(GOLDEN / "qwen2_tied", **running)
  assert other.config == dataclasses.replace(tied.config, **running)

  def loss(model):
    return jnp.mean(jax.nn.logsumexp(logits(model, io["ids"], io["mask"]), axis=-1))

  value, slope = jax.jit(jax.value_and_grad(loss))(tied)
  other_value, other_slope = jax.jit(jax.value_and_grad(loss))(other)
  np.testing.assert_allclose(value, other_value, rtol=1e-6)
  for ours, theirs in zip(jax.tree.leaves(slope), jax.tree.leaves(other_slope), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


def test_remat_keeps_less_for_the_backward_pass(tied, io):
  def kept(remat):
    model = hf.load_qwen2(GOLDEN / "qwen2_tied", remat=remat)
    back = jax.vjp(lambda model: logits(model, io["ids"], io["mask"]), model)[1]
    return sum(leaf.size for leaf in jax.tree.leaves(back))

  assert kept("nothing_saveable") < 0.6 * kept(None)


def test_decoding_token_by_token_equals_one_pass(tied, io):
  ids = io["ids"]
  x, positions = tied.embed(ids), jnp.broadcast_to(jnp.arange(10)[None], ids.shape)
  whole = tied(x, positions, io["mask"])
  decode = jax.jit(lambda *args: tied.decode(*args, io["mask"]))
  some, cache = decode(x[:, :4], positions[:, :4], tied.init_cache(4, 10), 0)
  parts = [some]
  for i in range(4, 10):
    one, cache = decode(x[:, i : i + 1], positions[:, i : i + 1], cache, i)
    parts.append(one)
  np.testing.assert_allclose(
    jnp.concatenate(parts, axis=1)[io["mask"]], whole[io["mask"]], rtol=0, atol=1e-5
  )


def test_bfloat16_activations_give_float32_logits(tied, io):
  half = hf.load_qwen2(GOLDEN / "qwen2_tied", dtype="bfloat16")
  assert half.embed(io["ids"]).dtype == jnp.bfloat16
  rough, fine = (logits(model, io["ids"], io["mask"]) for model in (half, tied))
  assert rough.dtype == jnp.float32
  assert 0 < np.abs(rough - fine).max() < 0.2


def test_bfloat16_heads_are_turned_by_float32_angles():
  """bfloat16 rounds 257 to 256; the two places must still differ."""
  x = jnp.ones((1, 2, 1, 8), jnp.bfloat16)
  turned = layers.rotate(x, layers.rotary_angles(jnp.asarray([[256, 257]]), 8, 1e6))
  assert turned.dtype == jnp.bfloat16 and jnp.any(turned[:, 0] != turned[:, 1])


def test_an_unknown_id_gives_nan(tied):
  assert np.all(np.isnan(tied.embed(jnp.asarray([[40]]))))


def test_config_reads_both_places_of_rope_theta():
  sizes = {"vocab_size": 40, "hidden_size": 16, "num_attention_heads": 4}
  old = Qwen2Config.from_hf({**sizes, "num_key_value_heads": 2, "rope_theta": 5e5})
  new = Qwen2Config.from_hf(
    {
      **sizes,
      "num_key_value_heads": 2,
      "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
    }
  )
  assert old == new and old.rope_theta == 5e5 and old.head_dim == 4
  assert Qwen2Config.from_hf(old.to_hf()) == old


@pytest.mark.parametrize(
  "change",
  [
    {"hidden_act": "gelu"},
    {"use_sliding_window": True},
    {"model_type": "llama"},
    {"rope_scaling": {"type": "yarn", "factor": 4.0}},
    {"head_dim": 64},
  ],
)
def test_config_refuses_what_the_model_does_not_compute(change):
  with pytest.raises(ValueError, match=next(iter(change)).split("_")[0]):
    Qwen2Config.from_hf(change)


def test_config_refuses_sizes_that_do_not_divide():
  with pytest.raises(ValueError, match="hidden_size=18"):
    Qwen2Config(40, 18, 24, 2, 4, 2)
  with pytest.raises(ValueError, match="num_key_value_heads=3"):
    Qwen2Config(40, 16, 24, 2, 4, 3)
