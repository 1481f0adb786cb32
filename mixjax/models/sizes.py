"""The published models at their true sizes, from the `config.json` of each on the Hugging Face hub.

What is true of a size is here and nowhere else; how it runs (remat, dtype, attention) is set with
`dataclasses.replace`.
"""

from mixjax.models.clip_config import ClipVisionConfig
from mixjax.models.qwen2 import Qwen2Config

TEXT = {
  "qwen2_0_5b": Qwen2Config(
    vocab_size=151936,
    hidden_size=896,
    intermediate_size=4864,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    tie_word_embeddings=True,
  ),
  "qwen2_1_5b": Qwen2Config(
    vocab_size=151936,
    hidden_size=1536,
    intermediate_size=8960,
    num_hidden_layers=28,
    num_attention_heads=12,
    num_key_value_heads=2,
    tie_word_embeddings=True,
  ),
  "qwen2_7b": Qwen2Config(
    vocab_size=152064,
    hidden_size=3584,
    intermediate_size=18944,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    tie_word_embeddings=False,
  ),
}
TEXT["qwen2_5_7b"] = TEXT["qwen2_7b"]  # other weights, the same shapes

VISION = {
  "clip_l_336": ClipVisionConfig(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    projection_dim=768,
    image_size=336,
    patch_size=14,
  ),
}

# <image>: the first id after those of Qwen2's own tokens; the vocabulary has room for it.
IMAGE_TOKEN_ID = 151646
