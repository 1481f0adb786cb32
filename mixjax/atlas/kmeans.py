"""Spherical k-means: clusters of directions (paper, section 3.1: visual concepts).

k-means++ seeding with the cosine distance 1 - x . c, Lloyd's iterations with centroids put back on
the sphere (Dhillon & Modha, 2001), several restarts of which the best is kept.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

_NORM_TOLERANCE = 1e-3


def fit(
  embeddings: Float[np.ndarray, "n e"], k: int, seed: int, restarts: int = 8, iterations: int = 50
) -> tuple[Float[np.ndarray, "k e"], Int[np.ndarray, " n"], float]:
  """Clusters unit vectors; equal arguments give equal bits.

  Args:
    embeddings: float[n, e], rows of unit norm.
    k: number of clusters.
    seed: of the seeding.
    restarts: independent attempts.
    iterations: at most so many steps an attempt; it ends when no point changes its cluster.

  Returns:
    Centroids float32[k, e] of unit norm, the largest cluster first; the cluster int32[n] of every
    row; and the inertia, the sum over rows of 1 - x . c (dimensionless, 0 to 2n).

  Raises:
    ValueError: rows that are not finite or not of unit norm, fewer distinct rows than k, or no
      attempt that filled every cluster.
  """
  x = np.asarray(embeddings, np.float32)
  _check(x, k)
  keys = jax.random.split(jax.random.key(seed), restarts)
  found = _attempts(jnp.asarray(x), keys, k, iterations)
  best = int(jnp.argmin(found.inertia))
  inertia = float(found.inertia[best])
  if not np.isfinite(inertia):
    raise ValueError(
      f"none of {restarts} attempts filled {k} clusters in {iterations} iterations: "
      "use fewer clusters or more iterations"
    )
  cluster = np.asarray(found.cluster[best])
  by_size = np.argsort(-np.bincount(cluster, minlength=k), kind="stable")
  cluster = np.argsort(by_size)[cluster].astype(np.int32)
  return np.asarray(found.centroids[best])[by_size], cluster, inertia


def assign(
  embeddings: Float[np.ndarray, "n e"], centroids: Float[np.ndarray, "k e"]
) -> Int[np.ndarray, " n"]:
  """The nearest centroid int32[n] of every row, by cosine."""
  return np.asarray(_nearest(jnp.asarray(embeddings, jnp.float32), jnp.asarray(centroids)))


def _check(x: Float[np.ndarray, "n e"], k: int):
  if x.ndim != 2:
    raise ValueError(f"embeddings must be float[n, e], not of shape {x.shape}")
  if k < 1:
    raise ValueError(f"k is {k}: at least one cluster is needed")
  broken = np.flatnonzero(~np.isfinite(x).all(axis=1))
  if len(broken):
    raise ValueError(
      f"{len(broken)} embeddings are not finite, the first in row {broken[0]}: leave those out"
    )
  norms = np.linalg.norm(x, axis=1)
  stray = np.flatnonzero(np.abs(norms - 1) > _NORM_TOLERANCE)
  if len(stray):
    raise ValueError(
      f"{len(stray)} embeddings are not of unit norm, the first in row {stray[0]} "
      f"(norm {norms[stray[0]]:.4g}): divide each row by its norm"
    )
  distinct = set()
  for row in x:
    distinct.add(row.tobytes())
    if len(distinct) == k:
      return
  raise ValueError(f"only {len(distinct)} distinct embeddings for {k} clusters: use a smaller k")


class _Attempt(NamedTuple):
  """The outcome of one attempt; inertia is infinite where a cluster stayed empty."""

  centroids: Float[Array, "k e"]
  cluster: Int[Array, " n"]
  inertia: Float[Array, ""]


@functools.partial(jax.jit, static_argnames=("k", "iterations"))
def _attempts(x: Float[Array, "n e"], keys: Key[Array, " r"], k: int, iterations: int) -> _Attempt:
  """One after the other: an attempt's n x k similarities are all that is in memory."""

  def attempt(key):
    def step(state):
      i, centroids, cluster, _ = state
      centroids = _centres(x, cluster, centroids)
      new = _nearest(x, centroids)
      return i + 1, centroids, new, jnp.any(new != cluster)

    start = _plus_plus(x, key, k)
    first = (0, start, _nearest(x, start), jnp.array(True))
    _, centroids, cluster, _ = jax.lax.while_loop(
      lambda state: (state[0] < iterations) & state[3], step, first
    )
    similarity = jnp.sum(x * centroids[cluster], axis=1)
    filled = jnp.all(_members(cluster, k).any(axis=0))
    return _Attempt(centroids, cluster, jnp.where(filled, jnp.sum(1 - similarity), jnp.inf))

  return jax.lax.map(attempt, keys)


def _plus_plus(x: Float[Array, "n e"], key: Key[Array, ""], k: int) -> Float[Array, "k e"]:
  """k rows, each drawn in proportion to its distance from those drawn before."""
  n = x.shape[0]
  keys = jax.random.split(key, k)
  first = jax.random.randint(keys[0], (), 0, n)
  centroids = jnp.zeros((k, x.shape[1]), x.dtype).at[0].set(x[first])

  def add(i, state):
    centroids, distance = state
    centroids = centroids.at[i].set(x[jax.random.categorical(keys[i], jnp.log(distance))])
    return centroids, jnp.minimum(distance, _distance(x, centroids[i]))

  return jax.lax.fori_loop(1, k, add, (centroids, _distance(x, x[first])))[0]


def _distance(x: Float[Array, "n e"], centre: Float[Array, " e"]) -> Float[Array, " n"]:
  """Squared chord, 2 (1 - cos), from differences: exactly 0 for a copy of the centre."""
  return jnp.sum((x - centre) ** 2, axis=1)


def _centres(
  x: Float[Array, "n e"], cluster: Int[Array, " n"], old: Float[Array, "k e"]
) -> Float[Array, "k e"]:
  """Mean directions; an empty cluster moves to one of the points that fit their own the worst."""
  k = old.shape[0]
  members = _members(cluster, k)
  # A product with one-hot rows rather than a scatter: sums in one order on every device.
  sums = jnp.matmul(members.T.astype(x.dtype), x, precision="highest")
  norms = jnp.linalg.norm(sums, axis=1, keepdims=True)
  centres = jnp.where(norms > 1e-6, sums / jnp.maximum(norms, 1e-6), old)
  empty = ~members.any(axis=0)
  fit_of = jnp.sum(x * centres[cluster], axis=1)
  _, worst = jax.lax.top_k(-fit_of, min(k, x.shape[0]))
  turn = jnp.cumsum(empty) - 1
  return jnp.where(empty[:, None], x[worst[jnp.maximum(turn, 0)]], centres)


def _members(cluster: Int[Array, " n"], k: int) -> Bool[Array, "n k"]:
  return cluster[:, None] == jnp.arange(k)


@jax.jit
def _nearest(x: Float[Array, "n e"], centroids: Float[Array, "k e"]) -> Int[Array, " n"]:
  similarity = jnp.matmul(x, centroids.T, precision="highest")
  return jnp.argmax(similarity, axis=1).astype(jnp.int32)
