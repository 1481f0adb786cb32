"""Hugging Face folders in and out: config.json and safetensors, without torch.

Loading is strict both ways: a missing, left-over or wrongly shaped key stops it, and the error
lists every one. Parameters load as float32, each shard straight to its device if a mesh is set: a
host holds no more than a piece of a parameter beside what its own devices keep.
"""

import functools
import os
import pathlib
import re
import shutil
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental import multihost_utils

from mixjax.models import hf_arrays, hf_config, hf_files, hf_keys
from mixjax.models import mesh as mesh_lib
from mixjax.models.clip import Clip, ClipConfig, ClipVision
from mixjax.models.hf_config import read_config as read_config
from mixjax.models.llava import Llava, LlavaConfig
from mixjax.models.llava_next import LlavaNext, LlavaNextConfig
from mixjax.models.qwen2 import Qwen2, Qwen2Config

Model = TypeVar("Model", bound=nnx.Module)

# Buffers, not parameters, in files from before transformers 4.31.
BUFFERS = r"\.(position_ids|rotary_emb\.inv_freq)$"
# What goes with weights and is not ours to make.
COMPANIONS = (
  "generation_config.json",
  "tokenizer.json",
  "tokenizer_config.json",
  "vocab.json",
  "merges.txt",
  "added_tokens.json",
  "special_tokens_map.json",
  "chat_template.jinja",
  "chat_template.json",
  "preprocessor_config.json",
  "processor_config.json",
)


def load_qwen2(folder: str | os.PathLike, **running: Any) -> Qwen2:
  """A Qwen2ForCausalLM. `running` sets remat, unroll and dtype; ValueError if keys do not fit."""
  config = hf_config.configured(folder, "qwen2", Qwen2Config, **running)
  return load(folder, lambda: Qwen2(config, rngs=nnx.Rngs(0)), hf_keys.qwen2_table(config))


def load_clip(folder: str | os.PathLike, **running: Any) -> Clip:
  """A CLIPModel. `running` sets remat, unroll and dtype; ValueError if keys do not fit."""
  config = hf_config.configured(folder, "clip", ClipConfig, **running)
  return load(folder, lambda: Clip(config, rngs=nnx.Rngs(0)), hf_keys.clip_table(config))


def load_clip_vision(folder: str | os.PathLike, **running: Any) -> ClipVision:
  """The vision tower of a CLIPModel, whose other half stays on disk; as `load_clip` else."""
  config = hf_config.configured(folder, "clip", ClipConfig, **running).vision
  table = hf_keys.clip_vision_table(config)
  table = [(path, f"vision_model.{key}", layout) for path, key, layout in table]
  unread = r"^(text_model\.|text_projection\.|visual_projection\.|logit_scale$)"
  return load(folder, lambda: ClipVision(config, rngs=nnx.Rngs(0)), table, unread)


def load_llava(folder: str | os.PathLike, *, tower: bool = True, **running: Any) -> Llava:
  """A LlavaForConditionalGeneration of Qwen2 and CLIP; without its vision tower if not `tower`.

  `running` sets remat, unroll and dtype; ValueError if keys do not fit.
  """
  config = hf_config.configured(folder, "llava", LlavaConfig, **running)
  return _load_vlm(folder, Llava, config, hf_keys.llava_table(config, tower), tower)


def load_llava_next(folder: str | os.PathLike, *, tower: bool = True, **running: Any) -> LlavaNext:
  """A LlavaNextForConditionalGeneration of Qwen2 and CLIP; without its vision tower if not `tower`.

  `running` sets remat, unroll and dtype; ValueError if keys do not fit.
  """
  config = hf_config.configured(folder, "llava_next", LlavaNextConfig, **running)
  return _load_vlm(folder, LlavaNext, config, hf_keys.llava_next_table(config, tower), tower)


def _load_vlm(folder, make: type[Model], config, table: hf_keys.Table, tower: bool) -> Model:
  def build():
    return make(config, rngs=nnx.Rngs(0), tower=tower)

  return load(folder, build, table, unread=None if tower else r"^vision_tower\.")


def save_qwen2(
  model: Qwen2, folder: str | os.PathLike, dtype: str = "float32", **files: Any
) -> None:
  """Writes what `Qwen2ForCausalLM.from_pretrained` reads; see `save`."""
  save(model, folder, hf_keys.qwen2_table(model.config), dtype, **files)


def save_clip(model: Clip, folder: str | os.PathLike, dtype: str = "float32", **files: Any) -> None:
  """Writes what `CLIPModel.from_pretrained` reads; see `save`."""
  save(model, folder, hf_keys.clip_table(model.config), dtype, **files)


def save_llava(
  model: Llava, folder: str | os.PathLike, dtype: str = "float32", **files: Any
) -> None:
  """Writes what `LlavaForConditionalGeneration.from_pretrained` reads; see `save`.

  Raises ValueError for a model without its vision tower.
  """
  _save_vlm(model, folder, hf_keys.llava_table(model.config, tower=True), dtype, **files)


def save_llava_next(
  model: LlavaNext, folder: str | os.PathLike, dtype: str = "float32", **files: Any
) -> None:
  """Writes what `LlavaNextForConditionalGeneration.from_pretrained` reads; see `save`.

  Raises ValueError for a model without its vision tower.
  """
  _save_vlm(model, folder, hf_keys.llava_next_table(model.config, tower=True), dtype, **files)


def _save_vlm(model: Llava, folder, table: hf_keys.Table, dtype: str, **files: Any) -> None:
  if model.vision is None:
    name = type(model).__name__
    raise ValueError(f"the {name} layout needs a vision tower: set model.vision before saving")
  save(model, folder, table, dtype, **files)


def load(
  folder: str | os.PathLike,
  build: Callable[[], Model],
  table: hf_keys.Table,
  unread: str | None = None,
) -> Model:
  """The model of `build` with the parameters of a folder; keys matching `unread` stay on disk.

  Raises ValueError with everything that is wrong: files, keys, shapes and types.
  """
  rows = {path: (key, layout) for path, key, layout in table}
  leaves, structure = jax.tree_util.tree_flatten_with_path(jax.eval_shape(build))
  leaves = [(mesh_lib.dotted(path), leaf) for path, leaf in leaves]
  wanted = {}
  for path, leaf in leaves:
    key, layout = rows[path]
    for name, shape in spread(key, leaf.shape):
      wanted[name] = layout.shape(shape)
  found, problems = hf_files.contents(folder)
  ignored = "|".join(filter(None, [BUFFERS, unread]))
  # Files from before transformers 4.52 have one more level in the tower.
  new = {key: key.replace("vision_tower.vision_model.", "vision_tower.") for key in found}
  problems += [f"twice, old and new name: {new[k]}" for k in new if new[k] != k and new[k] in new]
  found = {new[key]: found[key] for key in found if not re.search(ignored, new[key])}
  problems += mismatches(wanted, found) if found else []
  if problems:
    hf_config.refuse(folder, problems)
  mesh = jax.sharding.get_mesh()
  values = []
  with jax.set_mesh(hf_arrays.NO_MESH):
    for path, leaf in leaves:
      key, layout = rows[path]
      views = [layout.from_torch(found[name], shape) for name, shape in spread(key, leaf.shape)]
      where = None if mesh.empty else mesh_lib.placement(path, leaf.shape, mesh)
      values.append(hf_arrays.placed(views, "{}" in key, leaf, where))
  return jax.tree.unflatten(structure, values)


def save(
  model: nnx.Module,
  folder: str | os.PathLike,
  table: hf_keys.Table,
  dtype: str = "float32",
  *,
  max_shard_size: int = 5 * 10**9,
  source: str | os.PathLike | None = None,
) -> None:
  """Writes config.json and the parameters as `dtype`, whole or not at all.

  Weights of more than `max_shard_size` bytes go into several files with an index. `source` is a
  folder whose tokenizer, processor and generation_config.json are copied; entries of its
  config.json that the model has no use for are kept. On a pod every process calls this, and the
  first one writes. Raises ValueError if `source` has nothing to copy, or says otherwise.
  """
  config = hf_config.exported(model.config, dtype, source)
  companions = []
  if source is not None:
    companions = [pathlib.Path(source) / name for name in COMPANIONS]
    companions = [path for path in companions if path.exists()]
    if not companions:
      raise ValueError(f"{source} has no tokenizer, processor or generation_config.json to copy")
  rows = {path: (key, layout) for path, key, layout in table}
  tensors = []
  for path, leaf in jax.tree_util.tree_flatten_with_path(model)[0]:
    key, layout = rows[mesh_lib.dotted(path)]
    for layer, (name, shape) in enumerate(spread(key, leaf.shape)):
      which = layer if "{}" in key else None
      fetch = functools.partial(hf_arrays.fetched, leaf, which, layout, dtype)
      tensors.append(hf_files.Tensor(name, layout.shape(shape), fetch))
  writes = jax.process_index() == 0
  with jax.set_mesh(hf_arrays.NO_MESH), hf_files.replacing(folder, writes) as new:
    hf_files.write(new, tensors, dtype, max_shard_size, writes)
    if writes:
      for path in companions:
        shutil.copyfile(path, new / path.name)
      hf_files.write_json(new / "config.json", config)
  multihost_utils.sync_global_devices("saved")


def spread(key: str, shape: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
  """Key and shape of every array on disk that makes up one of ours."""
  if "{}" not in key:
    return [(key, shape)]
  return [(key.format(layer), shape[1:]) for layer in range(shape[0])]


def mismatches(wanted: dict[str, tuple[int, ...]], found: hf_files.Arrays) -> list[str]:
  """Every missing, left-over, wrongly shaped and wrongly typed key."""
  problems = [f"missing: {key} {wanted[key]}" for key in sorted(wanted.keys() - found.keys())]
  known = {key: array for key, array in found.items() if array is not None}
  problems += [
    f"left over: {key} {known[key].shape}" for key in sorted(known.keys() - wanted.keys())
  ]
  for key in sorted(wanted.keys() & known.keys()):
    if known[key].shape != wanted[key]:
      problems.append(
        f"wrong shape: {key} is {known[key].shape}, config.json asks for {wanted[key]}"
      )
    if not jnp.issubdtype(known[key].dtype, jnp.floating):
      problems.append(f"wrong type: {key} is {known[key].dtype}, not floating point")
  return problems
