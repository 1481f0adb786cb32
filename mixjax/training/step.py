"""One train step. The mixture is only ever data, so every proxy of a search shares one program."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, PyTree

from mixjax.training import loss


class TrainState(NamedTuple):
  """Everything a run carries from step to step; the data stream's state is `step` itself."""

  params: PyTree[Float[Array, "..."]]
  opt_state: optax.OptState
  step: Int[Array, ""]


def init_state(params: PyTree[Float[Array, "..."]], tx: optax.GradientTransformation) -> TrainState:
  """Copies `params`, so that donating the state leaves the shared starting point alone."""
  params = jax.tree.map(jnp.array, params)
  return TrainState(params, tx.init(params), jnp.zeros((), jnp.int32))


Update = Callable[[TrainState, loss.Batch], tuple[TrainState, dict[str, Float[Array, ""]]]]


def train_step(
  graphdef: nnx.GraphDef,
  tx: optax.GradientTransformation,
  loss_from: int,
  loss_chunk: int | None = None,
) -> Update:
  """The pure update `(state, batch) -> (state, metrics)`; jit or vmap it as the caller needs."""

  def objective(params, batch):
    return loss.answer_loss(nnx.merge(graphdef, params), batch, loss_from, loss_chunk)

  return descend(jax.value_and_grad(objective), tx)


def descend(slope: Callable, tx: optax.GradientTransformation) -> Update:
  """The update that follows `slope(params, batch) -> (float[] to be lowered, its gradient)`."""

  def update(state: TrainState, batch: loss.Batch):
    value, grads = slope(state.params, batch)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    metrics = {"loss": value, "grad_norm": optax.global_norm(grads)}
    return TrainState(
      optax.apply_updates(state.params, updates), opt_state, state.step + 1
    ), metrics

  return update
