"""The keys that transformers writes to disk, paired with our parameter paths: one table a model.

Layouts are those of `save_pretrained` in transformers 5, which differ from `state_dict()`.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from mixjax.models.clip_config import ClipConfig, ClipVisionConfig
from mixjax.models.llava import LlavaConfig
from mixjax.models.llava_next import LlavaNextConfig
from mixjax.models.qwen2 import Qwen2Config

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
  """How torch lays out a parameter of our shape, and the way there and back."""

  shape: Callable[[Shape], Shape]
  to_torch: Callable[[np.ndarray], np.ndarray]
  from_torch: Callable[[np.ndarray, Shape], np.ndarray]


def linear(inputs: int) -> Layout:
  """torch.nn.Linear keeps [out, in]; ours is [*in, *out] with `inputs` input axes."""

  def shape(ours: Shape) -> Shape:
    return math.prod(ours[inputs:]), math.prod(ours[:inputs])

  return Layout(
    shape=shape,
    to_torch=lambda w: w.reshape(shape(w.shape)[::-1]).T,
    from_torch=lambda w, ours: w.T.reshape(ours),
  )


SAME = Layout(lambda ours: ours, lambda w: w, lambda w, ours: w)
FLAT = Layout(lambda ours: (math.prod(ours),), np.ravel, lambda w, ours: w.reshape(ours))
LINEAR, OUTPUT = linear(1), linear(2)


# torch.nn.Conv2d keeps [out, in, row, column]; ours is [row, column, in, out].
CONVOLUTION = Layout(
  shape=lambda ours: (ours[3], ours[2], ours[0], ours[1]),
  to_torch=lambda w: w.transpose(3, 2, 0, 1),
  from_torch=lambda w, ours: w.transpose(2, 3, 1, 0),
)


def patch(side: int) -> Layout:
  """A convolution that is as wide as its stride; ours is [row * column * channel, out]."""
  return Layout(
    shape=lambda ours: (ours[1], ours[0] // side**2, side, side),
    to_torch=lambda w: w.reshape(side, side, -1, w.shape[1]).transpose(3, 2, 0, 1),
    from_torch=lambda w, ours: w.transpose(2, 3, 1, 0).reshape(ours),
  )


# Our path, the key on disk, the layout. `{}` is the layer, axis 0 of our stacked arrays.
Table = list[tuple[str, str, Layout]]


def norm(ours: str, theirs: str) -> Table:
  return [(f"{ours}.scale", f"{theirs}.weight", SAME), (f"{ours}.bias", f"{theirs}.bias", SAME)]


def dense(ours: str, theirs: str, layout: Layout = LINEAR) -> Table:
  return [(f"{ours}.kernel", f"{theirs}.weight", layout), (f"{ours}.bias", f"{theirs}.bias", FLAT)]


def qwen2_table(config: Qwen2Config) -> Table:
  layer = "model.layers.{}"
  table = [
    ("embedding", "model.embed_tokens.weight", SAME),
    ("norm.scale", "model.norm.weight", SAME),
    ("layers.attention_norm.scale", f"{layer}.input_layernorm.weight", SAME),
    ("layers.mlp_norm.scale", f"{layer}.post_attention_layernorm.weight", SAME),
    ("layers.attention.o.kernel", f"{layer}.self_attn.o_proj.weight", OUTPUT),
  ]
  for name in ("q", "k", "v"):
    table += dense(f"layers.attention.{name}", f"{layer}.self_attn.{name}_proj")
  for name in ("gate", "up", "down"):
    table.append((f"layers.mlp.{name}.kernel", f"{layer}.mlp.{name}_proj.weight", LINEAR))
  if not config.tie_word_embeddings:
    table.append(("head", "lm_head.weight", SAME))
  return table


def clip_encoder_table() -> Table:
  layer = "encoder.layers.{}"
  return [
    *norm("layers.attention_norm", f"{layer}.layer_norm1"),
    *norm("layers.mlp_norm", f"{layer}.layer_norm2"),
    *dense("layers.attention.q", f"{layer}.self_attn.q_proj"),
    *dense("layers.attention.k", f"{layer}.self_attn.k_proj"),
    *dense("layers.attention.v", f"{layer}.self_attn.v_proj"),
    *dense("layers.attention.o", f"{layer}.self_attn.out_proj", OUTPUT),
    *dense("layers.up", f"{layer}.mlp.fc1"),
    *dense("layers.down", f"{layer}.mlp.fc2"),
  ]


def clip_vision_table(config: ClipVisionConfig) -> Table:
  side = config.patch_size // config.stem_stride
  stem = []  # no Hugging Face checkpoint has one
  for i in range(len(config.stem)):
    stem.append((f"stem.{i}.kernel", f"embeddings.stem.{i}.weight", CONVOLUTION))
    stem += norm(f"stem.{i}.norm", f"embeddings.stem.{i}.layernorm")
  return [
    *stem,
    ("class_embedding", "embeddings.class_embedding", SAME),
    ("patch.kernel", "embeddings.patch_embedding.weight", patch(side)),
    ("positions", "embeddings.position_embedding.weight", SAME),
    *norm("pre_norm", "pre_layrnorm"),  # spelled so in transformers
    *norm("post_norm", "post_layernorm"),
    *clip_encoder_table(),
  ]


def clip_table(config: ClipConfig) -> Table:
  text = [
    ("embedding", "embeddings.token_embedding.weight", SAME),
    ("positions", "embeddings.position_embedding.weight", SAME),
    *norm("norm", "final_layer_norm"),
    *clip_encoder_table(),
  ]
  return [
    *under("vision", "vision_model", clip_vision_table(config.vision)),
    *under("text", "text_model", text),
    ("vision_projection.kernel", "visual_projection.weight", LINEAR),
    ("text_projection.kernel", "text_projection.weight", LINEAR),
    ("logit_scale", "logit_scale", SAME),
  ]


def llava_table(config: LlavaConfig, tower: bool) -> Table:
  table = [
    *under("text", "language_model", qwen2_table(config.text)),
    *dense("projector.up", "multi_modal_projector.linear_1"),
    *dense("projector.down", "multi_modal_projector.linear_2"),
  ]
  if tower:
    table += under("vision", "vision_tower", clip_vision_table(config.vision))
  return table


def llava_next_table(config: LlavaNextConfig, tower: bool) -> Table:
  return [*llava_table(config, tower), ("image_newline", "image_newline", SAME)]


def under(ours: str, theirs: str, table: Table) -> Table:
  return [(f"{ours}.{path}", f"{theirs}.{key}", layout) for path, key, layout in table]
