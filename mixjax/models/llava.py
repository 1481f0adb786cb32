"""LLaVA (arXiv:2310.03744): image features projected into the language model."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PyTree

from mixjax.models import clip_config, layers
from mixjax.models.clip import ClipVision, ClipVisionConfig
from mixjax.models.qwen2 import Qwen2, Qwen2Config


@dataclasses.dataclass(frozen=True)
class LlavaConfig:
  """Language model, vision tower and how they meet."""

  text: Qwen2Config
  vision: ClipVisionConfig
  image_token_id: int
  feature_layer: int = -2

  @classmethod
  def from_hf(cls, config: dict[str, Any], **running: Any) -> "LlavaConfig":
    """Reads the `config.json` of a LlavaForConditionalGeneration.

    `running` sets remat, unroll and dtype of both networks, and attention of the text's. Raises
    ValueError for a variant that this model does not compute.
    """
    wanted = {
      "projector_hidden_act": "gelu",
      "vision_feature_select_strategy": "default",
      "multimodal_projector_bias": True,
    }
    odd = [
      f"{name} is {config[name]!r}; only {supported!r} is supported"
      for name, supported in wanted.items()
      if config.get(name, supported) != supported
    ]
    layer = config.get("vision_feature_layer", -2)
    if not isinstance(layer, int):
      odd.append(f"vision_feature_layer is {layer!r}; only one layer is supported")
    if odd:
      raise ValueError("\n".join(odd))
    text = dict(config["text_config"])
    text["tie_word_embeddings"] = bool(
      config.get("tie_word_embeddings") or text.get("tie_word_embeddings")
    )
    shared = {name: running[name] for name in clip_config.RUNNING if name in running}
    return cls(
      text=Qwen2Config.from_hf(text, **running),
      vision=ClipVisionConfig.from_hf(config["vision_config"], **shared),
      image_token_id=config.get("image_token_id", config.get("image_token_index", 32000)),
      feature_layer=layer,
    )

  def to_hf(self) -> dict[str, Any]:
    """The `config.json` of a LlavaForConditionalGeneration."""
    return {
      "architectures": ["LlavaForConditionalGeneration"],
      "model_type": "llava",
      "text_config": self.text.to_hf(),
      "vision_config": self.vision.to_hf(),
      "image_token_index": self.image_token_id,
      "image_seq_length": self.vision.num_patches,
      "projector_hidden_act": "gelu",
      "multimodal_projector_bias": True,
      "vision_feature_layer": self.feature_layer,
      "vision_feature_select_strategy": "default",
      "tie_word_embeddings": self.text.tie_word_embeddings,
    }


class Projector(nnx.Module):
  """Linear, GELU, Linear: from the vision tower's width to the language model's."""

  def __init__(self, vision_size: int, text_size: int, *, rngs: nnx.Rngs):
    self.up = layers.Einsum("zc,cd->zd", bias=True, rngs=rngs, c=vision_size, d=text_size)
    self.down = layers.Einsum("zc,cd->zd", bias=True, rngs=rngs, c=text_size, d=text_size)

  def __call__(self, features: Float[Array, "b p c"]) -> Float[Array, "b p d"]:
    y = jax.nn.gelu(self.up(features), approximate=False)
    return self.down(y)


class Llava(nnx.Module):
  """LlavaForConditionalGeneration. With `tower=False` it lives on cached image features alone."""

  def __init__(self, config: LlavaConfig, *, rngs: nnx.Rngs, tower: bool = True):
    self.config = config
    self.vision = ClipVision(config.vision, rngs=rngs) if tower else None
    self.projector = Projector(config.vision.hidden_size, config.text.hidden_size, rngs=rngs)
    self.text = Qwen2(config.text, rngs=rngs)

  def encode_image(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b p c"]:
    """Features of normalised images, fit to be cached. Raises ValueError without a vision tower."""
    if self.vision is None:
      raise ValueError("there is no vision tower: build with tower=True, or use cached features")
    return self.vision.features(pixels, self.config.feature_layer)

  def embed(self, ids: Int[Array, "b t"], features: PyTree[Array]) -> Float[Array, "b t d"]:
    """Token embeddings with the i-th image token of a row replaced by what `shown` has for it.

    A row holds all its image tokens or none; its features are then ignored, but must be finite.
    """
    image = ids == self.config.image_token_id
    x = self.text.embed(ids)
    return jnp.where(image[:, :, None], self.shown(features, image, x.dtype), x)

  def shown(
    self, features: Float[Array, "b p c"], image: Bool[Array, "b t"], dtype: jnp.dtype
  ) -> Float[Array, "b t d"]:
    """Projected features where `image` marks image tokens, in order; anything elsewhere."""
    order = jnp.clip(jnp.cumsum(image, axis=1) - 1, 0, features.shape[1] - 1)
    projected = self.projector(features.astype(dtype))
    return jnp.take_along_axis(projected, order[:, :, None], axis=1)

  def __call__(
    self,
    ids: Int[Array, "b t"],
    features: PyTree[Array],
    positions: Int[Array, "#b t"] | None = None,
    mask: Bool[Array, "b t"] | None = None,
  ) -> Float[Array, "b t d"]:
    """Hidden states of rows of text and image tokens.

    `mask` marks valid tokens; positions default to 0, 1, 2, ... whatever the mask.
    """
    if positions is None:
      positions = jnp.arange(ids.shape[1])[None]
    return self.text(self.embed(ids, features), positions, mask)

  def logits(self, hidden: Float[Array, "*b d"]) -> Float[Array, "*b v"]:
    """Next-token logits, float32."""
    return self.text.logits(hidden)
