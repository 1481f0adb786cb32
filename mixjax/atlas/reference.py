"""What an atlas remembers of the corpus it was fitted on, and how a new corpus differs from it.

Per concept: its share of the images, how close they lie to its centroid (cosine), how many lie
farther than 99% of the atlas's own, and whether the new images of the concept could be drawn from
where the old ones were: the energy distance between samples of both (Szekely & Rizzo, 2013), with a
permutation test. It notices a shift in any direction, also along which no cosine changes.
"""

import dataclasses
import io

import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Float, Int
from scipy.stats import false_discovery_control

from mixjax.atlas import stream
from mixjax.atlas.atlas import Atlas
from mixjax.atlas.stream import Rows

FILE = "reference.npz"
FAR = 0.99  # of the atlas's own images lie nearer
_EACH, _MOST, _LEAST = 256, 1 << 16, 16  # images kept a concept, and of all
_TESTABLE = 8  # images on each side


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
  """How the images of a corpus lie around the centroids of an atlas.

  counts int64[k] images; cosine float64[k] their mean cosine to the centroid (NaN if none); far
  float32[k] the cosine that a share FAR of them exceeds; sample float16[s, e] some embeddings, of
  which `concept` int32[s] says whose they are.
  """

  counts: Int[np.ndarray, " k"]
  cosine: Float[np.ndarray, " k"]
  far: Float[np.ndarray, " k"]
  sample: Float[np.ndarray, "s e"]
  concept: Int[np.ndarray, " s"]

  def save(self, folder: epath.PathLike) -> None:
    """Writes FILE, whole or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **dataclasses.asdict(self))
    partial = epath.Path(folder) / f".{FILE}.partial"
    partial.write_bytes(buffer.getvalue())
    partial.replace(epath.Path(folder) / FILE)

  @classmethod
  def load(cls, folder: epath.PathLike) -> "Reference":
    """Reads what `save` wrote; FileNotFoundError where there is nothing."""
    path = epath.Path(folder) / FILE
    if not path.exists():
      raise FileNotFoundError(
        f"{path} is missing: the atlas was made before it was kept; make the atlas again"
      )
    with np.load(io.BytesIO(path.read_bytes())) as arrays:
      return cls(**{field.name: arrays[field.name] for field in dataclasses.fields(cls)})


def place(
  atlas: Atlas, embeddings: Rows, mesh: Mesh
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
  """The concept int32[n] of every image and its cosine float32[n] to the centroid."""
  found = list(stream.assign(embeddings, atlas.centroids, mesh))
  return np.concatenate([c for c, _ in found]), 1 - np.concatenate([d for _, d in found])


def refer(
  k: int,
  embeddings: Rows,
  concept: Int[np.ndarray, " n"],
  cosine: Float[np.ndarray, " n"],
  seed: int,
) -> Reference:
  """What to remember of images that lie in these concepts."""
  rng = np.random.default_rng(seed)
  counts = np.bincount(concept, minlength=k)
  each = int(np.clip(_MOST // k, _LEAST, _EACH))
  mean, far, chosen = np.full(k, np.nan), np.full(k, np.nan, np.float32), []
  order = np.argsort(concept, kind="stable")
  ends = np.cumsum(counts)
  for c in range(k):
    members = order[ends[c] - counts[c] : ends[c]]
    if len(members):
      mean[c] = cosine[members].mean(dtype=np.float64)
      far[c] = np.quantile(cosine[members], 1 - FAR)
      chosen.append(np.sort(rng.permutation(members)[:each]))
  rows = np.concatenate(chosen)
  # In the order of the file, which a memory map reads best.
  by_place = np.argsort(rows)
  sample = np.empty((len(rows), embeddings.shape[1]), np.float16)
  sample[by_place] = embeddings[rows[by_place]]
  return Reference(counts, mean, far, sample, concept[rows].astype(np.int32))


def drift(
  atlas: Atlas,
  old: Reference,
  new: Reference,
  beyond: Int[np.ndarray, " k"],
  seed: int,
  permutations: int = 1999,
) -> list[dict]:
  """One dict a concept; JSON can hold it (None stands for what cannot be said).

  `share` {old, new} of all images, `images` {old, new}; `cosine` {old, new} mean to the centroid;
  `far` the share of new images farther than the atlas's own 99th percentile (0.01 without drift);
  `statistic` the energy distance of the samples and `p` its permutation p-value; `q` that value
  after Benjamini and Hochberg over all concepts tested.

  Args:
    atlas: the concepts.
    old, new: what the two corpora are like.
    beyond: new images of each concept whose cosine is below `old.far`.
    seed: of the permutations.
    permutations: how many; p cannot be below 1 / (permutations + 1).
  """
  rng = np.random.default_rng(seed)
  rows = []
  for c, name in enumerate(atlas.names):
    ours, theirs = old.sample[old.concept == c], new.sample[new.concept == c]
    tested = min(len(ours), len(theirs)) >= _TESTABLE
    statistic, p = energy_test(ours, theirs, rng, permutations) if tested else (None, None)
    rows.append(
      {
        "concept": name,
        "images": {"old": int(old.counts[c]), "new": int(new.counts[c])},
        "share": {
          "old": float(old.counts[c] / old.counts.sum()),
          "new": float(new.counts[c] / new.counts.sum()),
        },
        "cosine": {"old": _known(old.cosine[c]), "new": _known(new.cosine[c])},
        "far": float(beyond[c] / new.counts[c]) if new.counts[c] else None,
        "statistic": statistic,
        "p": p,
        "q": None,
      }
    )
  known = [row for row in rows if row["p"] is not None]
  if known:
    for row, q in zip(known, false_discovery_control([r["p"] for r in known]), strict=True):
      row["q"] = float(q)
  return rows


def _known(value: float) -> float | None:
  return float(value) if np.isfinite(value) else None


def energy_test(
  x: Float[np.ndarray, "n e"],
  y: Float[np.ndarray, "m e"],
  rng: np.random.Generator,
  permutations: int,
) -> tuple[float, float]:
  """(energy distance, p-value) of two samples.

  The distance is 2 E|X - Y| - E|X - X'| - E|Y - Y'|, 0 for equal distributions and for no others;
  p is the share of relabelled samples with as large a one, the samples as they are included.
  """
  both = np.concatenate([x, y]).astype(np.float64)
  norms = np.sum(both**2, axis=1)
  distance = np.sqrt(np.maximum(norms[:, None] + norms - 2 * both @ both.T, 0))
  np.fill_diagonal(distance, 0)
  weights = np.repeat([1 / len(x), -1 / len(y)], [len(x), len(y)])
  shuffled = np.stack([weights, *(rng.permutation(weights) for _ in range(permutations))])
  energy = -np.einsum("pi,pi->p", shuffled @ distance, shuffled)
  as_large = energy >= energy[0] * (1 - 1e-9)
  return float(energy[0]), float(as_large.mean())
