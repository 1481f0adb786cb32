"""LLaVA-NeXT: LLaVA that reads a picture in tiles, at a resolution chosen to suit it.

The host says which patch each image token shows (`Anyres.index`), so every shape is fixed and all
of a batch's image tokens are one gather from its projected features.
"""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from mixjax.models import layers
from mixjax.models.anyres import NEWLINE, NOTHING, PINPOINTS, Anyres, Size
from mixjax.models.llava import Llava, LlavaConfig


@dataclasses.dataclass(frozen=True)
class LlavaNextConfig(LlavaConfig):
  """LLaVA's, and the resolutions (height, width) of the close-up."""

  pinpoints: tuple[Size, ...] = PINPOINTS

  def __post_init__(self):
    _ = self.anyres  # raises what is wrong with the pinpoints

  @property
  def anyres(self) -> Anyres:
    """How pictures are cut for this model."""
    return Anyres(self.vision.image_size, self.vision.patch_size, self.pinpoints)

  @classmethod
  def from_hf(cls, config: dict[str, Any], **running: Any) -> "LlavaNextConfig":
    """Reads the `config.json` of a LlavaNextForConditionalGeneration, of transformers 4 or 5.

    `running` sets remat, unroll and dtype of both networks. Raises ValueError for a variant that
    this model does not compute.
    """
    if config.get("model_type", "llava_next") != "llava_next":
      raise ValueError(f"model_type is {config['model_type']!r}; only 'llava_next' is supported")
    if not config.get("use_image_newline_parameter", True):
      raise ValueError("use_image_newline_parameter is False; only True is supported")
    pinpoints = config.get("image_grid_pinpoints") or PINPOINTS
    shared = vars(LlavaConfig.from_hf(config, **running))
    return cls(**shared, pinpoints=tuple(tuple(size) for size in pinpoints))

  def to_hf(self) -> dict[str, Any]:
    """The `config.json` of a LlavaNextForConditionalGeneration."""
    return {
      **super().to_hf(),
      "architectures": ["LlavaNextForConditionalGeneration"],
      "model_type": "llava_next",
      "image_grid_pinpoints": [list(size) for size in self.pinpoints],
    }


class Tiles(NamedTuple):
  """What the image tokens of a batch show: LLaVA-NeXT's counterpart of LLaVA's features.

  g groups of b / g rows each share n tiles. On a mesh, where each device along `data` has whole
  groups, no feature leaves its device.
  """

  features: Float[Array, "g n p c"]
  index: Int[Array, "b m"]  # of `Anyres.index`


class LlavaNext(Llava):
  """LlavaNextForConditionalGeneration. With `tower=False` it lives on cached tile features alone.

  `embed` and a call take Tiles where Llava takes features.
  """

  def __init__(self, config: LlavaNextConfig, *, rngs: nnx.Rngs, tower: bool = True):
    super().__init__(config, rngs=rngs, tower=tower)
    d = config.text.hidden_size
    self.image_newline = layers.normal(rngs, (d,), d)

  def encode_image(self, pixels: Float[Array, "g n h w 3"]) -> Float[Array, "g n p c"]:
    """Features of normalised tiles, fit to be cached. Raises ValueError without a vision tower."""
    features = super().encode_image(layers.flat(pixels, 3))
    shape = (*pixels.shape[:2], *features.shape[1:])
    groups = layers.sharding_with(features, None, None, None, keep=1)
    return jnp.reshape(features, shape, out_sharding=groups)

  def shown(
    self, tiles: Tiles, image: Bool[Array, "b t"], dtype: jnp.dtype
  ) -> Float[Array, "b t d"]:
    """The patch or newline of each image token that `image` marks; NaN elsewhere.

    All image tokens of a row are NaN if they are not as many as its index holds, so that a wrong
    count cannot pass unnoticed.
    """
    features, index = tiles
    groups, count = features.shape[0], features.shape[1] * features.shape[2]
    order = jnp.cumsum(image, axis=1) - 1
    fits = jnp.sum(image, axis=1) == jnp.sum(index != NOTHING, axis=1)
    at = jnp.take_along_axis(index, jnp.clip(order, 0, index.shape[1] - 1), axis=1)
    at = jnp.where(image & fits[:, None], at, NOTHING)

    along = layers.sharding_with(features, None, None, keep=1)
    features = jnp.reshape(features, (groups, count, -1), out_sharding=along)
    projected = self.projector(features.astype(dtype))
    along = layers.sharding_with(at, None, keep=1)
    patch = jnp.reshape(jnp.where(at < 0, count, at), (groups, -1), out_sharding=along)
    x = jnp.take_along_axis(projected, patch[:, :, None], axis=1, mode="fill", fill_value=jnp.nan)
    rows = layers.sharding_with(x, None, None, keep=1)
    x = jnp.reshape(x, (*at.shape, x.shape[-1]), out_sharding=rows)
    newline = layers.gathered(self.image_newline, dtype)[None, None]
    return jnp.where((at == NEWLINE)[:, :, None], newline, x)
