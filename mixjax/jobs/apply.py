"""A finished atlas on a new corpus: which concept each image falls under, and how they drifted.

new corpus ─► images through the atlas's CLIP ─► its concepts ─► drift.json, a line a concept
                                                        └─► with `source`: its cells grow
"""

import dataclasses
import json
from collections.abc import Iterable

import jax
import numpy as np
from etils import epath
from jaxtyping import Int

from mixjax.atlas import reference, shards
from mixjax.atlas.atlas import Atlas
from mixjax.atlas.parts import Origin
from mixjax.corpus.corpus import RULES, Corpus
from mixjax.corpus.example import Example
from mixjax.data import encode
from mixjax.jobs import concepts
from mixjax.jobs.atlas import STANDINS, TEXT, described, ignore
from mixjax.jobs.embedding import embed_corpus
from mixjax.jobs.workdir import claim, write_whole
from mixjax.progress import Reporter

ALARM = 0.05  # a concept whose q is below this has drifted


@dataclasses.dataclass(frozen=True)
class ApplyConfig:
  """`corpus`: as in configs/atlas.py; `apply`: the workdir of a finished atlas, or its atlas/.

  `checkpoints`: a folder with the tokenizer/ and clip/ that the atlas was made with. With a
  `source` the rows are added under that name to the cells of the atlas, for trainers that read
  pixels; proxies, which read what was encoded with the atlas, refuse cells that have grown.
  """

  corpus: str
  apply: str
  checkpoints: str = ""
  seed: int = 0
  source: str = ""
  reading: str = ""
  split: str = ""
  images: str = ""
  labels: str = RULES

  @property
  def checkpoint_folder(self) -> epath.Path:
    return epath.Path(self.checkpoints) if self.checkpoints else STANDINS

  @property
  def atlas_folder(self) -> epath.Path:
    below = epath.Path(self.apply) / "atlas"
    return below if below.exists() else epath.Path(self.apply)


def main(config: dict, workdir: str) -> None:
  """The job as the front door calls it."""
  claim(workdir, config)
  reporter = Reporter()
  run(ApplyConfig(**{k: v for k, v in config.items() if k != "job"}), workdir, reporter)
  reporter.close()


def run(config: ApplyConfig, workdir: epath.PathLike, reporter: Reporter) -> dict:
  """Writes `workdir/applied/` with embeddings and concepts, and `workdir/drift.json`.

  Returns what the latter holds. Raises ValueError if the atlas belongs to another encoder.
  """
  folder = epath.Path(workdir) / "applied"
  atlas, corpus, origin = opened(config)
  index = embed_corpus(corpus, origin, config.checkpoint_folder / "clip", folder, reporter)
  if jax.process_index():
    return {}
  found, concept = place(config, atlas, epath.Path(workdir), reporter)
  if config.source:
    names = (atlas.names[int(c)] for c in concept)
    of = {"": TEXT} | dict(zip(index["images"], names, strict=True))
    _add(config, (e for e in corpus.examples(ignore) if e.image_key in of), of, reporter)
  return found


def opened(config: ApplyConfig) -> tuple[Atlas, Corpus, Origin]:
  """The atlas, the corpus, and what embeddings of it come from.

  Raises ValueError if the atlas belongs to another encoder.
  """
  atlas = Atlas.load(config.atlas_folder)
  clip = config.checkpoint_folder / "clip"
  corpus = described(config, epath.Path(config.corpus))
  origin = Origin(corpus.sha256(), shards.sha256(clip / "model.safetensors"), False)
  if atlas.encoder != origin.encoder:
    raise ValueError(
      f"the atlas in {config.atlas_folder} belongs to another encoder than {clip}: give the "
      "checkpoints that it was made with"
    )
  return atlas, corpus, origin


def place(
  config: ApplyConfig, atlas: Atlas, workdir: epath.Path, reporter: Reporter
) -> tuple[dict, Int[np.ndarray, " n"]]:
  """Writes concepts.npy beside the embeddings and `workdir/drift.json`.

  Returns what the latter holds, and the concept int32[n] of every image.
  """
  reporter.stage("apply")
  folder = workdir / "applied"
  embeddings = np.load(folder / "embeddings.npy", mmap_mode="r")
  concept, cosine = reference.place(atlas, embeddings, concepts.mesh())
  with (folder / "concepts.npy").open("wb") as file:
    np.save(file, concept)
  found = _drift(config, atlas, embeddings, concept, cosine)
  write_whole(workdir / "drift.json", json.dumps(found, indent=1))
  for line in describe(found):
    reporter.say(line)
  return found, concept


def _drift(config, atlas: Atlas, embeddings, concept, cosine) -> dict:
  old = reference.Reference.load(config.atlas_folder)
  new = reference.refer(atlas.k, embeddings, concept, cosine, config.seed)
  beyond = np.bincount(concept[cosine < old.far[concept]], minlength=atlas.k)
  rows = reference.drift(atlas, old, new, beyond, config.seed)
  return {
    "corpus": config.corpus,
    "images": len(embeddings),
    "far": float(beyond.sum() / len(embeddings)),
    "far_expected": round(1 - reference.FAR, 9),
    "test": "energy distance between samples of old and new embeddings of the concept; p by "
    "permutation, q after Benjamini and Hochberg over the concepts tested",
    "drifted": [row["concept"] for row in rows if row["q"] is not None and row["q"] < ALARM],
    "concepts": rows,
  }


def describe(found: dict) -> list[str]:
  """A line a concept, and one for all."""
  lines = ["  concept                          share old > new    cosine old > new   far      q"]
  for row in found["concepts"]:
    share, cosine = row["share"], row["cosine"]
    lines.append(
      f"  {row['concept']:30} {share['old']:8.1%} > {share['new']:6.1%}   "
      f"{_number(cosine['old'], '.3f')} > {_number(cosine['new'], '.3f')}  "
      f"{_number(row['far'], '6.1%')}  {_number(row['q'], '.4f')}"
      f"{'  drifted' if row['concept'] in found['drifted'] else ''}"
    )
  drifted, of = len(found["drifted"]), len(found["concepts"])
  return [
    *lines,
    f"  {drifted} of {of} concepts drifted; {found['far']:.1%} of {found['images']} images are "
    "farther than 99% of the atlas's own",
  ]


def _number(value: float | None, form: str) -> str:
  return "    -" if value is None else format(value, form)


def _add(
  config: ApplyConfig, rows: Iterable[Example], concept: dict[str, str], reporter: Reporter
) -> None:
  """Adds the rows to the cells of the atlas, unless a run before this one did."""
  cells = growing(config, reporter)
  if cells is None:
    return
  reporter.stage("cells")
  tokenizer = encode.load_tokenizer(config.checkpoint_folder / "tokenizer")
  manifest = shards.write_cells(
    rows,
    concept,
    cells,
    token_count=encode.Encoder(tokenizer).count,
    source=config.source,
  )
  added = manifest["sources"][-1]["rows"]
  reporter.say(f"cells: {added} rows of {config.source!r} added to {cells}")


def growing(config: ApplyConfig, reporter: Reporter) -> epath.Path | None:
  """The cells of the atlas, if the source is to be added to them; None if it was already.

  Raises ValueError where trials were run on them.
  """
  cells = config.atlas_folder / "cells"
  sources = [one["source"] for one in shards.read_manifest(cells)["sources"]]
  if config.source in sources:
    reporter.say(f"cells: {cells} has the source {config.source!r} already")
    return None
  if (config.atlas_folder.parent / "study").exists():
    raise ValueError(
      f"{cells} cannot grow, for trials were run on it: copy its atlas/ folder and give the copy"
    )
  return cells
