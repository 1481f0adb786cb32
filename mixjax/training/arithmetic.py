"""FLOPs of a train step from the model's arithmetic; a compiler counts a scan's body only once.

A multiply-add is two FLOPs. Matrix products alone count: norms, softmax and rotary angles are a
thousandth of them. `model` FLOPs, those of utilisation figures, are three times the forward pass
(one more for the gradient of the inputs, one for that of the weights) with attention only where the
mask lets it look; `hardware` FLOPs add what remat computes again.
"""

from typing import Any

from mixjax.models.clip_config import ClipVisionConfig
from mixjax.models.qwen2 import Qwen2Config


def text_flops(config: Qwen2Config, length: int, predicted: int) -> dict[str, float]:
  """Forward FLOPs of one row of `length` tokens by kind, of which `predicted` get logits."""
  d, f, h = config.hidden_size, config.intermediate_size, config.head_dim
  n, k = config.num_attention_heads, config.num_key_value_heads
  projections = d * h * (2 * n + 2 * k)  # queries and output, keys and values
  visible = length * (length + 1) / 2  # pairs of a position and what it sees
  return {
    "layers": 2.0 * config.num_hidden_layers * length * (projections + 3 * d * f),
    "attention": 4.0 * config.num_hidden_layers * n * h * visible,
    "head": 2.0 * predicted * d * config.vocab_size,
  }


def vision_flops(config: ClipVisionConfig, tiles: int, layer: int) -> float:
  """Forward FLOPs of the tower on `tiles` images, up to the layer that the projector reads."""
  d, f = config.hidden_size, config.intermediate_size
  tokens = config.num_patches + 1
  depth = layer if layer >= 0 else config.num_hidden_layers + 1 + layer
  one = depth * (2 * tokens * (4 * d * d + 2 * d * f) + 4 * tokens**2 * d)
  return float(tiles * (one + 2 * config.num_patches * config.patch_values * d))


def projector_flops(vision_size: int, text_size: int, patches: int) -> float:
  """Forward FLOPs of the two layers of the projector."""
  return 2.0 * patches * text_size * (vision_size + text_size)


def step_flops(
  text: Qwen2Config,
  vision: ClipVisionConfig,
  *,
  batch: int,
  length: int,
  tiles: int,
  layer: int,
  frozen: bool,
) -> dict[str, Any]:
  """FLOPs of one step over the whole batch: `forward` by part, `model`, and `hardware`."""
  forward = text_flops(text, length, length - 1)
  forward["projector"] = projector_flops(
    vision.hidden_size, text.hidden_size, tiles * vision.num_patches
  )
  forward["tower"] = vision_flops(vision, tiles, layer)
  forward = {name: value * batch for name, value in forward.items()}
  moved = sum(forward.values()) - forward["tower"] * frozen
  model = sum(forward.values()) + 2 * moved
  again = forward["head"]  # the loss never keeps its logits
  if text.remat == "nothing_saveable":
    again += forward["layers"] + forward["attention"]
  if vision.remat == "nothing_saveable" and not frozen:
    again += forward["tower"]
  return {"forward": forward, "model": model, "hardware": model + again}
