"""k-means of more rows than memory holds: spherical or Euclidean, by full passes or mini-batches.

A sample in memory gives the start: k-means++, then Lloyd's iterations until they gain little. What
is left for the passes over all rows is small, so that a few of them are enough. Memory depends on
the number of clusters and on the width of a row, not on the number of rows.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from mixjax.atlas import seeding, stream
from mixjax.atlas.stream import Rows, Sums

_SAMPLE_PASSES = 25


@dataclasses.dataclass(frozen=True)
class Settings:
  """How to cluster.

  spherical: centroids are directions and rows of unit norm; inertia sums 1 - cosine. Otherwise
    plain k-means, whose inertia sums squared distances.
  passes: at most so many over all rows, the one that measures the result included.
  tolerance: it ends when a pass lowers the inertia by less than this share of it.
  mini_batch: above 0, instead of full passes so many passes' worth of rows at random; each
    centroid is the mean of the rows it was given (Sculley, 2010) but forgets the older half of
    them, which other centroids were found with. Then one pass to measure.
  sample: rows of the start at least; 16 a cluster are always taken.
  restarts: starts on the sample, of which the best goes on.
  """

  spherical: bool = True
  passes: int = 20
  tolerance: float = 1e-3
  mini_batch: float = 0.0
  sample: int = 1 << 15
  restarts: int = 1

  def __post_init__(self):
    for name in ("passes", "sample", "restarts"):
      if (value := getattr(self, name)) < 1:
        raise ValueError(f"{name} is {value}: it is at least 1")


@dataclasses.dataclass(frozen=True, eq=False)
class Clustering:
  """Centroids float32[k, e], the largest cluster first, their sizes and the inertia of all rows.

  `history` has the inertia of each full pass; the last one is that of these centroids.
  """

  centroids: Float[np.ndarray, "k e"]
  sizes: Int[np.ndarray, " k"]
  inertia: float
  history: tuple[float, ...]


def fit(rows: Rows, k: int, seed: int, mesh: Mesh, settings: Settings | None = None) -> Clustering:
  """Clusters the rows; equal arguments on equally many devices give equal bits.

  An empty cluster is moved, by the draw of k-means++, to a row of the sample that is far from all
  centroids.

  Args:
    rows: [n, e], of unit norm where spherical: an array, a memory-mapped file or the like.
    k: number of clusters.
    seed: of the sample and of all draws.
    mesh: whose `data` axis splits each block of rows.
    settings: how.

  Raises:
    ValueError: rows that are not finite or not of unit norm (named), fewer distinct rows than k
      in the sample, or clusters that are empty after the last pass.
  """
  settings = settings or Settings()
  if not 1 <= k <= len(rows):
    raise ValueError(f"k is {k}: from 1 to the number of rows, {len(rows)}")
  stream.check(rows, settings.spherical)
  rng = np.random.default_rng(seed)
  sample = _sample(rows, max(settings.sample, 16 * k), rng)
  starts = [_start(sample, k, rng, mesh, settings) for _ in range(settings.restarts)]
  start = min(starts, key=lambda found: found[1].inertia)
  return _over_all(rows, sample, *start, rng, mesh, settings)


def _sample(rows: Rows, count: int, rng: np.random.Generator) -> Float[np.ndarray, "s e"]:
  if count >= len(rows):
    return np.array(rows[:], np.float32)
  chosen = rng.choice(len(rows), count, replace=False, shuffle=False)
  return np.asarray(rows[np.sort(chosen)], np.float32)


def _start(sample, k, rng, mesh, settings) -> tuple[Float[np.ndarray, "k e"], Sums]:
  """Centroids that fit the sample, and what they are given of it."""
  centres = seeding.plus_plus(sample, k, rng, mesh)
  found = stream.one_pass(sample, centres, settings.spherical, mesh)
  for _ in range(_SAMPLE_PASSES):
    before = found.inertia
    centres = _moved(found, centres, sample, rng, mesh, settings.spherical)
    found = stream.one_pass(sample, centres, settings.spherical, mesh)
    if before - found.inertia <= settings.tolerance * before:
      break
  return centres, found


def _over_all(rows, sample, centres, found, rng, mesh, settings) -> Clustering:
  spherical, history = settings.spherical, []
  if settings.mini_batch:
    centres = _by_batches(rows, centres, found, rng, mesh, settings)
  elif len(sample) < len(rows):
    centres = _moved(found, centres, sample, rng, mesh, spherical)
  last = 1 if settings.mini_batch else settings.passes
  for number in range(last):
    found = stream.one_pass(rows, centres, spherical, mesh)
    history.append(found.inertia)
    settled = number and history[-2] - history[-1] <= settings.tolerance * history[-2]
    if number == last - 1 or (settled and found.sizes.all()):
      break
    centres = _moved(found, centres, sample, rng, mesh, spherical)
  if empty := int((found.sizes == 0).sum()):
    raise ValueError(
      f"{empty} of {len(centres)} clusters are empty after {last} passes: use fewer clusters or "
      "more passes"
    )
  order = np.argsort(-found.sizes, kind="stable")
  return Clustering(centres[order], found.sizes[order], found.inertia, tuple(history))


def _moved(found: Sums, centres, sample, rng, mesh, spherical) -> Float[np.ndarray, "k e"]:
  """Each centroid at the mean of what it was given, or elsewhere if that was nothing."""
  moved, filled = _means(found.sums, found.sizes, centres, spherical), found.sizes > 0
  if lacking := int((~filled).sum()):
    moved[~filled] = seeding.plus_plus(sample, lacking, rng, mesh, moved[filled])
  return moved


def _means(sums, sizes, centres, spherical) -> Float[np.ndarray, "k e"]:
  """The mean, or the direction of it; a centroid that has none stays."""
  lengths = np.linalg.norm(sums, axis=1) if spherical else sizes
  known = lengths > (1e-6 * sizes if spherical else 0)
  return np.where(known[:, None], sums / np.where(known, lengths, 1)[:, None], centres).astype(
    np.float32
  )


def _by_batches(rows, centres, found: Sums, rng, mesh, settings) -> Float[np.ndarray, "k e"]:
  """Centroids after rows at random; what they were given of the sample counts at first."""
  size = stream.block_rows(rows, len(centres), mesh)
  sums, sizes, seen = found.sums, found.sizes.astype(np.float64), 0
  for count in _batches(int(len(rows) * settings.mini_batch), size):
    chosen = _Chosen(rows, np.sort(rng.integers(len(rows), size=count)))
    new = stream.gather(stream.blocks(chosen, size, mesh), centres, settings.spherical, mesh)
    seen += count
    kept = min(1, max(found.sizes.sum(), seen / 2) / sizes.sum())
    sums, sizes = kept * sums + new.sums, kept * sizes + new.sizes
    centres = _means(sums, sizes, centres, settings.spherical)
  return centres


def _batches(total: int, size: int) -> Iterator[int]:
  for start in range(0, total, size):
    yield min(size, total - start)


class _Chosen:
  """Some rows of rows."""

  def __init__(self, rows: Rows, chosen: Int[np.ndarray, " b"]):
    self._rows, self._chosen = rows, chosen
    self.shape = (len(chosen), rows.shape[1])

  def __len__(self) -> int:
    return len(self._chosen)

  def __getitem__(self, at: slice) -> np.ndarray:
    return self._rows[self._chosen[at]]
