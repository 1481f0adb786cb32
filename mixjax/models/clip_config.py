"""Sizes of CLIP's two towers, read from and written to Hugging Face `config.json`."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax

ACTIVATIONS = {
  "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
  "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}

# Fields that say how a model runs, not what it is: no checkpoint carries them.
RUNNING = ("remat", "unroll", "dtype")


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
  """What the two towers share."""

  hidden_size: int
  intermediate_size: int
  num_hidden_layers: int
  num_attention_heads: int
  layer_norm_eps: float = 1e-5
  hidden_act: str = "quick_gelu"
  projection_dim: int = 512
  remat: str | None = None  # a policy of jax.checkpoint_policies
  unroll: int = 1  # layers in one turn of the scan
  dtype: str = "float32"  # of activations; parameters are float32

  def __post_init__(self):
    if self.hidden_size % self.num_attention_heads:
      raise ValueError(
        f"hidden_size={self.hidden_size} is not a multiple of "
        f"num_attention_heads={self.num_attention_heads}"
      )
    if self.hidden_act not in ACTIVATIONS:
      raise ValueError(f"hidden_act={self.hidden_act!r}: choose one of {sorted(ACTIVATIONS)}")

  @classmethod
  def from_hf(cls, config: dict[str, Any], **running: Any):
    """Reads one tower's section of a `config.json`; `running` sets remat, unroll and dtype."""
    names = {field.name for field in dataclasses.fields(cls)} - set(RUNNING)
    config = {**HF_DEFAULTS[cls], **config}
    return cls(**{name: config[name] for name in names}, **running)

  def to_hf(self) -> dict[str, Any]:
    """One tower's section of a `config.json`."""
    sizes = dataclasses.asdict(self)
    for name in RUNNING:
      del sizes[name]
    return {"model_type": MODEL_TYPES[type(self)], **sizes}


@dataclasses.dataclass(frozen=True)
class ClipVisionConfig(EncoderConfig):
  """A vision transformer over square images cut into square patches.

  `stem` is ours: (channels, stride) of 3 x 3 convolutions through which pixels pass before they are
  cut. Without it, as in Hugging Face's CLIP, a small tower needs many more pictures to read.
  """

  image_size: int = 224
  patch_size: int = 32
  stem: Sequence[Sequence[int]] = ()

  def __post_init__(self):
    super().__post_init__()
    # JSON knows lists alone, and a config is compared and hashed.
    object.__setattr__(self, "stem", tuple((channels, stride) for channels, stride in self.stem))
    if self.patch_size % self.stem_stride:
      raise ValueError(
        f"patch_size={self.patch_size} is not a multiple of the stem's stride {self.stem_stride}"
      )
    if self.image_size % self.patch_size:
      raise ValueError(
        f"image_size={self.image_size} is not a multiple of patch_size={self.patch_size}"
      )

  @property
  def num_patches(self) -> int:
    return (self.image_size // self.patch_size) ** 2

  @property
  def stem_stride(self) -> int:
    return math.prod(stride for _, stride in self.stem)

  @property
  def patch_values(self) -> int:
    """Numbers in one patch, as the projection to `hidden_size` sees it."""
    channels = self.stem[-1][0] if self.stem else 3
    return channels * (self.patch_size // self.stem_stride) ** 2

  def to_hf(self) -> dict[str, Any]:
    section = super().to_hf()
    if not self.stem:
      del section["stem"]
    return section


@dataclasses.dataclass(frozen=True)
class ClipTextConfig(EncoderConfig):
  """A causal text transformer, read at the end-of-text token."""

  vocab_size: int = 49408
  max_position_embeddings: int = 77
  eos_token_id: int = 49407


# What transformers assumes for a key that config.json leaves out.
HF_DEFAULTS = {
  ClipVisionConfig: dict(
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    layer_norm_eps=1e-5,
    hidden_act="quick_gelu",
    projection_dim=512,
    image_size=224,
    patch_size=32,
    stem=(),
  ),
  ClipTextConfig: dict(
    hidden_size=512,
    intermediate_size=2048,
    num_hidden_layers=12,
    num_attention_heads=8,
    layer_norm_eps=1e-5,
    hidden_act="quick_gelu",
    projection_dim=512,
    vocab_size=49408,
    max_position_embeddings=77,
    eos_token_id=49407,
  ),
}
MODEL_TYPES = {ClipVisionConfig: "clip_vision_model", ClipTextConfig: "clip_text_model"}


@dataclasses.dataclass(frozen=True)
class ClipConfig:
  """Both towers and the shared space."""

  vision: ClipVisionConfig
  text: ClipTextConfig
  projection_dim: int = 512
  logit_scale_init: float = 2.6592

  @classmethod
  def from_hf(cls, config: dict[str, Any], **running: Any) -> "ClipConfig":
    """Reads the `config.json` of a CLIPModel."""
    return cls(
      vision=ClipVisionConfig.from_hf(config["vision_config"], **running),
      text=ClipTextConfig.from_hf(config["text_config"], **running),
      projection_dim=config.get("projection_dim", 512),
      logit_scale_init=config.get("logit_scale_init_value", 2.6592),
    )

  def to_hf(self) -> dict[str, Any]:
    """The `config.json` of a CLIPModel."""
    return {
      "architectures": ["CLIPModel"],
      "model_type": "clip",
      "vision_config": self.vision.to_hf(),
      "text_config": self.text.to_hf(),
      "projection_dim": self.projection_dim,
      "logit_scale_init_value": self.logit_scale_init,
    }
