"""AdamW by parts of a model: rates of their own, no moments for what does not move."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mixjax.training.optimizer import OptimizerConfig, make_optimizer

PARAMS = {
  "vision": {"kernel": jnp.ones((3, 4))},
  "projector": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)},
  "text": {"layers": {"norm": {"scale": jnp.ones((2, 4))}, "kernel": jnp.ones((2, 4, 4))}},
}


def after(config, steps=10, taken=2):
  """Parameters after so many updates with gradients of one, and the optimiser's state."""
  tx = make_optimizer(config, steps)
  state, params = tx.init(PARAMS), PARAMS
  for _ in range(taken):
    updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
    params = optax.apply_updates(params, updates)
  return params, state


def test_a_part_moves_at_its_own_rate_and_a_frozen_one_has_no_moments():
  rates = (("vision", 0.0), ("text", 1e-4))
  params, state = after(OptimizerConfig(1e-3, warmup=0.1, rates=rates))
  went = {name: 1 - jax.tree.leaves(part)[0].ravel()[0] for name, part in params.items()}
  assert went["vision"] == 0
  assert went["projector"] == pytest.approx(1e-3, rel=1e-3)
  assert went["text"] == pytest.approx(1e-4, rel=2e-3)
  moving = sum(leaf.size for leaf in jax.tree.leaves((PARAMS["projector"], PARAMS["text"])))
  held = sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim)
  assert held == 2 * moving
  assert OptimizerConfig(rates=rates).frozen == ("vision",)


def test_equal_rates_are_one_optimiser():
  alike, _ = after(OptimizerConfig(1e-3, rates=(("vision", 1e-3),)))
  plain, _ = after(OptimizerConfig(1e-3))
  for ours, theirs in zip(jax.tree.leaves(alike), jax.tree.leaves(plain), strict=True):
    np.testing.assert_array_equal(ours, theirs)


def test_decay_spares_norms_and_biases_of_stacked_layers_too():
  decayed, _ = after(OptimizerConfig(1e-3, weight_decay=0.5))
  plain, _ = after(OptimizerConfig(1e-3))
  same = jax.tree.map(lambda a, b: bool(jnp.all(a == b)), decayed, plain)
  assert same == {
    "vision": {"kernel": False},
    "projector": {"kernel": False, "bias": True},
    "text": {"layers": {"norm": {"scale": True}, "kernel": False}},
  }


def test_the_rate_ends_at_its_share_of_the_peak():
  for final in (0.1, 0.0):
    config = OptimizerConfig(1e-3, final=final)
    before, _ = after(config, steps=5, taken=5)
    last, _ = after(config, steps=5, taken=6)
    step = before["vision"]["kernel"][0, 0] - last["vision"]["kernel"][0, 0]
    assert step == pytest.approx(final * 1e-3, rel=1e-3, abs=1e-7)
