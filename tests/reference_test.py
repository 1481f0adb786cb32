"""What an atlas remembers, and the drift it reports: none where there is none, and where it is."""

import numpy as np
import pytest
from kmeans_test import directions

from mixjax.atlas import reference
from mixjax.atlas.atlas import Atlas
from mixjax.models import mesh as mesh_lib

NAMES = ("maps", "charts", "faces", "never")


@pytest.fixture(scope="module")
def mesh():
  return mesh_lib.make_mesh(2)


def images(seed, sizes=(400, 300, 200), noise=0.1, centre=0):
  """Images around the first directions of one basis; `centre` turns those of the second."""
  rng = np.random.default_rng(seed)
  basis = np.linalg.qr(np.random.default_rng(9).normal(size=(12, 12)))[0]
  labels = np.repeat(np.arange(len(sizes)), sizes)
  means = basis[labels] + centre * (labels == 1)[:, None] * basis[5]
  x = means + noise * rng.normal(size=(len(labels), 12))
  return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), basis


def atlas():
  _, basis = images(0)
  return Atlas(NAMES, basis[:4].astype(np.float32), "clip")


def drifted(new, mesh, seed=0):
  x, _ = images(1)
  found = reference.place(atlas(), x, mesh)
  old = reference.refer(4, x, *found, seed)
  concept, cosine = reference.place(atlas(), new, mesh)
  beyond = np.bincount(concept[cosine < old.far[concept]], minlength=4)
  theirs = reference.refer(4, new, concept, cosine, seed)
  rows = reference.drift(atlas(), old, theirs, beyond, seed, permutations=499)
  return {row["concept"]: row for row in rows}


def test_images_are_placed_and_remembered(mesh, tmp_path):
  x, _ = images(1)
  concept, cosine = reference.place(atlas(), x, mesh)
  np.testing.assert_array_equal(concept, np.repeat([0, 1, 2], [400, 300, 200]))
  np.testing.assert_allclose(cosine, np.sum(x * atlas().centroids[concept], axis=1), atol=1e-6)
  kept = reference.refer(4, x, concept, cosine, seed=0)
  assert kept.counts.tolist() == [400, 300, 200, 0]
  assert kept.cosine[1] == pytest.approx(cosine[400:700].mean()) and np.isnan(kept.cosine[3])
  assert np.mean(cosine[:400] < kept.far[0]) == pytest.approx(0.01)
  assert np.bincount(kept.concept).tolist() == [256, 256, 200]
  for row, c in zip(kept.sample.astype(np.float32), kept.concept, strict=True):
    assert np.abs(x[concept == c] - row).max(axis=1).min() < 1e-3
  kept.save(tmp_path)
  again = reference.Reference.load(tmp_path)
  for name in ("counts", "cosine", "far", "sample", "concept"):
    np.testing.assert_array_equal(getattr(again, name), getattr(kept, name))
  with pytest.raises(FileNotFoundError, match="make the atlas again"):
    reference.Reference.load(tmp_path / "none")


def test_the_same_kind_of_images_has_not_drifted(mesh):
  rows = drifted(images(2)[0], mesh)
  for name in NAMES[:3]:
    assert rows[name]["q"] > 0.05 and rows[name]["far"] < 0.04
    assert rows[name]["share"]["new"] == rows[name]["share"]["old"]
  assert rows["never"]["images"] == {"old": 0, "new": 0}
  assert rows["never"]["p"] is None is rows["never"]["far"] is rows["never"]["cosine"]["new"]


def test_the_concept_that_moved_is_named_with_its_figures(mesh):
  rows = drifted(images(2, sizes=(100, 300, 600), centre=0.3)[0], mesh)
  assert rows["charts"]["q"] < 0.01 < 0.05 < min(rows["maps"]["q"], rows["faces"]["q"])
  assert rows["charts"]["far"] > 0.05 > rows["maps"]["far"]
  assert rows["charts"]["cosine"]["new"] < rows["charts"]["cosine"]["old"] - 0.01
  assert rows["faces"]["share"] == {"old": pytest.approx(200 / 900), "new": 0.6}


def test_a_shift_that_changes_no_cosine_is_noticed():
  """Around the centroid: rotated, so that distances to it are what they were."""
  rng = np.random.default_rng(0)
  angle = rng.normal(0, 0.5, 200)
  ring = np.stack([np.full(200, 0.9), np.cos(angle), np.sin(angle)], axis=1)
  turned = ring * [1, -1, 1]
  assert reference.energy_test(ring, turned, rng, 199)[1] == 1 / 200
  assert reference.energy_test(ring[:100], ring[100:], rng, 199)[1] > 0.05


def test_the_energy_test_is_calibrated():
  """Without drift p is uniform; the statistic is the mean distances that it is defined by."""
  rng = np.random.default_rng(0)
  p = [
    reference.energy_test(rng.normal(size=(20, 3)), rng.normal(size=(30, 3)), rng, 99)[1]
    for _ in range(200)
  ]
  assert np.mean(np.array(p) <= 0.1) == pytest.approx(0.1, abs=0.06)
  x, y = rng.normal(size=(5, 2)), rng.normal(size=(4, 2))

  def apart(a, b):
    return np.linalg.norm(a[:, None] - b, axis=2).mean()

  expected = 2 * apart(x, y) - apart(x, x) - apart(y, y)
  assert reference.energy_test(x, y, rng, 9)[0] == pytest.approx(expected)


def test_thousands_of_concepts_keep_fewer_images_each():
  x, _ = directions(0, (64,) * 3, e=8)
  concept = np.tile(np.arange(3000), 1)[: len(x)].astype(np.int32)
  kept = reference.refer(9000, np.repeat(x, 40, axis=0), np.repeat(concept, 40), np.ones(7680), 0)
  assert np.bincount(kept.concept).max() == 16
