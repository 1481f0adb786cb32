"""Decoding with a key-value cache, greedy or sampled, and the likelihood of given answers."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, UInt8

from mixjax.models import clip, layers
from mixjax.models.llava import Llava
from mixjax.models.qwen2 import Qwen2
from mixjax.training import loss


def generate(
  model: Llava | Qwen2,
  ids: Int[Array, "b t"],
  mask: Bool[Array, "b t"] | None,
  features: PyTree[Array] | None,
  max_new_tokens: int,
  eos_id: int | Sequence[int],
  *,
  temperature: float = 0.0,
  top_p: float = 1.0,
  key: Key[Array, ""] | None = None,
) -> Int[Array, "b {max_new_tokens}"]:
  """New tokens for a batch of prompts, and the (first) `eos_id` after any `eos_id`.

  At temperature 0 each is the most likely one; above it, it is drawn from the softmax of the logits
  over the temperature, cut to its `nucleus` of mass `top_p`; equal keys draw equal tokens.
  `mask` marks the valid tokens of the prompts (None: all); padding may stand on the left or on the
  right. `features` are of the images; None, or a Qwen2, for text alone. Each shape is compiled
  once, whatever the temperature and top_p. Raises ValueError for an empty prompt, max_new_tokens
  < 1, no eos_id, a negative temperature, top_p outside (0, 1], or sampling without a key.
  """
  if ids.shape[1] < 1 or max_new_tokens < 1:
    raise ValueError(f"nothing to do: prompts {ids.shape}, max_new_tokens={max_new_tokens}")
  ends = jnp.atleast_1d(jnp.asarray(eos_id, jnp.int32))
  if not ends.size:
    raise ValueError("eos_id is empty: give an id, or one that is no token's, such as -1")
  if temperature < 0 or not 0 < top_p <= 1:
    raise ValueError(
      f"temperature={temperature} must be at least 0 and top_p={top_p} above 0 and at most 1"
    )
  sampling = None
  if temperature > 0:
    if key is None:
      raise ValueError(f"temperature={temperature} draws tokens: give key=jax.random.key(seed)")
    sampling = key, jnp.float32(temperature), jnp.float32(top_p)
  if mask is None:
    mask = jnp.ones_like(ids, bool)
  graph, parameters = nnx.split(model)
  return decode(graph, parameters, ids, mask, features, max_new_tokens, ends, sampling)


@functools.partial(jax.jit, static_argnames=("graph", "max_new_tokens"))
def decode(
  graph: nnx.GraphDef,
  parameters: nnx.State,
  ids: Int[Array, "b t"],
  mask: Bool[Array, "b t"],
  features: PyTree[Array] | None,
  max_new_tokens: int,
  ends: Int[Array, " e"],
  sampling: tuple[Key[Array, ""], Float[Array, ""], Float[Array, ""]] | None,
) -> Int[Array, "b {max_new_tokens}"]:
  """Prefill, then one token at a time; new token i has slot t + i however long the prompt is.

  `sampling` is the key, the temperature and top_p; None to be greedy.
  """
  model = nnx.merge(graph, parameters)
  text, (batch, length) = getattr(model, "text", model), ids.shape
  cache = text.init_cache(batch, length + max_new_tokens - 1)
  # Made where its rows are, not whole on every device.
  cache = jax.tree.map(lambda x: layers.split_as(x, None, layers.axes_of(ids)[0]), cache)
  slots = jnp.arange(length + max_new_tokens - 1)
  # A slot past the prompt is hidden by causality until it is written.
  visible = jnp.pad(mask, ((0, 0), (0, max_new_tokens - 1)), constant_values=True)
  positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
  x = text.embed(ids) if features is None else model.embed(ids, features)
  hidden, cache = text.decode(x, positions, cache, 0, visible)
  last = jnp.max(jnp.where(mask, slots[None, :length], 0), axis=1)
  hidden = jnp.take_along_axis(hidden, last[:, None, None], axis=1)
  count = jnp.sum(mask, axis=1)

  def choose(hidden, done, i):
    logits = text.logits(hidden[:, 0])
    if sampling is None:
      token = likeliest(logits)
    else:
      key, temperature, top_p = sampling
      token = sample(logits / temperature, top_p, jax.random.fold_in(key, i))
    token = jnp.where(done, ends[0], token)
    return token, done | jnp.any(token[:, None] == ends[None], axis=1)

  def step(carry, i):
    token, done, cache = carry
    x = text.embed(token[:, None])
    hidden, cache = text.decode(x, (count + i)[:, None], cache, length + i, visible, blocks)
    token, done = choose(hidden, done, i + 1)
    return (token, done, cache), token

  first, done = choose(hidden, jnp.zeros_like(count, bool), 0)
  blocks, cache = text.for_tokens(cache)
  _, rest = jax.lax.scan(step, (first, done, cache), jnp.arange(max_new_tokens - 1))
  return jnp.concatenate([first[:, None], rest.T], axis=1)


@functools.partial(jax.jit, static_argnames="graph")
def see(
  graph: nnx.GraphDef, parameters: nnx.State, pixels: UInt8[Array, "*n s s 3"]
) -> Float[Array, "*n p c"]:
  """Features of pictures for a Llava, of tiles [g, n, s, s, 3] for a LlavaNext."""
  return nnx.merge(graph, parameters).encode_image(clip.preprocess(pixels))


def likeliest(logits: Float[Array, "b v"]) -> Int[Array, " b"]:
  """The first of each row's most likely tokens; the last of all where a logit is NaN.

  That is argmax, which XLA for CPUs computes ten times slower than it does two plain reductions.
  """
  top = jnp.max(logits, axis=-1, keepdims=True)
  ids = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
  ids = layers.split_like(ids, logits)
  return jnp.min(jnp.where(logits == top, ids, logits.shape[1] - 1), axis=-1)


def sample(
  logits: Float[Array, "b v"], top_p: Float[Array, ""], key: Key[Array, ""]
) -> Int[Array, " b"]:
  """A draw from each row's softmax, cut to its nucleus and renormalised (by the Gumbel trick)."""
  logits = layers.undivided(logits)  # to be sorted
  kept = nucleus(logits, top_p)
  noise = layers.split_like(jax.random.gumbel(key, logits.shape), logits)
  return jnp.argmax(jnp.where(kept, logits + noise, -jnp.inf), axis=-1).astype(jnp.int32)


def nucleus(logits: Float[Array, "b v"], top_p: Float[Array, ""]) -> Bool[Array, "b v"]:
  """The fewest most likely tokens of each row whose probabilities sum to `top_p` or more.

  Tokens as likely as the last of them are kept too. (Holtzman et al., arXiv:1904.09751)
  """
  rising = jnp.sort(logits, axis=-1)
  # What a token and all that are less likely have together: sums of the small lose the least.
  so_far = jnp.cumsum(jax.nn.softmax(rising, axis=-1), axis=-1)
  needed = (so_far > 1 - top_p).at[:, -1].set(True)
  least = jnp.min(jnp.where(needed, rising, jnp.inf), axis=-1, keepdims=True)
  return logits >= least


def score_answers(
  model: Llava,
  ids: Int[Array, "b t"],
  mask: Bool[Array, "b t"] | None,
  features: PyTree[Array],
  answers: Int[Array, "b a"],
  answer_mask: Bool[Array, "b a"],
) -> tuple[Float[Array, " b"], Int[Array, " b"], Bool[Array, " b"]]:
  """How likely each given answer is after its prompt, in one pass; prompts as for `generate`.

  Returns (log-likelihood in nats, its number of tokens, whether greedy decoding would say just
  that). Answers are padded on the right, and their end tokens count if they are given.
  Raises ValueError if there is no place for a prompt's token.
  """
  if ids.shape[1] < 1:
    raise ValueError(f"answers need a token before them: prompts are {ids.shape}")
  if mask is None:
    mask = jnp.ones_like(ids, bool)
  graph, parameters = nnx.split(model)
  batch = joined(ids, mask, answers, answer_mask) | {"features": features}
  nll, count, greedy = answer_scores(graph, parameters, batch, ids.shape[1])
  return -nll, count, greedy


@jax.jit
def joined(ids, mask, answers, answer_mask) -> loss.Batch:
  """Prompts with their answers right after them: the prompts' padding goes to the left."""
  order = jnp.argsort(mask, axis=1, stable=True)
  ids, mask = (jnp.take_along_axis(x, order, axis=1) for x in (ids, mask))
  return {
    "ids": jnp.concatenate([ids, answers], axis=1),
    "mask": jnp.concatenate([mask, answer_mask], axis=1),
    "loss_mask": jnp.concatenate([jnp.zeros_like(mask), answer_mask], axis=1),
  }


@functools.partial(jax.jit, static_argnames=("graph", "loss_from"))
def answer_scores(graph: nnx.GraphDef, parameters: nnx.State, batch: loss.Batch, loss_from: int):
  """`loss.answer_scores`, compiled once a shape, of a model split into graph and parameters."""
  return loss.answer_scores(nnx.merge(graph, parameters), batch, loss_from)
