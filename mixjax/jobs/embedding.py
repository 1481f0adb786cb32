"""The atlas job's first step: all images of the corpus and of the questions through CLIP."""

import json
import shutil
from collections.abc import Sequence

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from mixjax.atlas import embed, parts
from mixjax.corpus.corpus import Corpus
from mixjax.corpus.pixels import BadPicture
from mixjax.corpus.readers import Fault
from mixjax.evals import benchmarks
from mixjax.jobs.workdir import write_whole
from mixjax.models import hf
from mixjax.progress import Reporter

INDEX = "embedded.json"


def embed_corpus(
  corpus: Corpus,
  origin: parts.Origin,
  clip: epath.Path,
  folder: epath.Path,
  reporter: Reporter,
  questions: epath.Path | None = None,
) -> dict:
  """Embeddings and features of every image, unless they are there; returns what INDEX holds.

  Every host embeds its parts of the images and the first one joins them; what was finished before a
  kill is not embedded again. INDEX is written last.

  Args:
    corpus: the rows; what of them cannot be read goes into `folder/ledger.jsonl`.
    origin: hashes of the corpus and of the tower.
    clip: folder of the tower.
    folder: where everything is written.
    reporter: what is said.
    questions: folder of validation.json and benchmark.json, whose images are embedded as well.

  Raises:
    ValueError: no image can be read, or one of the questions' cannot; or what is there was made
      from another corpus, another tower or other questions.
  """
  if not (folder / INDEX).exists():
    reporter.stage("embed")
    embedder = embed.Embedder(hf.load_clip(clip))
    host, hosts = jax.process_index(), jax.process_count()
    unread: list[Fault] = []
    rows = corpus.examples(unread.append)
    names = parts.write(
      embedder, rows, folder / "parts", origin, process_index=host, process_count=hosts
    )
    _wait("parts")
    if host == 0:
      if questions is not None:
        _embed_questions(embedder, questions, folder / "questions")
      join(corpus, names, origin, folder, unread, reporter)
    _wait(INDEX)
  index = read_index(folder, origin)
  if questions is not None:
    _check_questions(questions, folder / "questions")
  return index


def join(
  corpus: Corpus,
  names: Sequence[str],
  origin: parts.Origin,
  folder: epath.Path,
  unread: Sequence[Fault],
  reporter: Reporter,
) -> None:
  """Joins the parts under `folder/parts`, and writes the ledger and INDEX.

  Raises ValueError where no image could be read, or a part is not there.
  """
  card = parts.join(folder / "parts", names, origin, folder)
  if not card.images:
    raise ValueError(f"{corpus.path} has no readable image")
  _keep_ledger(card, unread, folder, reporter)
  write_whole(folder / INDEX, json.dumps(_index(card)))
  shutil.rmtree(folder / "parts")


def read_index(folder: epath.Path, origin: parts.Origin) -> dict:
  """What INDEX holds. Raises ValueError if it was made from another corpus or another tower."""
  index = json.loads((folder / INDEX).read_text())
  for what, name, now in (
    ("corpus", "corpus_sha256", origin.corpus),
    ("tower", "encoder", origin.encoder),
  ):
    if index[name] != now:
      raise ValueError(
        f"{folder} was made from another {what}: the one given now has changed since; put it back, "
        "or use another --workdir"
      )
  return index


def _wait(where: str) -> None:
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(where)


def _index(card: parts.Card) -> dict:
  return {
    "corpus_sha256": card.origin.corpus,
    "encoder": card.origin.encoder,
    "images": card.images,
    "domains": card.domains,
    "unreadable": sorted(card.unreadable),
  }


def _embed_questions(embedder: embed.Embedder, questions: epath.Path, folder: epath.Path) -> None:
  """Features of every question's image, and the questions themselves."""
  folder.mkdir(parents=True, exist_ok=True)
  for split, asked in benchmarks.read_splits(questions).items():
    names = sorted({q.image for q in asked})
    pixels = []
    for name in names:
      try:
        pixels.append(embed.decode((questions / name).read_bytes(), embedder.size))
      except (BadPicture, OSError) as error:
        raise ValueError(
          f"image {name} of the {split} questions cannot be read: {error}"
        ) from error
    np.save(folder / f"{split}_features.npy", embedder(pixels)[1])
    write_whole(folder / f"{split}_images.json", json.dumps(names))
    write_whole(folder / f"{split}.json", (questions / f"{split}.json").read_text())


def _check_questions(questions: epath.Path, folder: epath.Path) -> None:
  """Raises ValueError if what was embedded is not what is asked now."""
  for split in benchmarks.SPLITS:
    name = f"{split}.json"
    if json.loads((folder / name).read_text()) != json.loads((questions / name).read_text()):
      raise ValueError(
        f"{folder / name} was made from other questions: {questions / name} has changed since; "
        "put it back, or use another --workdir"
      )


def _keep_ledger(
  card: parts.Card, unread: Sequence[Fault], folder: epath.Path, reporter: Reporter
) -> None:
  left_out = [{"image": key, "error": error} for key, error in card.unreadable.items()]
  left_out += [{"row": f.where, "error": f"{f.kind}: {f.detail}"} for f in unread]
  lines = (json.dumps(entry | {"action": "left out"}) + "\n" for entry in left_out)
  write_whole(folder / "ledger.jsonl", "".join(lines))
  if left_out:
    reporter.say(
      f"{len(card.unreadable)} images and {len(unread)} rows cannot be read and were left out: "
      f"{folder / 'ledger.jsonl'}"
    )
