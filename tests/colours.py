"""Noisy colours as a corpus, a tower that sees nothing but colours, and an atlas of them."""

import io
import json

import numpy as np
from etils import epath
from PIL import Image

from mixjax.atlas import embed, parts, shards
from mixjax.atlas.atlas import Atlas
from mixjax.corpus.corpus import Corpus
from mixjax.jobs import concepts, embedding
from mixjax.jobs.atlas import STANDINS
from mixjax.progress import Reporter

COLOURS = {"red": (200, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 200)}


class Tower:
  """Stands in for CLIP: an image's mean colour, as a direction."""

  size = 8

  def __init__(self, clip):
    pass

  def __call__(self, images):
    x = np.stack(images).astype(np.float32).mean(axis=(1, 2))
    return x / np.linalg.norm(x, axis=1, keepdims=True), np.zeros((len(x), 2, 3), np.float16)


def write_corpus(folder, seed, sizes, tint=0):
  """A LLaVA json of noisy colours; `tint` makes the blue ones greener."""
  rng, rows = np.random.default_rng(seed), []
  for (name, colour), size in zip(COLOURS.items(), sizes, strict=True):
    for i in range(size):
      shift = tint * np.array([0, 1, 0]) if name == "blue" else 0
      pixels = np.clip(np.array(colour) + shift + rng.normal(0, 12, 3), 0, 255).astype(np.uint8)
      buffer = io.BytesIO()
      Image.fromarray(np.broadcast_to(pixels, (8, 8, 3)).copy()).save(buffer, "PNG")
      (folder / f"{name}{i}.png").write_bytes(buffer.getvalue())
      said = [("human", "<image>\nDescribe it."), ("gpt", f"a {name} colour, plain {name}")]
      row = {"id": f"{name}{i}", "image": f"{name}{i}.png", "task": "caption"}
      rows.append(row | {"conversations": [{"from": who, "value": text} for who, text in said]})
  (folder / "train.json").write_text(json.dumps(rows))
  return folder / "train.json"


def see_colours(monkeypatch):
  """Puts the tower of colours in CLIP's place."""
  monkeypatch.setattr(embed, "Embedder", Tower)
  monkeypatch.setattr(embedding.hf, "load_clip", lambda folder: None)


def write_atlas(tmp_path):
  """The workdir of a finished atlas of three colours."""
  (tmp_path / "old").mkdir()
  corpus = Corpus(epath.Path(write_corpus(tmp_path / "old", 0, (60, 50, 40))))
  folder = epath.Path(tmp_path) / "run" / "atlas"
  clip = STANDINS / "clip"
  origin = parts.Origin(corpus.sha256(), shards.sha256(clip / "model.safetensors"))
  index = embedding.embed_corpus(corpus, origin, clip, folder, Reporter())
  concepts.compare([2, 3], folder, 0, Reporter())
  concepts.fit(corpus.examples, folder, index, 3, 0, {"extra": 1}, Reporter())
  names, found = Atlas.load(folder), np.load(folder / "embeddings.npy")
  of = dict(zip(index["images"], map(names.names.__getitem__, names.assign(found)), strict=True))
  shards.write_cells(corpus.examples(), of, folder / "cells", concepts=names.names)
  return tmp_path / "run"
