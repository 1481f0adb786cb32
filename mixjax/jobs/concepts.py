"""The atlas job's second step: named concepts, a card, and what is remembered of the corpus."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from mixjax.atlas import choose, embed, lloyd, reference
from mixjax.atlas.atlas import Atlas, agreement, concept_names, contact_sheet
from mixjax.atlas.kmeans import fit as fit_small
from mixjax.corpus.example import Example
from mixjax.jobs.workdir import write_whole
from mixjax.progress import Reporter

SMALL = 1 << 16  # up to so many images all attempts at clustering fit into memory
_SHEETS, _SHEET_IMAGES, _SHEET_PIXELS = 100, 48, 72  # concepts with a contact sheet; images; side
_CAPTIONS = 10_000  # images of a concept that it may be named after


def mesh() -> Mesh:
  """This host's devices; whoever clusters reads the embeddings from the disk of one host."""
  devices = np.array(jax.local_devices())
  return Mesh(devices, ("data",), (jax.sharding.AxisType.Explicit,))


def compare(ks: Sequence[int], folder: epath.Path, seed: int, reporter: Reporter) -> None:
  """Writes choose.json: figures of each number of concepts, and which one is recommended."""
  path = folder / "choose.json"
  if not path.exists():
    reporter.stage("compare")
    embeddings = np.load(folder / "embeddings.npy", mmap_mode="r")
    figures = choose.compare(embeddings, ks, seed, mesh())
    k, why = choose.recommend(figures)
    rows = [dataclasses.asdict(f) for f in figures]
    write_whole(path, json.dumps({"recommended": k, "why": why, "figures": rows}, indent=1))
  found = json.loads(path.read_text())
  reporter.say("  concepts  inertia  silhouette  halves agree (Rand, NMI)  smallest")
  for f in found["figures"]:
    agree = f"{f['rand']:.2f} +- {f['rand_sd']:.2f}, {f['nmi']:.2f}"
    reporter.say(
      f"  {f['k']:8}  {f['inertia']:7.3f}  {f['silhouette']:10.2f}  {agree:24}  {f['smallest']:.1%}"
    )
  reporter.say(f"  recommended: concepts={found['recommended']}, for {found['why']}")


def fit(
  examples: Callable[[], Iterable[Example]],
  folder: epath.Path,
  index: dict,
  k: int,
  seed: int,
  known: dict,
  reporter: Reporter,
) -> None:
  """Clusters and names; writes the atlas, its card, a contact sheet a concept and the reference.

  Args:
    examples: the rows of the corpus.
    folder: where the embeddings are and everything is written.
    index: what `embedding.embed_corpus` returned.
    k: number of concepts.
    seed: of the clustering and of what is shown.
    known: what else the card is to say.
    reporter: what is said.
  """
  reporter.stage("atlas")
  embeddings = np.load(folder / "embeddings.npy", mmap_mode="r")
  devices = mesh()
  if len(embeddings) <= SMALL:
    centroids, cluster, _ = fit_small(np.array(embeddings), k, seed)
  else:
    settings = lloyd.Settings(restarts=max(1, min(8, 256 // k)))
    centroids = lloyd.fit(embeddings, k, seed, devices, settings).centroids
    cluster, _ = reference.place(Atlas(tuple(map(str, range(k))), centroids), embeddings, devices)
  rng = np.random.default_rng(seed)
  members = [np.flatnonzero(cluster == c) for c in range(k)]
  shown = [rng.permutation(m)[:_SHEET_IMAGES] for m in members[:_SHEETS]]
  captioned = np.sort(np.concatenate([_some(m, seed) for m in members]))
  captions, pictures = _look_up(examples(), index["images"], captioned, np.concatenate(shown))
  names = concept_names(captions, cluster[captioned], k)
  atlas = Atlas(names, centroids, index["encoder"])
  (folder / "sheets").mkdir(exist_ok=True)
  for c, rows in enumerate(shown):
    tiles = [embed.decode(pictures[i], _SHEET_PIXELS) for i in rows]
    (folder / "sheets" / f"{c:02d}.png").write_bytes(contact_sheet(tiles, columns=12))
  assigned, cosine = reference.place(atlas, embeddings, devices)
  reference.refer(k, embeddings, assigned, cosine, seed).save(folder)
  labelled = all(index["domains"])
  counts = np.bincount(assigned, minlength=k)
  card = {
    "concepts": dict(zip(names, counts.tolist(), strict=True)),
    "nmi_with_true_domains": agreement(assigned, index["domains"]) if labelled else None,
    "domains": _crosstab(assigned, index["domains"], names) if labelled else None,
    "unreadable_images": len(index["unreadable"]),
  }
  write_whole(folder / "card.json", json.dumps(card | known, indent=1))
  atlas.save(folder)
  for name, count in card["concepts"].items():
    reporter.say(f"  {name:32} {count:6} images")
  if labelled:
    reporter.say(f"  agreement with the true domains: NMI {card['nmi_with_true_domains']:.2f}")


def _some(members: np.ndarray, seed: int) -> np.ndarray:
  if len(members) <= _CAPTIONS:
    return members
  return np.random.default_rng((seed, 1)).choice(members, _CAPTIONS, replace=False)


def _look_up(
  examples: Iterable[Example], images: Sequence[str], captioned: np.ndarray, shown: np.ndarray
) -> tuple[list[str], dict[int, bytes]]:
  """(a caption for each of some images, "" without one; the bytes of some images)."""
  place = {images[i]: n for n, i in enumerate(captioned)}
  wanted = {images[i]: int(i) for i in shown}
  captions, pictures = [""] * len(place), {}
  for example in examples:
    n = place.get(example.image_key)
    if n is not None and (example.task == "caption" or not captions[n]):
      captions[n] = example.answer
    if (i := wanted.get(example.image_key)) is not None:
      pictures[i] = example.image
  return captions, pictures


def _crosstab(assigned, domains: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, int]]:
  table: dict[str, dict[str, int]] = {name: {} for name in names}
  for c, domain in zip(assigned, domains, strict=True):
    mine = table[names[int(c)]]
    mine[domain] = mine.get(domain, 0) + 1
  return table
