"""FLOPs against counts by hand."""

import dataclasses

import pytest
from tiny import TEXT, VISION

from mixjax.models import sizes
from mixjax.training import arithmetic


def test_flops_by_hand():
  """A row of 8 tokens, 5 of them predicted; a layer has 4 heads of 16, 2 of them for keys."""
  found = arithmetic.text_flops(TEXT, 8, 5)
  layer = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128  # q, k and v, o, feed-forward
  assert found["layers"] == 2 * 8 * 3 * layer
  # 1 + 2 + ... + 8 pairs, each a product of 16 in 4 heads, for scores and again for values.
  assert found["attention"] == 3 * 36 * 4 * 16 * 2 * 2
  assert found["head"] == 2 * 5 * 64 * 512
  # 2 of 3 layers, 2 x 2 patches and the class token.
  block = 2 * 5 * (4 * 32 * 32 + 2 * 32 * 64) + 2 * 2 * 5 * 5 * 32
  assert arithmetic.vision_flops(VISION, 3, -2) == 3 * (2 * block + 2 * 4 * 588 * 32)
  assert arithmetic.projector_flops(32, 64, 12) == 2 * 12 * (32 * 64 + 64 * 64)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_step_is_three_forward_passes_and_remat_a_fourth(frozen):
  step = dict(batch=2, length=8, tiles=3, layer=-2, frozen=frozen)
  plain = arithmetic.step_flops(TEXT, VISION, **step)
  forward = plain["forward"]
  moved = sum(forward.values()) - (forward["tower"] if frozen else 0)
  assert plain["model"] == sum(forward.values()) + 2 * moved
  assert plain["hardware"] == plain["model"] + forward["head"]
  again = dict(remat="nothing_saveable")
  remat = arithmetic.step_flops(
    dataclasses.replace(TEXT, **again), dataclasses.replace(VISION, **again), **step
  )
  assert remat["model"] == plain["model"]
  assert remat["hardware"] == remat["model"] + moved - forward["projector"]


def test_a_7b_is_six_flops_a_parameter_and_token():
  config = sizes.TEXT["qwen2_7b"]
  forward = arithmetic.text_flops(config, 4096, 4096)
  looked_up = config.vocab_size * config.hidden_size
  matrices = 7_615_616_512 - looked_up
  linear = forward["layers"] + forward["head"]
  assert linear == pytest.approx(2 * 4096 * matrices, rel=1e-3)
