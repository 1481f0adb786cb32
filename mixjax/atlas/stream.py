"""Blocks of rows that lie on disk, ready for the devices, and one pass of k-means over them."""

import functools
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

_ELEMENTS = 1 << 23  # of a device's part of a block, or of its similarities to all centroids
_LEAST = 256  # rows of a device's part of a block
_NORM_TOLERANCE = 1e-3


class Rows(Protocol):
  """An array [n, e] of any float type, or what is read like one: a memory-mapped file, say."""

  shape: tuple[int, int]

  def __len__(self) -> int: ...

  def __getitem__(self, rows) -> np.ndarray: ...


class Sums(NamedTuple):
  """What one pass finds: of each cluster the sum and the number of its rows, and the inertia."""

  sums: Float[np.ndarray, "k e"]
  sizes: Int[np.ndarray, " k"]
  inertia: float


def block_rows(rows: Rows, k: int, mesh: Mesh) -> int:
  """Rows of a block: a multiple of the devices that bounds the memory of each of them."""
  devices = mesh.shape["data"]
  each = max(_ELEMENTS // max(k, rows.shape[1]), _LEAST) // _LEAST * _LEAST
  return devices * min(each, -(-len(rows) // devices))


def blocks(rows: Rows, size: int, mesh: Mesh) -> Iterator[tuple[Array, int]]:
  """(block float32[size, e] split over `data`, how many of its rows are rows) from first to last.

  The last block is filled up with zeros. While one block is computed with, the next one is read;
  a host reads only what its own devices need.
  """
  where = NamedSharding(mesh, P("data"))
  shape = (size, rows.shape[1])

  def read(start: int) -> Array:
    def part(index):
      first, last, _ = index[0].indices(size)
      found = np.asarray(rows[start + first : min(start + last, len(rows))], np.float32)
      if len(found) == last - first:
        return np.array(found)  # in memory, whatever it was mapped from
      return np.concatenate([found, np.zeros((last - first - len(found), shape[1]), np.float32)])

    return jax.make_array_from_callback(shape, where, part)

  starts = range(0, len(rows), size)
  with futures.ThreadPoolExecutor(1) as reader:
    ahead = reader.submit(read, 0)
    for start in starts:
      block = ahead.result()
      if start + size < len(rows):
        ahead = reader.submit(read, start + size)
      yield block, min(size, len(rows) - start)


def one_pass(rows: Rows, centres: Float[np.ndarray, "k e"], spherical: bool, mesh: Mesh) -> Sums:
  """Assigns every row to its nearest centroid and adds up what they were assigned.

  Sums are float32 within a block and a device; the devices' sums are added in their order in
  float64, so that equal devices give equal bits.
  """
  return gather(blocks(rows, block_rows(rows, len(centres), mesh), mesh), centres, spherical, mesh)


def gather(
  found: Iterator[tuple[Array, int]], centres: Float[np.ndarray, "k e"], spherical: bool, mesh: Mesh
) -> Sums:
  """The same of these blocks."""
  k, e = centres.shape
  devices = mesh.shape["data"]
  add, whole = _adding(mesh, spherical)
  held = NamedSharding(mesh, P("data"))
  shapes = (((devices, k, e), np.float32), ((devices, k), np.int32), ((devices,), np.float32))
  carry = tuple(jnp.zeros(shape, dtype, device=held) for shape, dtype in shapes)
  centroids = jax.device_put(centres, NamedSharding(mesh, P()))
  for block, count in found:
    # Else blocks are read, and wait in memory, faster than they are computed with.
    carry = add(block, count, centroids, jax.block_until_ready(carry))
  sums, sizes, inertia = (np.asarray(x) for x in whole(carry))
  return Sums(
    sums.sum(axis=0, dtype=np.float64), sizes.sum(axis=0, dtype=np.int64), float(inertia.sum())
  )


@functools.cache
def _adding(mesh: Mesh, spherical: bool) -> tuple[Callable, Callable]:
  """(block, count, centroids, carry) -> carry, and carry -> the same on every device."""

  def local(x, count, centres, carry):
    k = len(centres)
    nearest, cost = _nearest(x, centres, spherical)
    place = jax.lax.axis_index("data") * len(x) + jnp.arange(len(x))
    valid = place < count
    nearest = jnp.where(valid, nearest, k)
    sums, sizes, inertia = carry
    return (
      sums + _summed(x, nearest, k)[None],
      sizes + jax.ops.segment_sum(jnp.ones_like(nearest), nearest, k)[None],
      inertia + jnp.sum(jnp.where(valid, cost, 0))[None],
    )

  split = P("data")
  specs = dict(in_specs=(split, P(), P(), split), out_specs=split)
  add = jax.jit(jax.shard_map(local, mesh=mesh, **specs), donate_argnums=3)
  return add, jax.jit(lambda carry: carry, out_shardings=NamedSharding(mesh, P()))


def _nearest(
  x: Float[Array, "n e"], centres: Float[Array, "k e"], spherical: bool
) -> tuple[Int[Array, " n"], Float[Array, " n"]]:
  """The nearest centroid of every row and its distance: 1 - cosine, or the squared one."""
  similarity = jnp.matmul(x, centres.T, precision="highest")
  if not spherical:
    similarity = similarity - jnp.sum(centres * centres, axis=1) / 2
  best = jnp.max(similarity, axis=1)
  cost = 1 - best if spherical else jnp.sum(x * x, axis=1) - 2 * best
  return jnp.argmax(similarity, axis=1).astype(jnp.int32), jnp.maximum(cost, 0)


def _summed(x: Float[Array, "n e"], cluster: Int[Array, " n"], k: int) -> Float[Array, "k e"]:
  if jax.default_backend() == "gpu":  # whose scatter adds in any order
    members = (cluster[None] == jnp.arange(k)[:, None]).astype(x.dtype)
    return jnp.matmul(members, x, precision="highest")
  return jax.ops.segment_sum(x, cluster, k)


def assign(
  rows: Rows,
  centres: Float[np.ndarray, "k e"],
  mesh: Mesh,
  spherical: bool = True,
) -> Iterator[tuple[Int[np.ndarray, " b"], Float[np.ndarray, " b"]]]:
  """For each block of rows the nearest centroids int32[b] and the distances float32[b] to them."""
  centroids = jax.device_put(centres, NamedSharding(mesh, P()))
  for block, count in blocks(rows, block_rows(rows, len(centres), mesh), mesh):
    nearest, cost = _assigning(mesh, spherical)(block, centroids)
    yield np.asarray(nearest)[:count], np.asarray(cost)[:count]


@functools.cache
def _assigning(mesh: Mesh, spherical: bool) -> Callable:
  split = jax.shard_map(
    functools.partial(_nearest, spherical=spherical),
    mesh=mesh,
    in_specs=(P("data"), P()),
    out_specs=P("data"),
  )
  return jax.jit(split, out_shardings=NamedSharding(mesh, P()))


def check(rows: Rows, spherical: bool) -> None:
  """Raises ValueError naming the first row that is not finite, or not of unit norm."""
  size = max(_ELEMENTS // rows.shape[1], 1)
  for start in range(0, len(rows), size):
    x = np.asarray(rows[start : start + size], np.float32)
    squares = np.einsum("ij,ij->i", x, x)
    if len(broken := np.flatnonzero(~np.isfinite(squares))):
      raise ValueError(f"row {start + broken[0]} of the embeddings is not finite: leave it out")
    stray = np.flatnonzero(np.abs(np.sqrt(squares) - 1) > _NORM_TOLERANCE)
    if spherical and len(stray):
      raise ValueError(
        f"row {start + stray[0]} of the embeddings is not of unit norm (norm "
        f"{np.sqrt(squares[stray[0]]):.4g}): divide each row by its norm"
      )
