"""Greedy decoding with a key-value cache."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Int, PyTree

from mixjax.models.llava import Llava


def generate(
  model: Llava,
  ids: Int[Array, "b t"],
  mask: Bool[Array, "b t"] | None,
  features: PyTree[Array],
  max_new_tokens: int,
  eos_id: int,
) -> Int[Array, "b {max_new_tokens}"]:
  """The most likely token at each step, and `eos_id` from the first `eos_id` on.

  `mask` marks the valid tokens of the prompts (None: all); padding may stand on the left or on the
  right. Each shape is compiled once. Raises ValueError for an empty prompt or max_new_tokens < 1.
  """
  if ids.shape[1] < 1 or max_new_tokens < 1:
    raise ValueError(f"nothing to do: prompts {ids.shape}, max_new_tokens={max_new_tokens}")
  if mask is None:
    mask = jnp.ones_like(ids, bool)
  graph, parameters = nnx.split(model)
  return decode(graph, parameters, ids, mask, features, max_new_tokens, eos_id)


@functools.partial(jax.jit, static_argnames=("graph", "max_new_tokens"))
def decode(
  graph: nnx.GraphDef,
  parameters: nnx.State,
  ids: Int[Array, "b t"],
  mask: Bool[Array, "b t"],
  features: PyTree[Array],
  max_new_tokens: int,
  eos_id: int | Int[Array, ""],
) -> Int[Array, "b {max_new_tokens}"]:
  """Prefill, then one token at a time; new token i has slot t + i however long the prompt is."""
  model = nnx.merge(graph, parameters)
  text, (batch, length) = model.text, ids.shape
  cache = text.init_cache(batch, length + max_new_tokens - 1)
  slots = jnp.arange(length + max_new_tokens - 1)
  # A slot past the prompt is hidden by causality until it is written.
  visible = jnp.pad(mask, ((0, 0), (0, max_new_tokens - 1)), constant_values=True)
  positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
  hidden, cache = text.decode(model.embed(ids, features), positions, cache, 0, visible)
  last = jnp.max(jnp.where(mask, slots[None, :length], 0), axis=1)
  hidden = jnp.take_along_axis(hidden, last[:, None, None], axis=1)
  count = jnp.sum(mask, axis=1)

  def choose(hidden, done):
    token = jnp.argmax(text.logits(hidden[:, 0]), axis=-1).astype(jnp.int32)
    token = jnp.where(done, eos_id, token)
    return token, done | (token == eos_id)

  def step(carry, i):
    token, done, cache = carry
    x = text.embed(token[:, None])
    hidden, cache = text.decode(x, (count + i)[:, None], cache, length + i, visible)
    token, done = choose(hidden, done)
    return (token, done, cache), token

  first, done = choose(hidden, jnp.zeros_like(count, bool))
  _, rest = jax.lax.scan(step, (first, done, cache), jnp.arange(max_new_tokens - 1))
  return jnp.concatenate([first[:, None], rest.T], axis=1)
