"""Greedy k-means++ in large matrix products, for up to thousands of centroids.

Arthur & Vassilvitskii (2007) draw each centroid in proportion to its squared distance from those
drawn before; greedily, the best of a few draws is taken. Here the draws of many steps are made
together, so that their distances to all rows are one product. Those of later steps come from a
density that has become old by then; one is accepted in the proportion to which its distance has
not shrunk since, which makes it a draw from the present density.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

_STEPS = 32  # at most so many together
_SAME = 4e-6  # squared distances below this share of the squared norms are those of copies


def plus_plus(
  sample: Float[np.ndarray, "n e"],
  k: int,
  rng: np.random.Generator,
  mesh: Mesh,
  centres: Float[np.ndarray, "m e"] | None = None,
) -> Float[np.ndarray, "k e"]:
  """k rows of the sample, far from each other and from `centres`.

  Args:
    sample: the rows to draw from.
    k: how many.
    rng: of the draws.
    mesh: whose `data` axis splits the sample.
    centres: centroids that are there already, none of which is returned.

  Raises:
    ValueError: the sample has fewer distinct rows than are asked for.
  """
  n = len(sample)
  trials = 2 + int(math.log(k))
  steps = min(max(k // 16, 1), _STEPS)
  choose, nearer, whole = _programs(mesh, steps, trials)
  rows = _placed(sample, mesh)
  far = _placed(np.full(n, np.inf, np.float32), mesh)  # rows that fill it up gain nothing
  found = np.empty((k, sample.shape[1]), np.float32)
  count = 0
  if centres is None:
    found[0] = sample[rng.integers(n)]
    centres, count = found[:1], 1
  size = steps * trials
  for at in range(0, len(centres), size):
    part = centres[at : at + size]
    far = nearer(rows, far, np.concatenate([part, np.repeat(part[:1], size - len(part), axis=0)]))
  while count < k:
    distance = np.asarray(whole(far))
    total = np.cumsum(distance[:n], dtype=np.float64)
    if not total[-1] > 0:
      raise ValueError(
        f"a sample of {n} rows has only {count} distinct ones for {k} clusters: use a smaller k"
      )
    drawn = np.searchsorted(total, rng.random(size) * total[-1], side="right")
    drawn = np.minimum(drawn, np.flatnonzero(distance[:n])[-1])  # the last sum is rounded
    chance = rng.random(size).astype(np.float32)
    best, far = choose(rows, far, sample[drawn], distance[drawn], chance, k - count)
    best = np.asarray(best)
    best = best[best >= 0]
    found[count : count + len(best)] = sample[drawn[best]]
    count += len(best)
  return found


def _placed(sample: Float[np.ndarray, "n ..."], mesh: Mesh) -> Array:
  """The sample split over `data`, filled up with zeros."""
  lacking = -len(sample) % mesh.shape["data"]
  if lacking:
    sample = np.concatenate([sample, np.zeros_like(sample[:1], shape=(lacking, *sample.shape[1:]))])
  where = NamedSharding(mesh, P("data"))
  return jax.make_array_from_callback(sample.shape, where, lambda index: sample[index])


def _squared(x: Float[Array, "n e"], centres: Float[Array, "b e"]) -> Float[Array, "n b"]:
  """Squared distances, 0 for copies."""
  both = jnp.sum(x * x, axis=1)[:, None] + jnp.sum(centres * centres, axis=1)
  squared = both - 2 * jnp.matmul(x, centres.T, precision="highest")
  return jnp.where(squared < _SAME * both, 0, squared)


@functools.cache
def _programs(mesh: Mesh, steps: int, trials: int) -> tuple[Callable, Callable, Callable]:
  """Programs over a sample [n, e] and its distances [n] to the centroids so far.

  The first takes draws [b, e], their distances [b] when they were made, a number from 0 to 1 for
  each, and how many centroids are lacking. It returns which draw each step takes, -1 where it
  takes none, and the new distances. The second one takes all it is given; the third brings the
  distances together.
  """

  def choose(x, far, drawn, before, chance, lacking):
    to_all, between = _squared(x, drawn), _squared(drawn, drawn)

    def step(i, state):
      far, now, taken, lacking = state
      here = jax.lax.dynamic_slice_in_dim(to_all, i * trials, trials, axis=1)
      gains = jax.lax.psum(jnp.sum(jnp.maximum(far[:, None] - here, 0), axis=0), "data")
      stands = jax.lax.dynamic_slice(chance * before < now, (i * trials,), (trials,))
      gains = jnp.where(stands, gains, -1)
      best = jnp.argmax(gains)
      takes = (gains[best] >= 0) & (lacking > 0)
      far = jnp.where(takes, jnp.minimum(far, here[:, best]), far)
      now = jnp.where(takes, jnp.minimum(now, between[i * trials + best]), now)
      taken = taken.at[i].set(jnp.where(takes, i * trials + best, -1))
      return far, now, taken, lacking - takes

    state = (far, before, jnp.full(steps, -1), lacking)
    far, _, taken, _ = jax.lax.fori_loop(0, steps, step, state)
    return taken, far

  def nearer(x, far, centres):
    return jnp.minimum(far, jnp.min(_squared(x, centres), axis=1))

  def split(program, given, made):
    specs = dict(in_specs=(P("data"), P("data"), *[P()] * given), out_specs=made)
    return jax.jit(jax.shard_map(program, mesh=mesh, **specs))

  whole = jax.jit(lambda far: far, out_shardings=NamedSharding(mesh, P()))
  return split(choose, 4, (P(), P("data"))), split(nearer, 1, P("data")), whole
