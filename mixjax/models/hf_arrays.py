"""Parameters on their way from a mapped file to the devices, and back, a piece at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from mixjax.models.hf_keys import Layout

PIECE = 2**27  # bytes that go to a device at a time, or one layer if that is more
NO_MESH = jax.sharding.Mesh(np.empty((), object), ())  # as context, for work on one device


def placed(
  views: list[np.ndarray],
  stacked: bool,
  like: jax.ShapeDtypeStruct,
  where: jax.sharding.Sharding | None,
) -> jax.Array:
  """An array of the shape and type of `like`, each device's part made on that device.

  `views` are arrays on disk seen through our layout: one of each layer if `stacked`, else one.
  """
  if where is None:
    return part(views, stacked, like.dtype, tuple(slice(0, size) for size in like.shape), None)
  parts = []
  for device, index in where.addressable_devices_indices_map(like.shape).items():
    index = tuple(
      slice(*taken.indices(size)) for taken, size in zip(index, like.shape, strict=True)
    )
    parts.append(part(views, stacked, like.dtype, index, device))
  return jax.make_array_from_single_device_arrays(like.shape, where, parts)


def part(
  views: list[np.ndarray],
  stacked: bool,
  dtype: jnp.dtype,
  index: tuple[slice, ...],
  device: jax.Device | None,
) -> jax.Array:
  """The box `index` of a parameter on one device.

  A box of more than PIECE bytes goes there in pieces along its first axis, in the type that it has
  on disk, and is put together there.
  """
  if not index:
    return jax.device_put(np.array(views[0], dtype), device)
  first, *rest = index
  rest = tuple(rest)

  def rows(begin, end):
    if not stacked:
      return views[0][(slice(begin, end), *rest)]
    if end == begin + 1:
      return views[begin][rest][None]
    return np.stack([view[rest] for view in views[begin:end]])

  shape = [taken.stop - taken.start for taken in index]
  row = max(1, np.prod(shape[1:], dtype=np.int64) * dtype.itemsize)
  step = int(max(1, PIECE // row))
  if step >= shape[0]:
    return jax.device_put(np.array(rows(first.start, first.stop), dtype, order="C"), device)
  whole = jnp.zeros(shape, dtype, device=device)
  for begin in range(first.start, first.stop, step):
    piece = jax.device_put(rows(begin, min(begin + step, first.stop)), device)
    whole = fill(whole, piece, begin - first.start)
    jax.block_until_ready(whole)  # or pieces would queue up in memory
  return whole


@functools.partial(jax.jit, donate_argnums=0)
def fill(whole: jax.Array, piece: jax.Array, begin: int | jax.Array) -> jax.Array:
  return jax.lax.dynamic_update_slice_in_dim(whole, piece.astype(whole.dtype), begin, axis=0)


def fetched(leaf: jax.Array, layer: int | None, layout: Layout, dtype: str) -> np.ndarray:
  """A parameter, or one layer of it, as `dtype` in torch's layout, gathered from all devices."""
  return layout.to_torch(multihost_utils.process_allgather(copied(leaf, layer, dtype), tiled=True))


@functools.partial(jax.jit, static_argnames=("dtype",))
def copied(leaf: jax.Array, layer: int | jax.Array | None, dtype: str) -> jax.Array:
  # Always a new array: one that has been gathered keeps what was gathered for as long as it lives.
  if layer is not None:
    leaf = jax.lax.dynamic_index_in_dim(leaf, layer, axis=0, keepdims=False)
  return jnp.array(leaf, dtype, copy=True)
