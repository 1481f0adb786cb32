"""Next-token loss on answers only.

Convention of `data.encode`: `loss_mask[b, t]` marks `ids[b, t]` as a token to be predicted, from
the state at `t - 1`. Rows with images start with the image tokens, which are never predicted, so
the logits of the first `loss_from - 1` positions are never computed.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mixjax.models import layers
from mixjax.models.llava import Llava

Batch = dict[str, Array]


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


def answer_loss(model: Llava, batch: Batch, loss_from: int) -> Float[Array, ""]:
  """Mean over the answer tokens of the batch, in nats a token."""
  nll, counted, _ = token_nll(model, batch, loss_from)
  return jnp.sum(nll * counted) / jnp.maximum(jnp.sum(counted), 1)


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
