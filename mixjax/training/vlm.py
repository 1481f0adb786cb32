"""The train step of LLaVA-NeXT from pixels: packed rows in, all parameters moved.

The proxies' step lives on cached features; a full fine-tune moves the vision tower too, so its
tiles are encoded inside the step.
"""

import functools
from collections.abc import Callable, Collection

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mixjax.data.packed import PackedShape
from mixjax.models import clip
from mixjax.models import mesh as mesh_lib
from mixjax.models.llava_next import LlavaNext, LlavaNextConfig, Tiles
from mixjax.training import loss, step
from mixjax.training.optimizer import OptimizerConfig, make_optimizer


def objective(
  graphdef: nnx.GraphDef, loss_chunk: int | None, frozen: Collection[str] = ()
) -> Callable:
  """`(parameters, batch) -> float[]`: nats a token to be predicted, of `PackedShape`'s arrays.

  The parts of the model named in `frozen` (vision, projector, text) stay as they are, and no
  gradient of theirs is computed.
  """

  def mean(params, batch):
    parts = {name: jax.lax.stop_gradient(params[name]) for name in frozen}
    model = nnx.merge(graphdef, nnx.State({**params, **parts}))
    features = model.encode_image(clip.preprocess(batch["tiles"]))
    x = model.embed(batch["ids"], Tiles(features, batch["index"]))
    hidden = model.text(x, batch["positions"], segments=batch["segments"])
    counted = batch["loss_mask"][:, 1:]
    chunk = loss_chunk or hidden.shape[1]
    total = loss.chunked_nll(model.text, hidden[:, :-1], batch["ids"][:, 1:], counted, chunk)
    return total / jnp.maximum(jnp.sum(counted), 1)

  return mean


@functools.lru_cache(maxsize=8)
def compiled_step(
  graphdef: nnx.GraphDef, optimizer: OptimizerConfig, steps: int, loss_chunk: int | None
) -> step.Update:
  """The jitted update, cached: all runs of one shape in a process share a program."""
  mean = objective(graphdef, loss_chunk, optimizer.frozen)
  return jax.jit(step.descend(mean, make_optimizer(optimizer, steps)), donate_argnums=0)


def abstract_state(
  config: LlavaNextConfig, tx: optax.GradientTransformation, mesh: Mesh
) -> tuple[nnx.GraphDef, step.TrainState]:
  """The model's graph, and shape and place of all that a run carries: nothing is made."""
  graphdef, params = nnx.split(nnx.eval_shape(lambda: LlavaNext(config, rngs=nnx.Rngs(0))))
  state = jax.eval_shape(lambda params: step.init_state(params, tx), params)
  return graphdef, jax.tree.map(_struct, state, mesh_lib.shardings(state, mesh))


def abstract_batch(shape: PackedShape, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
  """Shape and place of a batch: rows and groups of tiles are split over `data`."""
  rows = NamedSharding(mesh, PartitionSpec("data"))
  return {
    name: jax.ShapeDtypeStruct(size, dtype, sharding=rows)
    for name, (dtype, size) in shape.arrays().items()
  }


def _struct(leaf: jax.ShapeDtypeStruct, where: NamedSharding) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
