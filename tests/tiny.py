"""The published models at sizes that compile in seconds."""

import dataclasses

from mixjax.models import sizes

TEXT = dataclasses.replace(
  sizes.TEXT["qwen2_7b"],
  vocab_size=512,
  hidden_size=64,
  intermediate_size=128,
  num_hidden_layers=3,
  num_attention_heads=4,
  num_key_value_heads=2,
)
VISION = dataclasses.replace(
  sizes.VISION["clip_l_336"],
  hidden_size=32,
  intermediate_size=64,
  num_hidden_layers=3,
  num_attention_heads=2,
  image_size=28,
)
