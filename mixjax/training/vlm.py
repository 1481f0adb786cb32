"""One train step of the full vision-language model: tiles of pixels in, all parameters moved.

The proxies' step lives on cached features; a full fine-tune moves the vision tower too, so its
tiles are encoded inside the step.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from mixjax.models import clip, layers
from mixjax.models.clip_config import ClipVisionConfig
from mixjax.models.llava import Projector
from mixjax.models.qwen2 import Qwen2, Qwen2Config
from mixjax.training import loss


@dataclasses.dataclass(frozen=True)
class VlmConfig:
  """Sizes, and the shape of a packed batch: its image tokens come from `tiles` tiles a row."""

  text: Qwen2Config
  vision: ClipVisionConfig
  batch: int
  length: int  # tokens in a row
  image_tokens: int  # of the row's tokens, those that show a patch or a newline
  tiles: int
  feature_layer: int = -2
  frozen_tower: bool = False

  def __post_init__(self):
    if not 0 <= self.image_tokens < self.length:
      raise ValueError(f"{self.image_tokens} image tokens leave no text in a row of {self.length}")
    if self.image_tokens > self.tiles * self.vision.num_patches * 2:
      raise ValueError(
        f"{self.tiles} tiles of {self.vision.num_patches} patches cannot fill "
        f"{self.image_tokens} image tokens: give more tiles"
      )

  def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
    """What `objective` wants of a batch; every array's first axis is the row."""
    rows, side = (self.batch, self.length), self.vision.image_size
    return {
      "ids": jax.ShapeDtypeStruct(rows, jnp.int32),
      "positions": jax.ShapeDtypeStruct(rows, jnp.int32),
      "segments": jax.ShapeDtypeStruct(rows, jnp.int32),
      "loss_mask": jax.ShapeDtypeStruct(rows, bool),
      "shown": jax.ShapeDtypeStruct(rows, jnp.int32),
      "tiles": jax.ShapeDtypeStruct((self.batch, self.tiles, side, side, 3), jnp.uint8),
    }


class Vlm(nnx.Module):
  """Vision tower, projector, newline and language model."""

  def __init__(self, config: VlmConfig, *, rngs: nnx.Rngs):
    self.config = config
    d = config.text.hidden_size
    self.vision = clip.ClipVision(config.vision, rngs=rngs)
    self.projector = Projector(config.vision.hidden_size, d, rngs=rngs)
    self.image_newline = layers.normal(rngs, (d,), d)
    self.text = Qwen2(config.text, rngs=rngs)

  def patches(self, tiles: UInt8[Array, "b n h w 3"]) -> Float[Array, "b s d"]:
    """All patches of each row's tiles as the language model sees them, and a newline after them."""
    config = self.config
    pixels = clip.preprocess(layers.flat(tiles, 3))
    features = self.vision.features(pixels, config.feature_layer)
    if config.frozen_tower:
      features = jax.lax.stop_gradient(features)
    rows = layers.sharding_with(features, None, None, keep=1)
    shape = (tiles.shape[0], -1, features.shape[-1])
    features = jnp.reshape(features, shape, out_sharding=rows)
    x = self.projector(features.astype(config.text.dtype))
    newline = layers.gathered(self.image_newline, x.dtype)[None, None]
    newline = jnp.broadcast_to(newline, x[:, :1].shape, out_sharding=layers.sharding_with(x))
    return jnp.concatenate([x, newline], axis=1)

  def embed(
    self, ids: Int[Array, "b t"], tiles: UInt8[Array, "b n h w 3"], shown: Int[Array, "b t"]
  ) -> Float[Array, "b t d"]:
    """Token embeddings, or the patch with the number `shown`; the last is the newline, -1 text."""
    patches = self.patches(tiles)
    at = jnp.clip(shown, 0, patches.shape[1] - 1)[:, :, None]
    patches = jnp.take_along_axis(patches, at, axis=1)
    return jnp.where((shown >= 0)[:, :, None], patches, self.text.embed(ids))


def objective(graphdef: nnx.GraphDef, loss_chunk: int | None) -> Callable:
  """`(parameters, batch) -> float[]`: nats a token to be predicted; see `VlmConfig.batch_shapes`.

  A batch's `segments` count from 1 in each packed row, 0 is padding.
  """

  def mean(params, batch):
    model = nnx.merge(graphdef, params)
    x = model.embed(batch["ids"], batch["tiles"], batch["shown"])
    hidden = model.text(x, batch["positions"], segments=batch["segments"])
    counted = batch["loss_mask"][:, 1:]
    chunk = loss_chunk or hidden.shape[1]
    total = loss.chunked_nll(model.text, hidden[:, :-1], batch["ids"][:, 1:], counted, chunk)
    return total / jnp.maximum(jnp.sum(counted), 1)

  return mean
