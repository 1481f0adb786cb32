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
from mixjax.models import clip, layers
from mixjax.models import mesh as mesh_lib
from mixjax.models.llava_next import LlavaNext, LlavaNextConfig, Tiles
from mixjax.training import loss, step
from mixjax.training.optimizer import OptimizerConfig, make_optimizer


def objective(
  graphdef: nnx.GraphDef, loss_chunk: int | None, frozen: Collection[str] = ()
) -> Callable:
  """`(parameters, batch) -> float[]`: nats a token to be predicted, of `PackedShape`'s arrays.

  The parts of the model named in `frozen` (vision, projector, text) stay as they are, and no
  gradient of theirs is computed. A batch that is a part of one has the `count` of the whole's
  tokens, which it then divides by.
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
    return total / batch.get("count", jnp.maximum(jnp.sum(counted), 1))

  return mean


def slope(
  graphdef: nnx.GraphDef, loss_chunk: int | None, frozen: Collection[str] = (), accumulate: int = 1
) -> Callable:
  """`(parameters, batch) -> (float[], gradient)` of the objective.

  The rows pass in `accumulate` parts, one after another: the activations of one part alone are in
  memory, beside a second gradient, and weights are gathered for each. A device's rows then are as
  many groups with tiles of their own. Raises ValueError for a batch whose groups do not make so
  many parts.
  """
  of_part = jax.value_and_grad(objective(graphdef, loss_chunk, frozen))
  if accumulate == 1:
    return of_part

  def of_batch(params, batch):
    count = jnp.maximum(jnp.sum(batch["loss_mask"][:, 1:]), 1)

    def add(so_far, part):
      return jax.tree.map(jnp.add, so_far, of_part(params, part | {"count": count})), None

    # Like the count: of each proxy one, where several are trained at once.
    nothing = jnp.zeros_like(count, jnp.float32), jax.tree.map(jnp.zeros_like, params)
    return jax.lax.scan(add, nothing, parts(batch, accumulate))[0]

  return of_batch


def parts(batch: loss.Batch, count: int) -> loss.Batch:
  """`count` batches, stacked: of each `count` neighbouring groups of rows every part has one.

  So each device keeps what it has. Raises ValueError unless `count` divides the groups.
  """
  groups = batch["tiles"].shape[0]
  if groups % count:
    raise ValueError(f"{groups} groups of rows do not make {count} parts: make more groups")

  def split(x):
    rows = x.shape[0] // groups
    apart = layers.sharding_with(x, *[None] * (x.ndim + 1), keep=1)
    x = jnp.reshape(x, (groups // count, count, rows, *x.shape[1:]), out_sharding=apart)
    x = jnp.swapaxes(x, 0, 1)
    together = layers.sharding_with(x, *[None] * (x.ndim - 3), keep=2)
    return jnp.reshape(x, (count, -1, *x.shape[3:]), out_sharding=together)

  return jax.tree.map(split, batch)


@functools.lru_cache(maxsize=8)
def compiled_step(
  graphdef: nnx.GraphDef,
  optimizer: OptimizerConfig,
  steps: int,
  loss_chunk: int | None,
  accumulate: int = 1,
) -> step.Update:
  """The jitted update, cached: all runs of one shape in a process share a program."""
  down = slope(graphdef, loss_chunk, optimizer.frozen, accumulate)
  return jax.jit(step.descend(down, make_optimizer(optimizer, steps)), donate_argnums=0)


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
