import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from mixjax.models import hf
from mixjax.models import mesh as mesh_lib
from mixjax.models.clip import Clip
from mixjax.models.llava import Llava
from mixjax.models.llava_next import LlavaNext
from mixjax.models.qwen2 import Qwen2

GOLDEN = pathlib.Path(__file__).parent / "golden"
DOORS = {
  "qwen2_tied": (hf.load_qwen2, hf.save_qwen2, Qwen2),
  "qwen2_untied": (hf.load_qwen2, hf.save_qwen2, Qwen2),
  "clip": (hf.load_clip, hf.save_clip, Clip),
  "llava": (hf.load_llava, hf.save_llava, Llava),
  "llava_next": (hf.load_llava_next, hf.save_llava_next, LlavaNext),
}


def edited(name, folder, edit):
  """A copy of a golden whose tensors `edit` changes in place."""
  shutil.copytree(GOLDEN / name, folder, dirs_exist_ok=True)
  tensors = load_file(folder / "model.safetensors")
  edit(tensors)
  save_file(tensors, folder / "model.safetensors")
  return folder


def assert_same(ours, theirs):
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True
  ):
    np.testing.assert_array_equal(a, b, err_msg=mesh_lib.dotted(path))


@pytest.mark.parametrize("name", DOORS)
def test_round_trip_is_bit_equal(name, tmp_path):
  load, save, _ = DOORS[name]
  model = load(GOLDEN / name)
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(model))
  save(model, tmp_path)
  written, golden = (load_file(f / "model.safetensors") for f in (tmp_path, GOLDEN / name))
  assert written.keys() == golden.keys()
  for key in golden:
    assert written[key].dtype == golden[key].dtype, key
    np.testing.assert_array_equal(written[key], golden[key], err_msg=key)
  again = load(tmp_path)
  assert again.config == model.config
  assert_same(again, model)
  assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("name", DOORS)
def test_a_loaded_model_is_a_built_model(name):
  load, _, kind = DOORS[name]
  model = load(GOLDEN / name)
  built = jax.eval_shape(lambda: kind(model.config, rngs=nnx.Rngs(0)))
  assert jax.tree.structure(model) == jax.tree.structure(built)
  shapes = [[leaf.shape for leaf in jax.tree.leaves(tree)] for tree in (model, built)]
  assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", DOORS)
def test_torch_reads_what_we_write(name, tmp_path):
  pytest.importorskip("torch")
  import transformers

  load, save, _ = DOORS[name]
  save(load(GOLDEN / name), tmp_path)
  kind = json.loads((tmp_path / "config.json").read_text())["architectures"][0]
  kind = getattr(transformers, kind)
  ours, notes = kind.from_pretrained(tmp_path, output_loading_info=True)
  assert not any(notes.values()), notes
  theirs = kind.from_pretrained(GOLDEN / name).state_dict()
  for key, value in ours.state_dict().items():
    assert bool((value == theirs[key]).all()), key
  assert_same(load(tmp_path), load(GOLDEN / name))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_storage_in_half_precision_loads_as_float32(dtype, tmp_path):
  model = hf.load_qwen2(GOLDEN / "qwen2_tied")
  hf.save_qwen2(model, tmp_path, dtype)
  stored = load_file(tmp_path / "model.safetensors")["model.norm.weight"]
  assert stored.dtype == jnp.dtype(dtype)
  rounded = jax.tree.map(lambda leaf: leaf.astype(dtype).astype(jnp.float32), model)
  assert_same(hf.load_qwen2(tmp_path), rounded)


def test_every_key_that_does_not_fit_is_listed(tmp_path):
  def edit(tensors):
    del tensors["model.norm.weight"]
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.layers.2.mlp.up_proj.weight"] = np.zeros((24, 16), np.float32)
    tensors["model.layers.0.self_attn.k_proj.weight"] = np.zeros((16, 16), np.float32)

  folder = edited("qwen2_tied", tmp_path, edit)
  with pytest.raises(ValueError) as raised:
    hf.load_qwen2(folder)
  message = str(raised.value)
  assert "missing: model.norm.weight (16,)" in message
  assert "missing: model.layers.1.mlp.up_proj.weight (24, 16)" in message
  assert "left over: model.layers.2.mlp.up_proj.weight" in message
  assert "wrong shape: model.layers.0.self_attn.k_proj.weight is (16, 16)" in message
  assert "asks for (8, 16)" in message and str(folder) in message


def test_a_tied_model_refuses_a_head(tmp_path):
  def edit(tensors):
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1

  with pytest.raises(ValueError, match=r"left over: lm_head\.weight"):
    hf.load_qwen2(edited("qwen2_tied", tmp_path, edit))


def test_files_from_older_transformers(tmp_path):
  def edit(tensors):
    for key in [key for key in tensors if key.startswith("vision_tower.")]:
      tensors[key.replace("vision_tower.", "vision_tower.vision_model.")] = tensors.pop(key)
    tensors["vision_tower.vision_model.embeddings.position_ids"] = np.arange(10)[None]

  assert_same(hf.load_llava(edited("llava", tmp_path, edit)), hf.load_llava(GOLDEN / "llava"))


def test_a_model_in_several_files(tmp_path):
  shutil.copy(GOLDEN / "qwen2_tied" / "config.json", tmp_path)
  tensors = load_file(GOLDEN / "qwen2_tied" / "model.safetensors")
  where = {key: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, key in enumerate(tensors)}
  for name in set(where.values()):
    save_file({key: tensors[key] for key in tensors if where[key] == name}, tmp_path / name)
  index = json.dumps({"weight_map": where})
  (tmp_path / "model.safetensors.index.json").write_text(index)
  assert_same(hf.load_qwen2(tmp_path), hf.load_qwen2(GOLDEN / "qwen2_tied"))


def test_without_tower_the_other_keys_stay_strict(tmp_path):
  def edit(tensors):
    tensors["image_newline"] = np.zeros(16, np.float32)

  with pytest.raises(ValueError, match="left over: image_newline"):
    hf.load_llava(edited("llava", tmp_path, edit), tower=False)
  small = hf.load_llava(GOLDEN / "llava", tower=False)
  with pytest.raises(ValueError, match="vision tower"):
    hf.save_llava(small, tmp_path)


def test_under_a_mesh_parameters_load_in_place():
  alone = hf.load_qwen2(GOLDEN / "qwen2_untied")
  with jax.set_mesh(mesh_lib.make_mesh(4, 2)):
    model = hf.load_qwen2(GOLDEN / "qwen2_untied")
    assert jax.typeof(model.embedding[...]).sharding.spec == jax.P("model", "data")
    assert_same(model, alone)
