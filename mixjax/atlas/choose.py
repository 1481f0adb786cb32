"""How many concepts? Figures for each K, and a plain recommendation with its reason."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from mixjax.atlas import lloyd, stream
from mixjax.atlas.stream import Rows

_SAMPLE = 50_000  # rows of each half, and of those both halves' clusters are compared on
_NEAR = 0.05  # adjusted Rand indices this close to the best are as good


@dataclasses.dataclass(frozen=True)
class Figures:
  """What speaks for or against K clusters.

  inertia: mean over rows of 1 - cosine to the centroid (0 to 2); it falls with any K.
  silhouette: mean of (b - a) / max(a, b), a a row's distance to its own centroid and b that to the
    next one: the simplified silhouette, from 0 (between two clusters) to 1.
  rand: adjusted Rand index (0 by chance, 1 at best) of how the clusters of two disjoint halves
    divide the same rows, mean over splits, and `rand_sd` its standard deviation.
  nmi: their normalised mutual information, 0 to 1.
  smallest: share of the rows in the smallest cluster.
  """

  k: int
  inertia: float
  silhouette: float
  rand: float
  rand_sd: float
  nmi: float
  smallest: float


def compare(
  rows: Rows,
  ks: Sequence[int],
  seed: int,
  mesh: Mesh,
  settings: lloyd.Settings | None = None,
  splits: int = 3,
) -> list[Figures]:
  """Figures of each K, of clusters of the rows or of a sample of 150,000 where there are more.

  Raises ValueError for a K that is not from 2 to a third of the rows, and as `lloyd.fit` does.
  """
  if bad := [k for k in ks if not 2 <= k <= len(rows) // 3]:
    raise ValueError(
      f"cannot compare {bad} clusters of {len(rows)} rows: from 2 to a third of them"
    )
  settings = settings or lloyd.Settings(restarts=4)
  rng = np.random.default_rng(seed)
  chosen = rng.choice(len(rows), min(3 * _SAMPLE, len(rows)), replace=False)
  sample = np.asarray(rows[np.sort(chosen)], np.float32)
  return [_figures(sample, k, seed, mesh, settings, splits) for k in ks]


def _figures(sample: Float[np.ndarray, "n e"], k, seed, mesh, settings, splits) -> Figures:
  whole = lloyd.fit(sample, k, seed, mesh, settings)
  third = len(sample) // 3
  rand, nmi = [], []
  for split in range(splits):
    order = np.random.default_rng((seed, split)).permutation(len(sample))
    judged = sample[np.sort(order[2 * third :])]
    labels = []
    for half in (order[:third], order[third : 2 * third]):
      fitted = lloyd.fit(sample[np.sort(half)], k, seed, mesh, settings)
      labels.append(np.concatenate([c for c, _ in stream.assign(judged, fitted.centroids, mesh)]))
    rand.append(adjusted_rand_score(*labels))
    nmi.append(normalized_mutual_info_score(*labels))
  return Figures(
    k=k,
    inertia=whole.inertia / len(sample),
    silhouette=_silhouette(sample, whole.centroids),
    rand=float(np.mean(rand)),
    rand_sd=float(np.std(rand, ddof=1)) if splits > 1 else 0.0,
    nmi=float(np.mean(nmi)),
    smallest=float(whole.sizes.min() / len(sample)),
  )


def _silhouette(x: Float[np.ndarray, "n e"], centroids: Float[np.ndarray, "k e"]) -> float:
  total, size = 0.0, max((1 << 24) // len(centroids), 1)
  for start in range(0, len(x), size):
    similarity = x[start : start + size] @ centroids.T
    two = np.partition(similarity, -2, axis=1)[:, -2:]
    other, own = np.maximum(1 - two.T, 0)
    total += float(np.sum((other - own) / np.maximum(other, 1e-9), dtype=np.float64))
  return total / len(x)


def recommend(figures: Sequence[Figures]) -> tuple[int, str]:
  """(K, why): among the steadiest the one whose clusters are the best apart.

  Clusters that another half of the data would not give again say little about the data; so those K
  whose adjusted Rand index is within 0.05 of the best are kept, of them those without a cluster of
  less than a tenth of an even share if there are any, and of those the highest silhouette wins.
  """
  best = max(f.rand for f in figures)
  steady = [f for f in figures if f.rand >= best - _NEAR]
  even = [f for f in steady if f.smallest * f.k >= 0.1] or steady
  won = max(even, key=lambda f: (f.silhouette, -f.k))
  why = f"two halves of the images agree on {won.k} concepts (adjusted Rand {won.rand:.2f}"
  why += ", the best" if won.rand == best else f"; the best is {best:.2f}"
  why += f"), with a silhouette of {won.silhouette:.2f}"
  if others := [f for f in steady if f is not won]:
    listed = ", ".join(f"{f.silhouette:.2f} at {f.k}" for f in others)
    why += f" against {listed}, which are as steady"
  return won.k, f"{why}; the smallest concept has {won.smallest:.1%} of the images"
