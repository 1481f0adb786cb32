"""Trains the gallery's stand-ins for CLIP and Qwen2 (mixjax/jobs/standins.py says what and why).

  python -m mixjax.main --config=configs/standins.py --workdir=/path/to/standins

About 50 minutes on 2 cores. Those shipped in mixjax/standins were made when weight decay still took
the norms and biases of stacked layers with it; made again, they come out slightly other.
"""

from ml_collections import ConfigDict

from configs.common import parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
  """tiny: seconds, for tests."""
  args = parse_arg(arg, tiny=False, seed=0)
  qwen = dict(
    vocab_size=1024, hidden_size=64, intermediate_size=176, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True, unroll=2,
  )  # fmt: skip
  return ConfigDict(
    dict(
      job="standins",
      seed=args["seed"],
      pictures=20 if args["tiny"] else 2500,
      vocab_size=1024,
      clip=dict(
        projection_dim=64,
        vision=dict(
          hidden_size=32 if args["tiny"] else 128, intermediate_size=512, num_hidden_layers=4,
          num_attention_heads=4, image_size=72, patch_size=12, projection_dim=64, unroll=4,
          stem=((24, 2), (32, 1), (48, 2), (64, 1), (128, 3)),
        ),
        text=dict(
          vocab_size=1024, hidden_size=64, intermediate_size=256, num_hidden_layers=2,
          num_attention_heads=4, max_position_embeddings=24, projection_dim=64, unroll=2,
        ),
      ),
      decoder=qwen,
      proxy=qwen,
      target=qwen
      | dict(hidden_size=128, intermediate_size=352, num_hidden_layers=3, num_attention_heads=8,
             num_key_value_heads=4, unroll=3),
      naming_stage=dict(steps=4 if args["tiny"] else 4000, batch_size=64, learning_rate=1.5e-3),
      clip_stage=dict(steps=4 if args["tiny"] else 1600, batch_size=64, learning_rate=1e-3),
      base_stage=dict(steps=4 if args["tiny"] else 3000, batch_size=64, learning_rate=2e-3),
    )
  )  # fmt: skip
