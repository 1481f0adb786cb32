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
from safetensors.numpy import load_file, save_file

from mixjax.data import tiles as tiles_lib
from mixjax.evals.generate import generate
from mixjax.models import clip, hf
from mixjax.models import mesh as mesh_lib
from mixjax.models.anyres import PINPOINTS
from mixjax.models.llava_next import LlavaNext, LlavaNextConfig, Tiles
from mixjax.training import loss

GOLDEN = pathlib.Path(__file__).parent / "golden" / "llava_next"


def batch_of(folder, groups=1):
  """ids, mask, loss_mask, pixels and index of a golden, its tiles in so many groups of rows."""
  io = load_file(folder / "io.safetensors")
  geometry = LlavaNextConfig.from_hf(hf.read_config(folder)).anyres
  sizes = [tuple(map(int, size)) for size in io["sizes"][:, 1:]]
  ends = np.cumsum([geometry.num_tiles(size) for size in sizes])
  pictures = np.split(io["tiles"], ends[:-1])
  rows = [[i for i, size in enumerate(io["sizes"]) if size[0] == row] for row in range(4)]
  slots = 1 + max(len(io["tiles"]) // groups, 2 * geometry.max_tiles)
  shape = (groups, slots, geometry.tile, geometry.tile, 3)
  pixels = tiles_lib.stack([[pictures[i] for i in row] for row in rows], shape)
  pixels = clip.preprocess(jnp.asarray(pixels.reshape(-1, *shape[2:]))).reshape(shape)
  index = geometry.index([[sizes[i] for i in row] for row in rows], 2 * geometry.max_tokens, groups)
  arrays = io["ids"], io["mask"], io["loss_mask"], pixels, index
  return [jnp.asarray(array) for array in arrays]


def answers(model, ids, mask, loss_mask, pixels, index):
  """((mean loss of the answers, logits), slope of that loss)."""

  def objective(model):
    logits = model.logits(model(ids, Tiles(model.encode_image(pixels), index), mask=mask))
    here = ids[:, 1:, None] == jnp.arange(logits.shape[-1])[None, None]
    said = jnp.sum(jnp.where(here, jax.nn.log_softmax(logits[:, :-1]), 0), axis=-1)
    counted = loss_mask[:, 1:]
    return -jnp.sum(said * counted) / jnp.sum(counted), logits

  return jax.value_and_grad(objective, has_aux=True)(model)


def assert_parity(folder, shape, groups, tmp_path):
  io = load_file(folder / "io.safetensors")
  model, batch = hf.load_llava_next(folder), batch_of(folder, groups)
  (value, logits), slopes = meshes.run(answers, model, *batch, shape=shape)
  logits = np.asarray(logits)[io["mask"]]
  np.testing.assert_allclose(logits, io["logits"], rtol=0, atol=1e-5)
  np.testing.assert_allclose(value, io["loss"], rtol=0, atol=1e-5)
  hf.save_llava_next(slopes, tmp_path / "slopes")  # in torch's names and layouts
  slopes = load_file(tmp_path / "slopes" / "model.safetensors")
  kept = {key.removeprefix("slope "): io[key] for key in io if key.startswith("slope ")}
  assert np.any(kept["image_newline"])
  for key, theirs in kept.items():
    np.testing.assert_allclose(slopes[key], theirs, rtol=0, atol=1e-5, err_msg=key)


@pytest.mark.parametrize(("shape", "groups"), [(None, 1), ((4, 2), 4)])
def test_logits_and_slopes_match_the_golden(shape, groups, tmp_path):
  assert_parity(GOLDEN, shape, groups, tmp_path)


@pytest.mark.slow  # the golden above is the same without torch
@pytest.mark.parametrize("shape", [None, (4, 2)])
def test_logits_and_slopes_match_torch(shape, tmp_path):
  pytest.importorskip("torch")
  from golden import make_golden

  make_golden.llava_next(
    tmp_path,
    seed=21,
    text={**make_golden.QWEN2, "hidden_size": 32},
    vision={**make_golden.VISION, "image_size": 28, "patch_size": 7},
    tied=False,
  )
  assert_parity(tmp_path, shape, 4, tmp_path)


@pytest.fixture(scope="module")
def model():
  return hf.load_llava_next(GOLDEN)


def test_the_reference_counts_the_same_tokens(model):
  io = load_file(GOLDEN / "io.safetensors")
  sizes = [tuple(map(int, size)) for size in io["sizes"][:, 1:]]
  assert [model.config.anyres.num_tokens(size) for size in sizes] == io["tokens"].tolist()


def test_image_tokens_show_their_patches_and_newlines(model):
  ids, _, _, pixels, index = batch_of(GOLDEN)
  features = model.encode_image(pixels)
  merged = np.asarray(model.embed(ids, Tiles(features, index)))
  image = ids == model.config.image_token_id
  np.testing.assert_array_equal(merged[~image], np.asarray(model.text.embed(ids))[~image])
  patches = np.asarray(model.projector(features[0])).reshape(-1, 16)
  shown = np.concatenate([patches, np.asarray(model.image_newline)[None]])  # -1 is the last
  for row in range(4):
    np.testing.assert_allclose(
      merged[row, image[row]], shown[index[row, : image[row].sum()]], rtol=0, atol=1e-6
    )


def test_a_row_without_image_is_plain_text(model):
  ids, mask, _, pixels, index = batch_of(GOLDEN)
  images = Tiles(model.encode_image(pixels), index)
  mixed = model(ids, images, mask=mask)[2, :8]
  plain = model.text(model.text.embed(ids[2:3, :8]), jnp.arange(8)[None])[0]
  np.testing.assert_allclose(mixed, plain, rtol=0, atol=1e-5)


def test_no_slope_reaches_padding_or_empty_slots(model):
  ids, mask, _, pixels, index = batch_of(GOLDEN)

  def total(features):
    return jnp.sum(jnp.square(model(ids, Tiles(features, index), mask=mask)))

  size = np.abs(jax.jit(jax.grad(total))(model.encode_image(pixels))).sum(-1).ravel()
  seen = np.unique(index[index >= 0])
  assert np.all(size[seen] > 0) and len(seen) < 17 * 9
  assert np.all(np.delete(size, seen) == 0)


def test_image_tokens_without_a_patch_are_nan(model):
  ids, _, _, pixels, index = batch_of(GOLDEN)
  features = model.encode_image(pixels)
  for wrong in (ids.at[1, -1].set(39), ids.at[1, 2].set(0), ids.at[2, 5:8].set(39)):
    merged = np.asarray(model.embed(wrong, Tiles(features, index)))
    row = int(np.flatnonzero((wrong != ids).any(axis=1))[0])
    assert np.all(np.isnan(merged[row, wrong[row] == 39]))
    assert np.all(np.isfinite(np.delete(merged, row, axis=0)))


def test_without_tower_it_lives_on_cached_features(model):
  ids, _, _, pixels, index = batch_of(GOLDEN)
  images = Tiles(model.encode_image(pixels), index)
  small = hf.load_llava_next(GOLDEN, tower=False)
  np.testing.assert_array_equal(small(ids, images), model(ids, images))
  with pytest.raises(ValueError, match="tower=True"):
    small.encode_image(pixels)
  with pytest.raises(ValueError, match="vision tower"):
    hf.save_llava_next(small, "nowhere")


def test_no_feature_leaves_its_device(model):
  """With a group for each device along `data`, the merge and its slope need no collective there."""
  ids, _, _, pixels, index = batch_of(GOLDEN, groups=4)
  features = np.asarray(model.encode_image(pixels))

  def moved(features, ids, index):
    def total(features):
      return jnp.sum(jnp.square(model.embed(ids, Tiles(features, index))), axis=(1, 2))

    return jax.vjp(total, features)[1](jnp.ones(4, out_sharding=jax.P("data")))[0]

  mesh = mesh_lib.make_mesh(data=4)
  with jax.set_mesh(mesh):
    rows = jax.NamedSharding(mesh, jax.P("data"))
    placed = [jax.device_put(array, rows) for array in (features, ids, index)]
    text = jax.jit(moved).lower(*placed).compile().as_text()
  for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
    assert collective not in text


def test_the_training_loss_takes_tiles(model):
  ids, mask, loss_mask, pixels, index = batch_of(GOLDEN)
  images = Tiles(model.encode_image(pixels), index)
  batch = dict(ids=ids, mask=mask, loss_mask=loss_mask, features=images)
  theirs = load_file(GOLDEN / "io.safetensors")["loss"]
  np.testing.assert_allclose(loss.answer_loss(model, batch, 1), theirs, rtol=0, atol=1e-5)


def test_it_generates_with_tiles(model):
  ids, mask, _, pixels, index = batch_of(GOLDEN)
  images = Tiles(model.encode_image(pixels), index)
  said = generate(model, ids, mask, images, 3, eos_id=1000)
  longer = jnp.concatenate([ids[:1], said[:1]], axis=1)
  again = model.logits(model(longer, Tiles(images.features, index[:1])))
  np.testing.assert_array_equal(np.argmax(again[0, -4:-1], axis=-1), said[0])


@pytest.mark.parametrize("tied", [True, False])
def test_round_trip_is_bit_equal_and_torch_reads_it(tied, tmp_path):
  pytest.importorskip("torch")
  import transformers
  from golden import make_golden

  make_golden.llava_next(tmp_path / "theirs", seed=22, tied=tied)
  model = hf.load_llava_next(tmp_path / "theirs")
  hf.save_llava_next(model, tmp_path / "ours")
  ours, theirs = (load_file(tmp_path / f / "model.safetensors") for f in ("ours", "theirs"))
  assert ours.keys() == theirs.keys()
  for key in theirs:
    assert ours[key].dtype == theirs[key].dtype
    np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)
  again = hf.load_llava_next(tmp_path / "ours")
  assert again.config == model.config
  for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(model), strict=True):
    np.testing.assert_array_equal(a, b)

  kind = transformers.LlavaNextForConditionalGeneration
  read, notes = kind.from_pretrained(tmp_path / "ours", output_loading_info=True)
  assert not any(notes.values()), notes
  assert read.config.image_grid_pinpoints == [list(size) for size in model.config.pinpoints]
  for key, value in kind.from_pretrained(tmp_path / "theirs").state_dict().items():
    assert bool((read.state_dict()[key] == value).all()), key


def test_every_key_that_does_not_fit_is_listed(tmp_path):
  shutil.copytree(GOLDEN, tmp_path, dirs_exist_ok=True)
  tensors = load_file(GOLDEN / "model.safetensors")
  tensors["image_newlines"] = tensors.pop("image_newline")
  del tensors["multi_modal_projector.linear_2.bias"]
  save_file(tensors, tmp_path / "model.safetensors")
  with pytest.raises(ValueError) as raised:
    hf.load_llava_next(tmp_path)
  message = str(raised.value)
  assert "missing: image_newline (16,)" in message
  assert "missing: multi_modal_projector.linear_2.bias (16,)" in message
  assert "left over: image_newlines (16,)" in message


def test_a_loaded_model_is_a_built_model(model):
  built = jax.eval_shape(lambda: LlavaNext(model.config, rngs=nnx.Rngs(0)))
  assert jax.tree.structure(model) == jax.tree.structure(built)


def test_configs_of_either_layout(model):
  config = json.loads((GOLDEN / "config.json").read_text())
  assert LlavaNextConfig.from_hf(model.config.to_hf()) == model.config
  old = {**config, "text_config": dict(config["text_config"])}
  del old["text_config"]["rope_parameters"]
  old["text_config"] |= {"rope_theta": 10000.0, "rope_scaling": None}
  old["use_image_newline_parameter"] = True
  for name in ("image_seq_length", "multimodal_projector_bias", "vision_feature_layer"):
    del old[name]  # transformers 4 leaves out what is as usual
  assert LlavaNextConfig.from_hf(old) == model.config
  new = {**config, "image_token_id": config["image_token_index"]}
  del new["image_token_index"]
  assert LlavaNextConfig.from_hf(new) == model.config
  other = {**config, "vision_config": {**config["vision_config"], "image_size": 20}}
  other["image_grid_pinpoints"] = [[20, 40], [40, 20]]
  assert LlavaNextConfig.from_hf(other).pinpoints == ((20, 40), (40, 20))
  usual = {**config, "vision_config": {**config["vision_config"], "image_size": 336}}
  usual["vision_config"]["patch_size"] = 14
  del usual["image_grid_pinpoints"]
  made = LlavaNextConfig.from_hf(usual)
  assert made.pinpoints == PINPOINTS and made.anyres.num_tokens((480, 640)) == 2340
  assert dataclasses.replace(model.config, feature_layer=-1).to_hf()["vision_feature_layer"] == -1


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("model_type", "llava"),
    ("use_image_newline_parameter", False),
    ("vision_feature_select_strategy", "full"),
    ("vision_feature_layer", [-2, -5]),
    ("projector_hidden_act", "relu"),
    ("image_grid_pinpoints", [[12, 20]]),
  ],
)
def test_variants_that_it_does_not_compute_are_refused(name, value):
  config = json.loads((GOLDEN / "config.json").read_text())
  with pytest.raises(ValueError, match=name):
    LlavaNextConfig.from_hf({**config, name: value})
