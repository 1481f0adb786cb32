"""The number of concepts: figures that mean what they say, and a recommendation that follows."""

import numpy as np
import pytest
from kmeans_test import directions
from sklearn.metrics import silhouette_samples

from mixjax.atlas import choose, lloyd
from mixjax.models import mesh as mesh_lib


def test_the_number_of_clusters_that_are_there_is_recommended():
  x, _ = directions(0, (200, 150, 150, 100, 60, 60), noise=0.08)
  mesh = mesh_lib.make_mesh(2)
  figures = choose.compare(x, [3, 6, 9], 0, mesh, lloyd.Settings(restarts=4), splits=2)
  assert [f.k for f in figures] == [3, 6, 9]
  few, right, many = figures
  assert right.rand == pytest.approx(1) == right.nmi and right.rand_sd == pytest.approx(0)
  assert many.rand < 0.95
  assert few.inertia > right.inertia > many.inertia
  assert right.smallest == pytest.approx(60 / 720)
  assert right.silhouette > max(few.silhouette, many.silhouette)
  k, why = choose.recommend(figures)
  assert k == 6 and "agree on 6 concepts (adjusted Rand 1.00, the best)" in why
  with pytest.raises(ValueError, match=r"\[1, 300\] clusters of 720 rows"):
    choose.compare(x, [1, 6, 300], 0, mesh)


def test_the_silhouette_is_that_of_distances_to_centroids():
  """Two points and two centroids by hand; for far clusters it is close to the full one."""
  eye = np.eye(2, dtype=np.float32)
  point = np.array([[0.8, 0.6], [0, 1]], np.float32)
  assert choose._silhouette(point, eye) == pytest.approx(((0.4 - 0.2) / 0.4 + 1) / 2)
  x, labels = directions(0, (50, 50, 50), noise=0.05)
  centroids = np.stack([x[labels == c].mean(axis=0) for c in range(3)])
  centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
  full = silhouette_samples(x, labels, metric="cosine").mean()
  assert choose._silhouette(x, centroids) == pytest.approx(full, abs=0.05)


def figures(k, rand, silhouette, smallest=0.05):
  return choose.Figures(k, 0.5, silhouette, rand, 0.01, rand, smallest)


def test_steadiness_comes_first_and_slivers_are_avoided():
  best = figures(20, 0.90, 0.3)
  unsteady, near = figures(10, 0.6, 0.9), figures(50, 0.87, 0.4, smallest=0.005)
  assert choose.recommend([unsteady, best, near])[0] == 50
  sliver = figures(50, 0.87, 0.4, smallest=0.001)
  k, why = choose.recommend([unsteady, best, sliver])
  assert k == 20 and "against 0.40 at 50" in why and "5.0% of the images" in why
