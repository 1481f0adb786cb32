"""The published models at sizes that compile in seconds, and a packed batch for them."""

import dataclasses

import numpy as np

from mixjax.data.packed import PackedShape
from mixjax.models import sizes
from mixjax.models.llava_next import LlavaNextConfig

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

# Pictures of up to two tiles of 2 x 2 patches beside the base view.
CONFIG = LlavaNextConfig(TEXT, VISION, image_token_id=3, pinpoints=((28, 56), (56, 28)))
SHAPE = PackedShape(rows=4, length=56, image_tokens=32, tiles=6, groups=4, side=28)


def packed_batch(seed: int = 0, shape: PackedShape = SHAPE) -> dict[str, np.ndarray]:
  """Rows of two examples, each with a picture of its own, and padding."""
  chance = np.random.default_rng(seed)
  sizes = [[(28, 56), (60, 30)]] * shape.rows
  batch = {name: np.zeros(size, dtype) for name, (dtype, size) in shape.arrays().items()}
  batch["index"] = CONFIG.anyres.index(sizes, shape.image_tokens, shape.groups)
  batch["tiles"] = chance.integers(0, 256, batch["tiles"].shape, np.uint8)
  for row in range(shape.rows):
    end = 0
    for number, size in enumerate(sizes[row], start=1):
      asked = CONFIG.anyres.num_tokens(size) + 2
      start, end = end, end + asked + 4 + int(chance.integers(4))
      batch["ids"][row, start:end] = chance.integers(4, 512, end - start)
      batch["ids"][row, start + 1 : start + asked - 1] = CONFIG.image_token_id
      batch["positions"][row, start:end] = np.arange(end - start)
      batch["segments"][row, start:end] = number
      batch["loss_mask"][row, start + asked : end] = True
  return batch
