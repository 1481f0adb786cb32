"""Spherical k-means: clusters found again, nothing empty, the same bits every time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax.atlas import kmeans


def directions(seed, sizes, e=16, noise=0.05):
  """Points around random orthogonal directions; returns (points, which direction each is of)."""
  rng = np.random.default_rng(seed)
  centres = np.linalg.qr(rng.normal(size=(e, e)))[0][: len(sizes)]
  labels = np.repeat(np.arange(len(sizes)), sizes)
  x = centres[labels] + noise * rng.normal(size=(len(labels), e))
  order = rng.permutation(len(labels))
  x = x[order] / np.linalg.norm(x[order], axis=1, keepdims=True)
  return x.astype(np.float32), labels[order]


def test_separated_clusters_are_found_largest_first():
  x, labels = directions(0, (60, 40, 30, 20, 10))
  centroids, cluster, inertia = kmeans.fit(x, 5, seed=0)
  np.testing.assert_array_equal(cluster, labels)  # sizes fall, so the numbers agree too
  np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, rtol=1e-6)
  for c in range(5):
    mean = x[labels == c].sum(axis=0)
    np.testing.assert_allclose(centroids[c], mean / np.linalg.norm(mean), atol=1e-6)
  assert inertia == pytest.approx(np.sum(1 - np.sum(x * centroids[cluster], axis=1)), rel=1e-4)
  np.testing.assert_array_equal(kmeans.assign(x, centroids), cluster)


def test_the_best_restart_is_kept():
  x, _ = directions(1, (30,) * 5, noise=0.4)
  attempts = kmeans._attempts(x, jax.random.split(jax.random.key(3), 8), 12, 50).inertia
  assert len(np.unique(attempts)) > 1
  assert kmeans.fit(x, 12, seed=3)[2] == attempts.min()


def test_equal_seeds_give_equal_bits():
  x, _ = directions(1, (30,) * 5, noise=0.4)
  first, second = kmeans.fit(x, 12, seed=3), kmeans.fit(x, 12, seed=3)
  for one, other in zip(first, second, strict=True):
    np.testing.assert_array_equal(one, other)


def test_it_agrees_with_a_plain_lloyd_iteration():
  """From its own result, an iteration in numpy changes nothing: a fixed point was reached."""
  x, _ = directions(1, (30,) * 5, noise=0.4)
  centroids, cluster, _ = kmeans.fit(x, 12, seed=3)
  sums = np.stack([x[cluster == c].sum(axis=0) for c in range(12)])
  again = sums / np.linalg.norm(sums, axis=1, keepdims=True)
  np.testing.assert_allclose(again, centroids, atol=1e-5)
  np.testing.assert_array_equal(np.argmax(x @ again.T, axis=1), cluster)


def test_copies_cannot_leave_a_cluster_empty():
  x, labels = directions(2, (156, 1, 1, 1, 1), noise=0.0)
  _, cluster, inertia = kmeans.fit(x, 5, seed=0)
  assert np.bincount(cluster).tolist() == [156, 1, 1, 1, 1]
  assert len(set(zip(cluster.tolist(), labels.tolist(), strict=True))) == 5
  assert inertia < 1e-3


def test_an_emptied_cluster_moves_to_the_worst_fitted_point():
  x = np.array([[1, 0], [0.8, 0.6], [1, 0], [0, 1]], np.float32)
  cluster = np.array([0, 0, 0, 0])
  old = np.array([[1, 0], [-1, 0]], np.float32)
  centres = kmeans._centres(*map(jnp.asarray, (x, cluster, old)))
  np.testing.assert_array_equal(centres[1], [0, 1])


def test_errors_name_the_row_and_the_remedy():
  x, _ = directions(3, (5, 5))
  with pytest.raises(ValueError, match="only 1 distinct embeddings for 2 clusters"):
    kmeans.fit(np.repeat(x[:1], 9, axis=0), 2, seed=0)
  broken = x.copy()
  broken[4, 0] = np.nan
  with pytest.raises(ValueError, match="not finite, the first in row 4"):
    kmeans.fit(broken, 2, seed=0)
  with pytest.raises(ValueError, match="not of unit norm, the first in row 0"):
    kmeans.fit(2 * x, 2, seed=0)
  with pytest.raises(ValueError, match="k is 0"):
    kmeans.fit(x, 0, seed=0)
