"""k-means in passes over blocks: what it finds, its bits on any mesh, and what it refuses."""

import numpy as np
import pytest
from kmeans_test import directions

from mixjax.atlas import lloyd, seeding, stream
from mixjax.models import mesh as mesh_lib


@pytest.fixture(scope="module")
def mesh():
  return mesh_lib.make_mesh(2)


@pytest.fixture
def small_blocks(monkeypatch):
  """Blocks of a few rows, so that there are many and the last one is not full."""
  monkeypatch.setattr(stream, "_ELEMENTS", 1)
  monkeypatch.setattr(stream, "_LEAST", 4)


def test_separated_clusters_are_found_largest_first(mesh):
  x, labels = directions(0, (600, 400, 300, 200, 101))
  found = lloyd.fit(x, 5, 0, mesh)
  assert found.sizes.tolist() == [600, 400, 300, 200, 101]
  cluster = np.concatenate([c for c, _ in stream.assign(x, found.centroids, mesh)])
  np.testing.assert_array_equal(cluster, labels)
  for c in range(5):
    mean = x[labels == c].sum(axis=0)
    np.testing.assert_allclose(found.centroids[c], mean / np.linalg.norm(mean), atol=1e-5)
  cosine = np.sum(x * found.centroids[labels], axis=1)
  assert found.inertia == pytest.approx(np.sum(1 - cosine), rel=1e-4) == found.history[-1]


@pytest.mark.parametrize("spherical", [True, False])
def test_a_pass_is_what_numpy_says(mesh, small_blocks, spherical):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(101, 6)).astype(np.float32)
  centres = rng.normal(size=(7, 6)).astype(np.float32)
  found = stream.one_pass(x, centres, spherical, mesh)
  cost = 1 - x @ centres.T if spherical else ((x[:, None] - centres) ** 2).sum(axis=2)
  nearest = cost.argmin(axis=1)
  np.testing.assert_array_equal(found.sizes, np.bincount(nearest, minlength=7))
  for c in range(7):
    np.testing.assert_allclose(found.sums[c], x[nearest == c].sum(axis=0), atol=1e-5)
  assert found.inertia == pytest.approx(np.maximum(cost.min(axis=1), 0).sum(), rel=1e-5)


def test_rows_on_disk_and_any_mesh_give_the_same_clusters(mesh, small_blocks, tmp_path):
  x, _ = directions(1, (90,) * 5, noise=0.2)
  np.save(tmp_path / "x.npy", x)
  mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
  settings = lloyd.Settings(sample=120)
  one, other = (lloyd.fit(rows, 5, 3, mesh, settings) for rows in (x, mapped))
  np.testing.assert_array_equal(one.centroids, other.centroids)
  assert one.history == other.history and len(one.history) > 1
  wider = lloyd.fit(mapped, 5, 3, mesh_lib.make_mesh(8), settings)
  np.testing.assert_allclose(wider.centroids, one.centroids, atol=1e-5)
  np.testing.assert_array_equal(wider.sizes, one.sizes)
  half = lloyd.fit(x.astype(np.float16), 5, 3, mesh, settings)
  np.testing.assert_allclose(half.centroids, one.centroids, atol=2e-3)


def test_passes_only_lower_the_inertia_and_end_where_they_gain_nothing(mesh):
  x, _ = directions(1, (300,) * 16, noise=0.4)
  found = lloyd.fit(x, 12, 0, mesh, lloyd.Settings(sample=400, tolerance=0, passes=60))
  assert np.all(np.diff(found.history) <= 1e-3) and len(found.history) < 60
  sums = stream.one_pass(x, found.centroids, True, mesh).sums
  means = sums / np.linalg.norm(sums, axis=1, keepdims=True)
  np.testing.assert_allclose(means, found.centroids, atol=2e-4)


def test_mini_batches_come_close(mesh, small_blocks):
  x, _ = directions(1, (60,) * 16, noise=0.2)
  full, start, batches, again = (
    lloyd.fit(x, 16, 0, mesh, lloyd.Settings(sample=120, restarts=4, **how))
    for how in ({}, {"passes": 1}, {"mini_batch": 2.0}, {"mini_batch": 2.0})
  )
  np.testing.assert_array_equal(batches.centroids, again.centroids)
  assert len(batches.history) == 1
  assert batches.inertia < start.inertia and batches.inertia < 1.02 * full.inertia


def test_euclidean_clusters(mesh):
  rng = np.random.default_rng(0)
  x = (rng.normal(size=(400, 3)) + 20 * rng.integers(0, 2, size=(400, 1))).astype(np.float32)
  found = lloyd.fit(x, 2, 0, mesh, lloyd.Settings(spherical=False))
  np.testing.assert_allclose(sorted(found.centroids.mean(axis=1)), [0, 20], atol=0.3)
  centred = (
    x
    - found.centroids[
      np.concatenate([c for c, _ in stream.assign(x, found.centroids, mesh, spherical=False)])
    ]
  )
  assert found.inertia == pytest.approx((centred**2).sum(), rel=1e-3)


def test_an_empty_cluster_moves_far_from_all_others(mesh):
  x = np.eye(4, dtype=np.float32)[[0, 0, 0, 1, 1, 2]]
  found = stream.one_pass(x, np.eye(4, dtype=np.float32)[[0, 1, 3]], True, mesh)
  assert found.sizes.tolist() == [4, 2, 0]
  centres = lloyd._moved(
    found._replace(sums=found.sums), np.eye(4)[[0, 1, 3]], x, np.random.default_rng(0), mesh, True
  )
  assert centres[2].tolist() in ([0, 0, 1, 0], [1, 0, 0, 0])


def test_seeds_are_far_apart_and_draw_from_every_cluster(mesh):
  x, labels = directions(2, (300, 200, 40, 8, 4), noise=0.01)
  for seed in range(5):
    seeds = seeding.plus_plus(x, 5, np.random.default_rng(seed), mesh)
    places = [np.flatnonzero((x == row).all(axis=1))[0] for row in seeds]
    assert sorted(labels[places]) == [0, 1, 2, 3, 4]
  known = x[[np.flatnonzero(labels == c)[0] for c in (0, 2, 4)]]
  others = seeding.plus_plus(x, 2, np.random.default_rng(0), mesh, known)
  places = [np.flatnonzero((x == row).all(axis=1))[0] for row in others]
  assert sorted(labels[places]) == [1, 3]


@pytest.mark.slow
def test_many_steps_at_once_still_draw_k_means_plus_plus(mesh):
  """The mean potential of many seedings is that of greedy k-means++ as it is defined."""
  x, _ = directions(3, (40,) * 8, noise=0.5)

  def potential(seeds):
    return np.min(((x[:, None] - seeds) ** 2).sum(axis=2), axis=1).sum()

  def plain(rng, k, trials):
    seeds = x[rng.integers(len(x))][None]
    while len(seeds) < k:
      d = np.min(((x[:, None] - seeds) ** 2).sum(axis=2), axis=1)
      drawn = x[rng.choice(len(x), trials, p=d / d.sum())]
      seeds = min((np.vstack([seeds, row]) for row in drawn), key=potential)
    return seeds

  k = 64  # four steps at a time
  ours = [potential(seeding.plus_plus(x, k, np.random.default_rng(s), mesh)) for s in range(12)]
  theirs = [potential(plain(np.random.default_rng(s), k, 6)) for s in range(6)]
  assert np.mean(ours) == pytest.approx(np.mean(theirs), rel=0.02)


def test_errors_name_the_row_and_the_remedy(mesh):
  x, _ = directions(3, (20, 20))
  with pytest.raises(ValueError, match="only 1 distinct ones for 2 clusters"):
    lloyd.fit(np.repeat(x[:1], 9, axis=0), 2, 0, mesh)
  broken = x.copy()
  broken[14, 0] = np.nan
  with pytest.raises(ValueError, match="row 14 of the embeddings is not finite"):
    lloyd.fit(broken, 2, 0, mesh)
  with pytest.raises(ValueError, match="row 0 of the embeddings is not of unit norm"):
    lloyd.fit(2 * x, 2, 0, mesh)
  for k in (0, 41):
    with pytest.raises(ValueError, match=f"k is {k}"):
      lloyd.fit(x, k, 0, mesh)
  with pytest.raises(ValueError, match="passes is 0"):
    lloyd.Settings(passes=0)


def test_blocks_are_read_in_order_and_only_once(mesh, small_blocks):
  class Counted:
    shape = (50, 3)

    def __init__(self):
      self.read = []

    def __len__(self):
      return 50

    def __getitem__(self, rows):
      self.read += list(range(*rows.indices(50)))
      return np.repeat(np.arange(50)[rows, None], 3, axis=1)

  rows = Counted()
  found = [(np.asarray(b)[:, 0], count) for b, count in stream.blocks(rows, 16, mesh)]
  assert [count for _, count in found] == [16, 16, 16, 2]
  np.testing.assert_array_equal(np.concatenate([b[:count] for b, count in found]), np.arange(50))
  assert sorted(rows.read) == list(range(50))
