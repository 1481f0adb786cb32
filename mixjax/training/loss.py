"""Next-token loss on answers only.

Convention of `data.encode`: `loss_mask[b, t]` marks `ids[b, t]` as a token to be predicted, from
the state at `t - 1`. Rows with images start with the image tokens, which are never predicted, so
the logits of the first `loss_from - 1` positions are never computed. In a packed row the first
token of a segment is not to be predicted.

With a true vocabulary of 152k the logits are by far the largest array of a step (a row of 4096: 2.5
GB in float32). `chunk` computes them for that many positions of each row at a time, and once more
in the backward pass, so that no more than those are ever in memory.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from mixjax.models import layers
from mixjax.models.llava import Llava
from mixjax.models.qwen2 import Qwen2

Batch = dict[str, PyTree[Array]]


def token_nll(
  model: Llava, batch: Batch, loss_from: int
) -> tuple[Float[Array, "b s"], Bool[Array, "b s"], Bool[Array, "b s"]]:
  """Negative log-likelihood of the tokens from position `loss_from` on.

  batch: ids int[b, t], loss_mask bool[b, t], mask bool[b, t], features float[b, p, dv].
  Returns (nll float[b, s] in nats, which of them count bool[b, s], whether each token is the most
  likely one bool[b, s]), s = t - loss_from.
  """
  hidden = model(batch["ids"], batch["features"], mask=batch["mask"])
  logits = model.logits(hidden[:, loss_from - 1 : -1]).astype(jnp.float32)
  targets = batch["ids"][:, loss_from:]
  chosen = jnp.take_along_axis(layers.undivided(logits), targets[..., None], axis=-1)[..., 0]
  nll = jax.nn.logsumexp(logits, axis=-1) - chosen
  return nll, batch["loss_mask"][:, loss_from:], jnp.argmax(logits, axis=-1) == targets


def answer_loss(
  model: Llava, batch: Batch, loss_from: int, chunk: int | None = None
) -> Float[Array, ""]:
  """Mean over the answer tokens of the batch, in nats a token.

  `chunk`: positions of a row whose logits are in memory at once (None: all).
  """
  counted = batch["loss_mask"][:, loss_from:]
  if chunk is None:
    nll, counted, _ = token_nll(model, batch, loss_from)
    total = jnp.sum(nll * counted)
  else:
    hidden = model(batch["ids"], batch["features"], mask=batch["mask"])
    targets = batch["ids"][:, loss_from:]
    total = chunked_nll(model.text, hidden[:, loss_from - 1 : -1], targets, counted, chunk)
  return total / jnp.maximum(jnp.sum(counted), 1)


def chunked_nll(
  text: Qwen2,
  hidden: Float[Array, "b s d"],
  targets: Int[Array, "b s"],
  counted: Bool[Array, "b s"],
  chunk: int,
) -> Float[Array, ""]:
  """Summed negative log-likelihood (nats) of the counted targets, `chunk` positions at a time.

  The log-sum-exp and the sum are float32, and so is the gradient of the vocabulary table, which
  adds up over the chunks. Raises ValueError for a chunk below 1.
  """
  if chunk < 1:
    raise ValueError(f"loss_chunk={chunk} positions: give 1 or more, or None for all at once")
  chunk = min(chunk, hidden.shape[1])
  count = math.ceil(hidden.shape[1] / chunk)

  def parts(x):
    padding = ((0, 0), (0, count * chunk - x.shape[1]), *[(0, 0)] * (x.ndim - 2))
    x = jnp.pad(x, padding)
    split = layers.sharding_with(x, *[None] * x.ndim, keep=1)
    x = jnp.reshape(x, (x.shape[0], count, chunk, *x.shape[2:]), out_sharding=split)
    return jnp.swapaxes(x, 0, 1)

  # Made once for all chunks, in the type of the computation; float32 holds it exactly.
  table = text.table(hidden.dtype, tokens=targets.size).astype(jnp.float32)
  over = layers.axes_of(table)[0]
  vocabulary = layers.split_as(jnp.arange(table.shape[0]), over)

  @jax.checkpoint
  def summed(_, part):
    if isinstance(over, tuple):  # every device has a part of the vocabulary for all rows
      part = jax.tree.map(layers.everywhere, part)
    hidden, targets, counted = part
    logits = text.logits(hidden, table.astype(hidden.dtype))
    # A comparison, unlike a gather, stays where the vocabulary is split over devices.
    here = targets[..., None] == vocabulary[None, None]
    chosen = jnp.sum(jnp.where(here, logits, 0), axis=-1)
    nll = jax.nn.logsumexp(logits, axis=-1) - chosen
    return None, jnp.sum(nll * counted)

  _, sums = jax.lax.scan(summed, None, jax.tree.map(parts, (hidden, targets, counted)))
  return jnp.sum(sums)


def answer_scores(
  model: Llava, batch: Batch, loss_from: int
) -> tuple[Float[Array, " b"], Int[Array, " b"], Bool[Array, " b"]]:
  """Per row: summed answer NLL (nats), answer tokens, and whether greedy decoding would be exact.

  Greedy decoding reproduces the answer exactly if and only if every answer token is the argmax
  given the true ones before it, so exact match needs no generation.
  """
  nll, counted, greedy = token_nll(model, batch, loss_from)
  exact = jnp.all(greedy | ~counted, axis=-1)
  return jnp.sum(nll * counted, axis=-1), jnp.sum(counted, axis=-1), exact
