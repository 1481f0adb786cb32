import pathlib

import jax
import jax.numpy as jnp
import meshes
import numpy as np
import pytest
from safetensors.numpy import load_file

from mixjax.evals.generate import decode, generate
from mixjax.models import hf

GOLDEN = pathlib.Path(__file__).parent / "golden" / "llava"
NEW, NEVER = 8, -1


@pytest.fixture(scope="module")
def model():
  return hf.load_llava(GOLDEN)


@pytest.fixture(scope="module")
def io(model):
  io = jax.tree.map(jnp.asarray, load_file(GOLDEN / "io.safetensors"))
  return {**io, "features": model.encode_image(io["pixels"])}


def say(model, ids, mask, features):
  return generate(model, ids, mask, features, NEW, NEVER)


@pytest.mark.parametrize("shape", meshes.SHAPES)
def test_tokens_match_the_golden(shape, model, io):
  said = meshes.run(say, model, io["ids"], io["mask"], io["features"], shape=shape)
  np.testing.assert_array_equal(said, io["said"])


def test_tokens_match_torch(tmp_path):
  pytest.importorskip("torch")
  from golden import make_golden

  make_golden.llava(tmp_path, seed=17)
  model = hf.load_llava(tmp_path)
  io = jax.tree.map(jnp.asarray, load_file(tmp_path / "io.safetensors"))
  features = model.encode_image(io["pixels"])
  said = generate(model, io["ids"], io["mask"], features, NEW, NEVER)
  np.testing.assert_array_equal(said, io["said"])
  ended = generate(model, io["ids"], io["mask"], features, NEW, int(io["end"]))
  np.testing.assert_array_equal(ended, io["ended"])


def test_after_the_end_token_comes_only_the_end_token(model, io):
  ended = generate(model, io["ids"], io["mask"], io["features"], NEW, int(io["end"]))
  np.testing.assert_array_equal(ended, io["ended"])
  assert np.any(io["ended"] != io["said"])


def test_the_cache_changes_nothing(model, io):
  """Each token is the most likely one of a full pass over everything before it."""
  mask = jnp.concatenate([io["mask"], jnp.ones_like(io["said"], bool)], axis=1)
  # Image tokens that the model itself says are words, not places for a patch.
  x = jnp.concatenate(
    [model.embed(io["ids"], io["features"]), model.text.embed(io["said"])], axis=1
  )
  positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
  logits = model.logits(model.text(x, positions, mask))
  best = jnp.argmax(logits, axis=-1)[:, -NEW - 1 : -1]
  np.testing.assert_array_equal(best, io["said"])


def test_padding_may_stand_on_the_right(model, io):
  pad = jnp.argmax(io["mask"], axis=1)
  ids, mask = (
    jnp.stack([jnp.roll(row, -n) for row, n in zip(io[name], pad, strict=True)])
    for name in ("ids", "mask")
  )
  assert not mask[2, -1] and mask[2, 0]
  said = generate(model, ids, mask, io["features"], NEW, NEVER)
  np.testing.assert_array_equal(said, io["said"])


def test_no_mask_means_no_padding(model, io):
  full = generate(model, io["ids"][3:], None, io["features"][3:], 1, NEVER)
  np.testing.assert_array_equal(full, io["said"][3:, :1])


def test_a_shape_is_compiled_once(model, io):
  generate(model, io["ids"], io["mask"], io["features"], NEW, NEVER)
  before = decode._cache_size()
  louder = jax.tree.map(lambda leaf: 2 * leaf, model)
  generate(louder, io["ids"], io["mask"], io["features"], NEW, 5)
  assert decode._cache_size() == before


def test_nothing_to_do_is_refused(model, io):
  with pytest.raises(ValueError, match="max_new_tokens=0"):
    generate(model, io["ids"], io["mask"], io["features"], 0, NEVER)
