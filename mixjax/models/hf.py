"""Hugging Face folders in and out: config.json and safetensors, without torch.

Loading is strict both ways: a missing, left-over or wrongly shaped key stops it, and the error
lists every one. Parameters load as float32, straight to their place if a mesh is set.
"""

import json
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import save_file

from mixjax.models import hf_keys
from mixjax.models import mesh as mesh_lib
from mixjax.models.clip import Clip, ClipConfig
from mixjax.models.llava import Llava, LlavaConfig
from mixjax.models.llava_next import LlavaNext, LlavaNextConfig
from mixjax.models.qwen2 import Qwen2, Qwen2Config

Model = TypeVar("Model", bound=nnx.Module)

# Buffers, not parameters, in files from before transformers 4.31.
BUFFERS = r"\.(position_ids|rotary_emb\.inv_freq)$"


def load_qwen2(folder: str | os.PathLike, **running: Any) -> Qwen2:
  """A Qwen2ForCausalLM. `running` sets remat, unroll and dtype; ValueError if keys do not fit."""
  config = Qwen2Config.from_hf(read_config(folder), **running)
  return load(folder, lambda: Qwen2(config, rngs=nnx.Rngs(0)), hf_keys.qwen2_table(config))


def load_clip(folder: str | os.PathLike, **running: Any) -> Clip:
  """A CLIPModel. `running` sets remat, unroll and dtype; ValueError if keys do not fit."""
  config = ClipConfig.from_hf(read_config(folder), **running)
  return load(folder, lambda: Clip(config, rngs=nnx.Rngs(0)), hf_keys.clip_table(config))


def load_llava(folder: str | os.PathLike, *, tower: bool = True, **running: Any) -> Llava:
  """A LlavaForConditionalGeneration of Qwen2 and CLIP; without its vision tower if not `tower`.

  `running` sets remat, unroll and dtype; ValueError if keys do not fit.
  """
  config = LlavaConfig.from_hf(read_config(folder), **running)
  return load(
    folder,
    lambda: Llava(config, rngs=nnx.Rngs(0), tower=tower),
    hf_keys.llava_table(config, tower),
    unread=None if tower else r"^vision_tower\.",
  )


def load_llava_next(folder: str | os.PathLike, *, tower: bool = True, **running: Any) -> LlavaNext:
  """A LlavaNextForConditionalGeneration of Qwen2 and CLIP; without its vision tower if not `tower`.

  `running` sets remat, unroll and dtype; ValueError if keys do not fit.
  """
  config = LlavaNextConfig.from_hf(read_config(folder), **running)
  return load(
    folder,
    lambda: LlavaNext(config, rngs=nnx.Rngs(0), tower=tower),
    hf_keys.llava_next_table(config, tower),
    unread=None if tower else r"^vision_tower\.",
  )


def save_qwen2(model: Qwen2, folder: str | os.PathLike, dtype: str = "float32") -> None:
  """Writes what `Qwen2ForCausalLM.from_pretrained` reads, parameters as `dtype`."""
  save(model, folder, hf_keys.qwen2_table(model.config), dtype)


def save_clip(model: Clip, folder: str | os.PathLike, dtype: str = "float32") -> None:
  """Writes what `CLIPModel.from_pretrained` reads, parameters as `dtype`."""
  save(model, folder, hf_keys.clip_table(model.config), dtype)


def save_llava(model: Llava, folder: str | os.PathLike, dtype: str = "float32") -> None:
  """Writes what `LlavaForConditionalGeneration.from_pretrained` reads, parameters as `dtype`.

  Raises ValueError for a model without its vision tower.
  """
  if model.vision is None:
    raise ValueError("the Llava layout needs a vision tower: set model.vision before saving")
  save(model, folder, hf_keys.llava_table(model.config, tower=True), dtype)


def save_llava_next(model: LlavaNext, folder: str | os.PathLike, dtype: str = "float32") -> None:
  """Writes what `LlavaNextForConditionalGeneration.from_pretrained` reads, parameters as `dtype`.

  Raises ValueError for a model without its vision tower.
  """
  if model.vision is None:
    raise ValueError("the LlavaNext layout needs a vision tower: set model.vision before saving")
  save(model, folder, hf_keys.llava_next_table(model.config, tower=True), dtype)


def read_config(folder: str | os.PathLike) -> dict[str, Any]:
  return json.loads((pathlib.Path(folder) / "config.json").read_text())


def load(
  folder: str | os.PathLike,
  build: Callable[[], Model],
  table: hf_keys.Table,
  unread: str | None = None,
) -> Model:
  """The model of `build` with the parameters of a folder; keys matching `unread` stay on disk."""
  rows = {path: (key, layout) for path, key, layout in table}
  leaves, structure = jax.tree_util.tree_flatten_with_path(jax.eval_shape(build))
  wanted = {}
  for path, leaf in leaves:
    key, layout = rows[mesh_lib.dotted(path)]
    for name, shape in spread(key, leaf.shape):
      wanted[name] = layout.shape(shape)
  with Folder(folder) as files:
    found = files.shapes()
    if unread:
      found = {key: shape for key, shape in found.items() if not re.search(unread, key)}
    check(folder, wanted, found)
    mesh = jax.sharding.get_mesh()
    values = []
    for path, leaf in leaves:
      path = mesh_lib.dotted(path)
      key, layout = rows[path]
      parts = [
        layout.from_torch(files.read(name), shape).astype(np.float32)
        for name, shape in spread(key, leaf.shape)
      ]
      value = np.stack(parts) if "{}" in key else parts[0]
      where = None if mesh.empty else mesh_lib.placement(path, value.shape, mesh)
      values.append(jnp.asarray(value) if where is None else jax.device_put(value, where))
  return jax.tree.unflatten(structure, values)


def save(
  model: nnx.Module, folder: str | os.PathLike, table: hf_keys.Table, dtype: str = "float32"
) -> None:
  """Writes config.json and model.safetensors, each whole or not at all."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  rows = {path: (key, layout) for path, key, layout in table}
  tensors = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(model)[0]:
    key, layout = rows[mesh_lib.dotted(path)]
    value = np.asarray(leaf)
    parts = value if "{}" in key else [value]
    for (name, _), part in zip(spread(key, value.shape), parts, strict=True):
      tensors[name] = np.array(layout.to_torch(part), jnp.dtype(dtype), order="C")
  part = folder / "model.safetensors.part"
  save_file(tensors, part, metadata={"format": "pt"})
  part.rename(folder / "model.safetensors")
  config = {**model.config.to_hf(), "dtype": dtype, "torch_dtype": dtype}
  part = folder / "config.json.part"
  part.write_text(json.dumps(config, indent=2) + "\n")
  part.rename(folder / "config.json")


def spread(key: str, shape: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
  """Key and shape of every array on disk that makes up one of ours."""
  if "{}" not in key:
    return [(key, shape)]
  return [(key.format(layer), shape[1:]) for layer in range(shape[0])]


def check(folder: str | os.PathLike, wanted: dict, found: dict) -> None:
  """Raises ValueError with every missing, left-over and wrongly shaped key."""
  problems = [f"missing: {key} {wanted[key]}" for key in sorted(wanted.keys() - found.keys())]
  problems += [f"left over: {key} {found[key]}" for key in sorted(found.keys() - wanted.keys())]
  problems += [
    f"wrong shape: {key} is {found[key]}, config.json asks for {wanted[key]}"
    for key in sorted(wanted.keys() & found.keys())
    if wanted[key] != found[key]
  ]
  if problems:
    raise ValueError(
      f"{folder} does not hold the model of its config.json:\n  " + "\n  ".join(problems)
    )


class Folder:
  """The safetensors files of a folder, read one array at a time."""

  def __init__(self, folder: str | os.PathLike):
    folder = pathlib.Path(folder)
    index = folder / "model.safetensors.index.json"
    if index.exists():
      names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    else:
      names = ["model.safetensors"]
    self.paths = [folder / name for name in names]

  def __enter__(self) -> "Folder":
    self.files = [safe_open(path, framework="np") for path in self.paths]
    self.where = {}
    for file in self.files:
      for key in sorted(file.keys()):
        if not re.search(BUFFERS, key):
          # Files from before transformers 4.52 have one more level in the tower.
          self.where[key.replace("vision_tower.vision_model.", "vision_tower.")] = file, key
    return self

  def __exit__(self, *_: object) -> None:
    self.files.clear()
    self.where.clear()

  def shapes(self) -> dict[str, tuple[int, ...]]:
    return {
      name: tuple(file.get_slice(key).get_shape()) for name, (file, key) in self.where.items()
    }

  def read(self, name: str) -> np.ndarray:
    file, key = self.where[name]
    return file.get_tensor(key)
