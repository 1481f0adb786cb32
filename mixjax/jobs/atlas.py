"""The atlas job: a corpus in, named cells and everything the proxies read out.

    rows ─► images through CLIP ─► concepts (k-means) ─► cells (TFDS) ─► tokens + features
    questions ─► features of their images

Every step writes its files whole and is skipped when they are there and fit what came before. No
step holds more in memory than a part of the images, whose names are all that is kept of the others.
"""

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable, Iterable

import jax
import numpy as np
from etils import epath

from mixjax.atlas import reference, shards
from mixjax.atlas.atlas import Atlas
from mixjax.atlas.parts import Origin
from mixjax.corpus.corpus import RULES, Corpus
from mixjax.corpus.example import Example
from mixjax.corpus.readers import Fault, detect, reading
from mixjax.data import encode
from mixjax.data.loader import encode_cells
from mixjax.evals import benchmarks
from mixjax.evals.evaluate import check_fits
from mixjax.jobs import concepts
from mixjax.jobs.embedding import embed_corpus
from mixjax.jobs.workdir import claim, write_whole
from mixjax.models import hf_config
from mixjax.models.clip_config import ClipConfig
from mixjax.progress import Reporter

STANDINS = epath.Path(__file__).parent.parent / "standins"
TEXT = "text"  # the concept of rows without pictures


@dataclasses.dataclass(frozen=True)
class AtlasConfig:
  """`corpus`: whatever the readers know, or "gallery"; `questions`: a folder with validation.json
  and benchmark.json (the gallery brings its own); `checkpoints`: a folder with tokenizer/ and
  clip/. `choose`: numbers of concepts to compare first, as in "10/20/50". `text_length`:
  places for tokens of text in a row. `reading`, `split`, `images` and `labels`: see
  configs/atlas.py.
  """

  corpus: str = "gallery"
  questions: str = ""
  checkpoints: str = ""
  concepts: int = 10
  seed: int = 0
  gallery_scale: float = 1.0
  per_benchmark: int = 150
  workers: int = 2
  choose: str = ""
  text_length: int = 48
  reading: str = ""
  split: str = ""
  images: str = ""
  labels: str = RULES

  def __post_init__(self):
    _ = self.compared

  @property
  def compared(self) -> list[int]:
    """The numbers of concepts to compare; ValueError if they are none."""
    try:
      return [int(k) for k in self.choose.split("/") if k]
    except ValueError as error:
      raise ValueError(f"choose is {self.choose!r}: give numbers, as in 10/20/50") from error

  @property
  def questions_folder(self) -> epath.Path:
    """Where a corpus of one's own is asked about; ValueError if that is not said."""
    if not self.questions:
      raise ValueError(
        "a corpus of your own needs questions=FOLDER with validation.json and benchmark.json"
      )
    return epath.Path(self.questions)

  @property
  def checkpoint_folder(self) -> epath.Path:
    return epath.Path(self.checkpoints) if self.checkpoints else STANDINS


def main(config: dict, workdir: str) -> None:
  """The job as the front door calls it."""
  claim(workdir, config)
  fields = {k: v for k, v in config.items() if k != "job"}
  reporter = Reporter()
  run(AtlasConfig(**fields), workdir, reporter)
  reporter.close()


def run(config: AtlasConfig, workdir: epath.PathLike, reporter: Reporter) -> epath.Path:
  """Builds `workdir/atlas` (and `workdir/gallery`); returns the atlas folder."""
  workdir = epath.Path(workdir)
  folder = workdir / "atlas"
  path, questions = _sources(config, workdir, reporter)
  corpus = described(config, path)
  tokenizer = encode.load_tokenizer(config.checkpoint_folder / "tokenizer")
  clip = config.checkpoint_folder / "clip"
  encoder = encode.Encoder(
    tokenizer,
    hf_config.configured(clip, "clip", ClipConfig).vision.num_patches,
    config.text_length,
    truncate=config.corpus != "gallery",
  )
  if config.corpus != "gallery":  # what is wrong is said before hours of embedding
    for asked in benchmarks.read_splits(questions).values():
      check_fits(encoder, asked)
  origin = Origin(corpus.sha256(), shards.sha256(clip / "model.safetensors"))
  index = embed_corpus(corpus, origin, clip, folder, reporter, questions)
  if jax.process_index():  # the others have embedded their parts
    return folder
  examples = functools.partial(corpus.examples, ignore)
  if config.compared:
    concepts.compare(config.compared, folder, config.seed, reporter)
  if not (folder / "atlas.json").exists():
    known = {}
    if config.corpus == "gallery":
      built = json.loads((workdir / "gallery" / "card.json").read_text())
      known = {name: built[name] for name in ("useless", "mislabelled")}
    concepts.fit(examples, folder, index, config.concepts, config.seed, known, reporter)
  atlas = Atlas.load(folder)
  _write_cells(examples, folder, atlas, index, encoder, reporter)
  return folder


def described(config, path: epath.Path) -> Corpus:
  """The corpus at `path`, read as the config says."""
  stated = {name: value for name in ("split", "images") if (value := getattr(config, name))}
  return Corpus(path, reading.load(config.reading, **stated), config.labels)


def ignore(fault: Fault) -> None:
  """What the ledger has already, from the first reading."""


def _sources(config: AtlasConfig, workdir: epath.Path, reporter: Reporter):
  """(path of the corpus, folder of the questions); builds the gallery when that is the corpus."""
  if config.corpus != "gallery":
    questions = config.questions_folder
    detect(config.corpus)
    return epath.Path(config.corpus), questions
  if config.questions:
    raise ValueError(
      "the gallery brings its own questions: questions=FOLDER is for a corpus of your own, which "
      "corpus=PATH names"
    )
  from mixjax.corpus.gallery import gallery  # what draws it is not everywhere installed

  path = workdir / "gallery"
  if not (path / "card.json").exists():
    reporter.stage("gallery")
    card = gallery.write(
      path,
      config.seed,
      config.gallery_scale,
      per_benchmark=config.per_benchmark,
      workers=config.workers,
    )
    pictures = {split: sum(counts.values()) for split, counts in card["pictures"].items()}
    reporter.say(f"gallery: {pictures} pictures of {len(gallery.DOMAINS)} domains in {path}")
  return path / "train.json", path


def refuse_grown(cells: epath.Path) -> None:
  """Raises ValueError for cells that a source was added to: the proxies have not encoded it."""
  sources = [one["source"] for one in shards.read_manifest(cells)["sources"]]
  if len(sources) > 1:
    raise ValueError(
      f"{cells} has grown by {sources[1:]}, of which there are neither features nor tokens for "
      "proxies: train on the cells themselves, or make an atlas of all sources in another workdir"
    )


def _write_cells(
  examples: Callable[[], Iterable[Example]],
  folder: epath.Path,
  atlas: Atlas,
  index: dict,
  encoder: encode.Encoder,
  reporter: Reporter,
) -> None:
  """Cells and their encoding, made again when the names in atlas.json were edited."""
  cells_folder, encoded_folder = folder / "cells", folder / "encoded"
  made = folder / "cells_of.json"
  names = {"names": list(atlas.names), "corpus_sha256": index["corpus_sha256"]}
  if made.exists():
    refuse_grown(cells_folder)
    if json.loads(made.read_text()) == names:
      return
  if (folder.parent / "study").exists():
    raise ValueError(
      f"{folder}/atlas.json was edited after trials were run on its cells: put the names back, "
      "or use another workdir for the renamed atlas"
    )
  if TEXT in atlas.names:
    raise ValueError(f"{folder}/atlas.json calls a concept {TEXT!r}, as rows without pictures are")
  reporter.stage("cells")
  for stale in (cells_folder, encoded_folder):
    if stale.exists():
      shutil.rmtree(stale)
  embeddings = np.load(folder / "embeddings.npy", mmap_mode="r")
  assigned, _ = reference.place(atlas, embeddings, concepts.mesh())
  concept = {key: atlas.names[int(c)] for key, c in zip(index["images"], assigned, strict=True)}
  concept[""] = TEXT
  rows = (e for e in examples() if e.image_key in concept)
  manifest = shards.write_cells(
    rows, concept, cells_folder, concepts=atlas.names, token_count=encoder.count
  )
  features = np.load(folder / "features.npy", mmap_mode="r")
  image_row = {key: i for i, key in enumerate(index["images"])}
  cells = shards.open_cells(cells_folder)
  encoded = encode_cells(cells, encoder, features, image_row, encoded_folder)
  write_whole(made, json.dumps(names))
  for what in ("truncated", "replaced"):
    if count := sum(cell[what] for cell in encoded.report.values()):
      reporter.say(f"cells: {count} rows were {what}; by cell in {encoded_folder / 'cells.json'}")
  unread = [name for name, n in encoded.rows.items() if n < manifest["cells"][name]["rows"]]
  if unread:
    reporter.say(
      f"cells: proxies can use no row of {', '.join(unread)}, which get no weight: "
      f"{encoded_folder / 'ledger.jsonl'} says why"
    )
  filled = sum(cell["rows"] > 0 for cell in manifest["cells"].values())
  total = sum(cell["rows"] for cell in manifest["cells"].values())
  reporter.say(f"cells: {total} rows in {filled} cells of {len(manifest['cells'])}")
