"""A finished atlas on a new corpus, by as many workers as there are.

    parts of the corpus ─► listings ─► pieces of new pictures ─► embeddings ─► concepts, drift.json
                                                              cells, by TFDS's own Beam writer ◄─┘

Workers do what the arrows stand for; this process adds up, and holds no more than the names of the
pictures and some numbers a row. Embeddings, drift and cells come in the files of `jobs.apply`.
What a killed run had finished of listings and embeddings is not done again.
"""

import dataclasses
import json
import shutil

import numpy as np
from etils import epath
from jaxtyping import Int

from mixjax.atlas import parts, shards
from mixjax.atlas.addition import adding
from mixjax.atlas.atlas import Atlas
from mixjax.corpus.corpus import Corpus
from mixjax.corpus.tasks import TASKS
from mixjax.jobs import apply, embedding
from mixjax.jobs.apply import ApplyConfig
from mixjax.jobs.atlas import TEXT
from mixjax.jobs.beam import cells as cells_lib
from mixjax.jobs.beam.embedding import Embed, pieces
from mixjax.jobs.beam.rows import Found, List, Shared, share
from mixjax.jobs.beam.workers import Workers
from mixjax.jobs.workdir import write_whole
from mixjax.progress import Reporter


def run(config: ApplyConfig, workers: Workers, workdir: epath.PathLike, reporter: Reporter) -> dict:
  """As `jobs.apply.run`; without a `source` the rows go into `workdir/cells`."""
  workdir = epath.Path(workdir)
  folder, scratch = workdir / "applied", workdir / "beam"
  atlas, corpus, origin = apply.opened(config)
  target = workdir / "cells"
  if config.source:
    target = apply.growing(config, reporter)
  elif target.exists():
    reporter.say(f"cells: {target} is there already")
    target = None
  embedded = (folder / embedding.INDEX).exists()
  if target is not None or not embedded:
    shared, found = _listed(corpus, origin, workers, scratch, reporter)
  if not embedded:
    reporter.stage("embed")
    cut = pieces(found, shared, parts.SIZE)
    clip = config.checkpoint_folder / "clip"
    workers.each("embed", Embed(shared, clip, folder / "parts", origin), cut)
    names = [piece.name for piece in cut]
    embedding.join(corpus, names, origin, folder, found.faults, reporter)
  index = embedding.read_index(folder, origin)
  drift, concept = apply.place(config, atlas, workdir, reporter)
  if target is not None:
    reporter.stage("cells")
    names, cell = _cells(atlas, found, index["unreadable"], concept)
    with adding(target, "train", shards.features(), atlas.names, config.source) as addition:
      tokenizer = config.checkpoint_folder / "tokenizer"
      cells_lib.write(addition, workers, shared, found, names, cell, tokenizer)
    added = addition.manifest["sources"][-1]["rows"]
    reporter.say(f"cells: {added} rows in {len(names)} cells of {target}")
  if scratch.exists():
    shutil.rmtree(scratch)
  return drift


def _listed(
  corpus: Corpus, origin: parts.Origin, workers: Workers, scratch: epath.Path, reporter: Reporter
) -> tuple[Shared, Found]:
  """The listings of all parts, of which those that are there are kept."""
  known, now = scratch / "origin.json", dataclasses.asdict(origin)
  if known.exists() and json.loads(known.read_text()) != now:
    raise ValueError(
      f"{scratch} was made from another corpus or another tower: put it back, or use another "
      "--workdir"
    )
  write_whole(known, json.dumps(now))
  reporter.stage("list")
  shared, count = share(corpus, scratch)
  missing = [part for part in range(count) if not shared.listing(part).exists()]
  workers.each("list", List(shared), missing)
  found = Found.gather(shared, count)
  reporter.say(f"list: {len(found.image)} rows of {len(found.images)} pictures in {count} parts")
  return shared, found


def _cells(
  atlas: Atlas, found: Found, unreadable: list[str], concept: Int[np.ndarray, " i"]
) -> tuple[list[str], Int[np.ndarray, " n"]]:
  """The names of cells with rows, and each row's place among them; -1 where its picture is broken.

  `concept` is that of every readable picture in their order.
  """
  left_out = set(unreadable)
  readable = np.array([name not in left_out for name in found.images], bool)
  of = np.full(len(readable) + 1, -1)
  of[:-1][readable] = concept
  of[-1] = atlas.k  # text alone, whose picture is -1
  of = of[found.image]
  both = np.where(of < 0, -1, of * len(TASKS) + found.task)
  used, cell = np.unique(both, return_inverse=True)
  skipped = int(used[0] < 0)
  concepts = (*atlas.names, TEXT)
  names = [f"{concepts[c // len(TASKS)]}/{TASKS[c % len(TASKS)]}" for c in used[skipped:]]
  return names, (cell - skipped).astype(np.int32)
