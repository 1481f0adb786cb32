import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import meshes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from mixjax.models import clip, hf

GOLDEN = pathlib.Path(__file__).parent / "golden" / "clip"


@pytest.fixture(scope="module")
def model():
  return hf.load_clip(GOLDEN)


@pytest.fixture(scope="module")
def io():
  return jax.tree.map(jnp.asarray, load_file(GOLDEN / "io.safetensors"))


def close(ours, theirs):
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def assert_parity(folder, shape=None):
  model, io = hf.load_clip(folder), load_file(folder / "io.safetensors")
  images = meshes.run(clip.Clip.image_embedding, model, io["pixels"], shape=shape)
  texts = meshes.run(clip.Clip.text_embedding, model, io["ids"], io["mask"], shape=shape)
  close(images, io["images"])
  close(texts, io["texts"])
  close(
    meshes.run(clip.ClipVision.features, model.vision, io["pixels"], shape=shape), io["features"]
  )


@pytest.mark.parametrize("shape", meshes.SHAPES)
def test_embeddings_and_features_match_the_golden(shape):
  assert_parity(GOLDEN, shape)


def test_embeddings_and_features_match_torch(tmp_path):
  pytest.importorskip("torch")
  from golden import make_golden

  make_golden.clip(tmp_path, seed=13)
  assert_parity(tmp_path)


def test_the_old_end_token_means_the_largest_id(io, tmp_path):
  shutil.copytree(GOLDEN, tmp_path, dirs_exist_ok=True)
  config = json.loads((tmp_path / "config.json").read_text())
  config["text_config"]["eos_token_id"] = 2
  (tmp_path / "config.json").write_text(json.dumps(config))
  texts = hf.load_clip(tmp_path).text_embedding(io["ids"], io["mask"])
  close(texts, io["legacy_texts"])
  assert np.abs(io["legacy_texts"] - io["texts"]).max() > 0.1


def test_embeddings_have_length_one(model, io):
  close(np.linalg.norm(model.image_embedding(io["pixels"]), axis=1), np.ones(4))


def test_layers_count_from_both_ends(model, io):
  hidden = model.vision.hidden
  np.testing.assert_array_equal(hidden(io["pixels"], -1), hidden(io["pixels"], 3))
  np.testing.assert_array_equal(hidden(io["pixels"], -4), hidden(io["pixels"], 0))
  assert np.abs(hidden(io["pixels"], 2) - hidden(io["pixels"], 3)).max() > 0.1
  with pytest.raises(ValueError, match="layer 4 of a tower of 3 layers"):
    hidden(io["pixels"], 4)


def test_patches_are_rows_of_the_image(model, io):
  pixels = io["pixels"]
  changed = pixels.at[:, 4:8, 8:12].add(1.0)  # the patch in row 1, column 2
  before, after = (model.vision.features(images, layer=0) for images in (pixels, changed))
  moved = np.abs(before - after).max((0, 2)) > 0
  np.testing.assert_array_equal(np.flatnonzero(moved), [5])


def test_preprocess_centres_on_the_training_mean():
  images = np.round(np.broadcast_to(np.array(clip.MEAN) * 255, (1, 2, 2, 3))).astype(np.uint8)
  ours = clip.preprocess(jnp.asarray(images))
  assert ours.dtype == jnp.float32 and np.abs(ours).max() < 0.5 / 255 / 0.26
  white = clip.preprocess(jnp.full((1, 1, 1, 3), 255, jnp.uint8))
  close(white[0, 0, 0], (1 - np.array(clip.MEAN)) / np.array(clip.STD))


def test_wrong_sizes_are_refused(model):
  with pytest.raises(ValueError, match="resize"):
    model.vision.features(jnp.zeros((1, 16, 16, 3)))
  with pytest.raises(ValueError, match="truncate"):
    model.text_embedding(jnp.zeros((1, 11), jnp.int32))
  with pytest.raises(ValueError, match="patch_size=5"):
    clip.ClipVisionConfig(16, 24, 2, 2, image_size=12, patch_size=5)
  with pytest.raises(ValueError, match="hidden_act='relu'"):
    clip.ClipVisionConfig(16, 24, 2, 2, hidden_act="relu")


def test_config_round_trip(model):
  assert clip.ClipConfig.from_hf(model.config.to_hf()) == model.config


STEM = ((4, 2), (6, 2))


@pytest.fixture(scope="module")
def stemmed(model):
  vision = dataclasses.replace(model.config.vision, stem=STEM)
  return clip.Clip(dataclasses.replace(model.config, vision=vision), rngs=nnx.Rngs(3))


@pytest.mark.parametrize("shape", meshes.SHAPES)
def test_a_stem_is_convolutions_before_the_patches_are_cut(stemmed, io, shape):
  """The same by hand, from the definition of a padded convolution; also split over devices."""
  vision, side = stemmed.vision, stemmed.config.vision.patch_size // 4
  x = np.asarray(io["pixels"], np.float64)
  for convolution, (_, stride) in zip(vision.stem, STEM, strict=True):
    kernel = np.asarray(convolution.kernel[...], np.float64)
    # "SAME": at stride 2 an even image is padded at its end alone.
    padded = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    y = np.einsum("bijchw,hwcd->bijd", windows[:, ::stride, ::stride], kernel)
    y = y - y.mean(-1, keepdims=True)
    y = y / np.sqrt((y**2).mean(-1, keepdims=True) + stemmed.config.vision.layer_norm_eps)
    x = np.asarray(jax.nn.gelu(jnp.asarray(y, jnp.float32)), np.float64)
  b, h, w, c = x.shape
  patches = (
    x.reshape(b, h // side, side, w // side, side, c).swapaxes(2, 3).reshape(b, -1, 6 * side**2)
  )
  x = patches @ np.asarray(vision.patch.kernel[...], np.float64)
  first = np.broadcast_to(vision.class_embedding[...], (b, 1, x.shape[-1]))
  x = np.concatenate([first, x], axis=1) + np.asarray(vision.positions[...])
  expected = vision.pre_norm(jnp.asarray(x, jnp.float32))
  hidden = meshes.run(lambda v, p: v.hidden(p, 0), vision, io["pixels"], shape=shape)
  close(hidden, expected)


def test_a_stem_survives_the_disk_and_other_checkpoints_have_none(stemmed, model, tmp_path):
  hf.save_clip(stemmed, tmp_path)
  again = hf.load_clip(tmp_path)
  assert again.config == stemmed.config and again.config.vision.stem == STEM
  for ours, theirs in zip(*map(jax.tree.leaves, (again, stemmed)), strict=True):
    np.testing.assert_array_equal(ours, theirs)
  assert "stem" not in model.config.vision.to_hf()


def test_a_stem_that_does_not_fit_the_patches_is_refused(model):
  with pytest.raises(ValueError, match="not a multiple of the stem's stride 3"):
    dataclasses.replace(model.config.vision, patch_size=8, stem=((4, 3),))
