"""CLIP (arXiv:2103.00020): the vision tower of LLaVA, and the space where images get a concept."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8

from mixjax.models import layers
from mixjax.models.clip_config import (
  ACTIVATIONS,
  ClipConfig,
  ClipTextConfig,
  ClipVisionConfig,
  EncoderConfig,
)

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def preprocess(images: UInt8[Array, "*b h w 3"]) -> Float[Array, "*b h w 3"]:
  """Pixels 0-255 of images already at the tower's size, normalised as CLIP expects."""
  axes = tuple(range(images.ndim - 1))
  mean, std = (jnp.expand_dims(jnp.asarray(value, jnp.float32), axes) for value in (MEAN, STD))
  return (images.astype(jnp.float32) / 255 - mean) / std


class Attention(nnx.Module):
  """Multi-head attention with biases everywhere."""

  def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
    heads = config.num_attention_heads
    sizes = dict(d=config.hidden_size, n=heads, h=config.hidden_size // heads)
    self.q = layers.Einsum("zd,dnh->znh", bias=True, rngs=rngs, **sizes)
    self.k = layers.Einsum("zd,dnh->znh", bias=True, rngs=rngs, **sizes)
    self.v = layers.Einsum("zd,dnh->znh", bias=True, rngs=rngs, **sizes)
    self.o = layers.Einsum("znh,nhd->zd", bias=True, rngs=rngs, **sizes)

  def __call__(self, x: Float[Array, "b t d"], mask: Bool[Array, "b 1 t s"] | None) -> Array:
    y = layers.attend(self.q(x), self.k(x), self.v(x), mask)
    return self.o(y)


class Block(nnx.Module):
  """One pre-norm encoder layer."""

  def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
    sizes = dict(d=config.hidden_size, f=config.intermediate_size)
    self.activation = config.hidden_act
    self.attention_norm = layers.LayerNorm(config.hidden_size, config.layer_norm_eps)
    self.attention = Attention(config, rngs=rngs)
    self.mlp_norm = layers.LayerNorm(config.hidden_size, config.layer_norm_eps)
    self.up = layers.Einsum("zd,df->zf", bias=True, rngs=rngs, **sizes)
    self.down = layers.Einsum("zf,fd->zd", bias=True, rngs=rngs, **sizes)

  def __call__(self, x: Float[Array, "b t d"], mask: Bool[Array, "b 1 t s"] | None) -> Array:
    x = x + self.attention(self.attention_norm(x), mask)
    y = ACTIVATIONS[self.activation](self.up(self.mlp_norm(x)))
    return x + self.down(y)


def encode(
  config: EncoderConfig,
  blocks: Block,
  x: Float[Array, "b t d"],
  mask: Bool[Array, "b 1 t s"] | None = None,
) -> Float[Array, "b t d"]:
  """Runs stacked blocks."""

  def body(x, inputs):
    (block,) = inputs
    return block(x, mask), None

  return layers.scan_layers(body, x, blocks, remat=config.remat, unroll=config.unroll)[0]


def stacked_blocks(config: EncoderConfig, rngs: nnx.Rngs) -> Block:
  """All layers of a tower, stacked on axis 0."""
  return jax.vmap(lambda one: Block(config, rngs=one))(rngs.split(config.num_hidden_layers))


class Convolution(nnx.Module):
  """3 x 3 convolution, LayerNorm over channels, GELU."""

  def __init__(self, inputs: int, outputs: int, stride: int, eps: float, *, rngs: nnx.Rngs):
    self.stride = stride
    self.kernel = layers.normal(rngs, (3, 3, inputs, outputs), 9 * inputs)
    self.norm = layers.LayerNorm(outputs, eps)

  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b y x d"]:
    kernel = layers.gathered(self.kernel, x.dtype)
    axes = ("NHWC", "HWIO", "NHWC")
    strides = (self.stride, self.stride)
    y = jax.lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=axes)
    return jax.nn.gelu(self.norm(y))


class ClipVision(nnx.Module):
  """The vision tower."""

  def __init__(self, config: ClipVisionConfig, *, rngs: nnx.Rngs):
    self.config = config
    d, eps = config.hidden_size, config.layer_norm_eps
    widths = [3, *(channels for channels, _ in config.stem)]
    self.stem = nnx.List(
      Convolution(inputs, outputs, stride, eps, rngs=rngs)
      for inputs, (outputs, stride) in zip(widths, config.stem, strict=False)
    )
    self.patch = layers.Einsum("zc,cd->zd", rngs=rngs, c=config.patch_values, d=d)
    self.class_embedding = layers.normal(rngs, (d,), d)
    self.positions = layers.normal(rngs, (config.num_patches + 1, d), d)
    self.pre_norm = layers.LayerNorm(d, config.layer_norm_eps)
    self.layers = stacked_blocks(config, rngs)
    self.post_norm = layers.LayerNorm(d, config.layer_norm_eps)

  def hidden(self, pixels: Float[Array, "b h w 3"], layer: int = -1) -> Float[Array, "b s d"]:
    """Class token and patches after `layer` layers; -1 is after the last, -2 before it, and so on.

    Raises ValueError for pixels of another size and for a layer that is not there.
    """
    config = self.config
    if pixels.shape[1:] != (config.image_size, config.image_size, 3):
      raise ValueError(
        f"pixels {pixels.shape} are not [b, {config.image_size}, {config.image_size}, 3]: "
        "resize the images first"
      )
    depth = layer if layer >= 0 else config.num_hidden_layers + 1 + layer
    if not 0 <= depth <= config.num_hidden_layers:
      raise ValueError(f"layer {layer} of a tower of {config.num_hidden_layers} layers")
    pixels = pixels.astype(config.dtype)
    for convolution in self.stem:
      pixels = convolution(pixels)
    side = config.patch_size // config.stem_stride
    batch, channels, grid = pixels.shape[0], pixels.shape[3], config.image_size // config.patch_size
    split = (batch, grid, side, grid, side, channels)
    rows = layers.sharding_with(pixels, *[None] * 5, keep=1)
    patches = jnp.reshape(pixels, split, out_sharding=rows).swapaxes(2, 3)
    rows = layers.sharding_with(pixels, None, None, keep=1)
    patches = jnp.reshape(patches, (batch, grid * grid, config.patch_values), out_sharding=rows)
    x = self.patch(patches)
    first = layers.gathered(self.class_embedding, x.dtype)[None, None]
    first = jnp.broadcast_to(first, x[:, :1].shape, out_sharding=layers.sharding_with(x))
    x = jnp.concatenate([first, x], axis=1) + layers.gathered(self.positions, x.dtype)[None]
    blocks = jax.tree.map(lambda weight: weight[:depth], self.layers)
    return encode(config, blocks, self.pre_norm(x))

  def features(self, pixels: Float[Array, "b h w 3"], layer: int = -2) -> Float[Array, "b p d"]:
    """Patch tokens of one layer, without the class token: what LLaVA feeds its projector."""
    return self.hidden(pixels, layer)[:, 1:]

  def pooled(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
    """The class token after the last layer, normalised."""
    return self.post_norm(self.hidden(pixels)[:, :1])[:, 0]


class ClipText(nnx.Module):
  """The text tower."""

  def __init__(self, config: ClipTextConfig, *, rngs: nnx.Rngs):
    self.config = config
    d = config.hidden_size
    self.embedding = layers.normal(rngs, (config.vocab_size, d), d)
    self.positions = layers.normal(rngs, (config.max_position_embeddings, d), d)
    self.layers = stacked_blocks(config, rngs)
    self.norm = layers.LayerNorm(d, config.layer_norm_eps)

  def pooled(
    self, ids: Int[Array, "b t"], mask: Bool[Array, "b t"] | None = None
  ) -> Float[Array, "b d"]:
    """The state at the end of the text.

    That is the first `eos_token_id`; configs from before transformers 4.31 say 2, which means the
    largest id. Raises ValueError for a text longer than the position table.
    """
    config, length = self.config, ids.shape[1]
    if length > config.max_position_embeddings:
      raise ValueError(
        f"{length} tokens; CLIP reads {config.max_position_embeddings}: truncate first"
      )
    dtype = jnp.dtype(config.dtype)
    x = layers.embed(self.embedding, ids, dtype)
    x = x + layers.gathered(self.positions, dtype)[None, :length]
    x = self.norm(encode(config, self.layers, x, layers.causal_mask(length, mask)))
    end = ids if config.eos_token_id == 2 else ids == config.eos_token_id
    return jnp.take_along_axis(x, jnp.argmax(end, axis=1)[:, None, None], axis=1)[:, 0]


class Clip(nnx.Module):
  """Both towers with projections into the shared space."""

  def __init__(self, config: ClipConfig, *, rngs: nnx.Rngs):
    self.config = config
    e = config.projection_dim
    self.vision = ClipVision(config.vision, rngs=rngs)
    self.text = ClipText(config.text, rngs=rngs)
    self.vision_projection = layers.Einsum("zd,de->ze", rngs=rngs, d=config.vision.hidden_size, e=e)
    self.text_projection = layers.Einsum("zd,de->ze", rngs=rngs, d=config.text.hidden_size, e=e)
    self.logit_scale = nnx.Param(jnp.asarray(config.logit_scale_init, jnp.float32))

  def image_embedding(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b e"]:
    """Unit vectors of normalised pixels."""
    return unit(self.vision_projection(self.vision.pooled(pixels)))

  def text_embedding(
    self, ids: Int[Array, "b t"], mask: Bool[Array, "b t"] | None = None
  ) -> Float[Array, "b e"]:
    """Unit vectors of texts that end in the end-of-text token."""
    return unit(self.text_projection(self.text.pooled(ids, mask)))


def unit(x: Float[Array, "b e"]) -> Float[Array, "b e"]:
  """Rows scaled to length one, float32."""
  x = x.astype(jnp.float32)
  return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
