"""The atlas job: a corpus in, named cells and everything the proxies read out.

    rows ─► images through CLIP ─► concepts (k-means) ─► cells (TFDS) ─► tokens + features
    questions ─► features of their images

Every step writes its files whole and is skipped when they are there and fit what came before.
"""

import dataclasses
import json
import shutil
from collections.abc import Sequence

import numpy as np
from etils import epath

from mixjax.atlas import embed, shards
from mixjax.atlas.atlas import Atlas, agreement, contact_sheet
from mixjax.corpus.corpus import RULES, Corpus
from mixjax.corpus.gallery import gallery
from mixjax.corpus.readers import Fault, reading
from mixjax.data import encode
from mixjax.data.loader import encode_cells
from mixjax.evals import benchmarks
from mixjax.jobs.workdir import claim, write_whole
from mixjax.models import hf
from mixjax.progress import Reporter

STANDINS = epath.Path(__file__).parent.parent / "standins"
SHEET_IMAGES = 48  # images on a concept's contact sheet


@dataclasses.dataclass(frozen=True)
class AtlasConfig:
  """`corpus`: whatever the readers know, or "gallery"; `questions`: a folder with validation.json
  and benchmark.json (the gallery brings its own); `checkpoints`: a folder with tokenizer/ and
  clip/. `reading`, `split`, `images` and `labels`: see configs/atlas.py.
  """

  corpus: str = "gallery"
  questions: str = ""
  checkpoints: str = ""
  concepts: int = 10
  seed: int = 0
  gallery_scale: float = 1.0
  per_benchmark: int = 150
  workers: int = 2
  reading: str = ""
  split: str = ""
  images: str = ""
  labels: str = RULES

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
  stated = {name: value for name in ("split", "images") if (value := getattr(config, name))}
  corpus = Corpus(path, reading.load(config.reading, **stated), config.labels)
  tokenizer = encode.load_tokenizer(config.checkpoint_folder / "tokenizer")
  encoder = encode.Encoder(tokenizer)
  if not (folder / "embedded.json").exists():
    _embed_all(config, corpus, questions, folder, reporter)
  index = json.loads((folder / "embedded.json").read_text())
  if not (folder / "atlas.json").exists():
    _fit(config, corpus, folder, index, reporter)
  atlas = Atlas.load(folder)
  _write_cells(corpus, folder, atlas, index, encoder, reporter)
  return folder


def _sources(config: AtlasConfig, workdir: epath.Path, reporter: Reporter):
  """(path of the corpus, folder of the questions); builds the gallery when that is the corpus."""
  if config.corpus != "gallery":
    if not config.questions:
      raise ValueError(
        "a corpus of your own needs questions=FOLDER with validation.json and benchmark.json"
      )
    return epath.Path(config.corpus), epath.Path(config.questions)
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


def _embed_all(config, corpus, questions, folder: epath.Path, reporter: Reporter) -> None:
  """Embeddings and features of every corpus image, features of every question's image."""
  clip = hf.load_clip(config.checkpoint_folder / "clip")
  size = clip.config.vision.image_size
  images, keys, bad = [], [], {}
  domains: dict[str, str] = {}
  reporter.stage("embed")
  unread: list[Fault] = []
  text_alone = 0
  for example in corpus.examples(unread.append):
    text_alone += not example.images
    if not example.images or example.image_key in domains:
      continue
    domains[example.image_key] = example.domain
    try:
      images.append(embed.decode(example.image, size))
      keys.append(example.image_key)
    except embed.UnreadableImage as error:
      bad[example.image_key] = str(error)
  if not keys:
    raise ValueError(f"{corpus.path} has no readable image")
  embeddings, features = embed.embed(clip, images)
  folder.mkdir(parents=True, exist_ok=True)
  np.save(folder / "embeddings.npy", embeddings)
  np.save(folder / "features.npy", features)
  (folder / "questions").mkdir(exist_ok=True)
  for split in ("validation", "benchmark"):
    asked = benchmarks.read(questions / f"{split}.json")
    names = sorted({q.image for q in asked})
    pixels = []
    for name in names:
      try:
        pixels.append(embed.decode((questions / name).read_bytes(), size))
      except (embed.UnreadableImage, OSError) as error:
        raise ValueError(
          f"image {name} of the {split} questions cannot be read: {error}"
        ) from error
    np.save(folder / "questions" / f"{split}_features.npy", embed.embed(clip, pixels)[1])
    write_whole(folder / "questions" / f"{split}_images.json", json.dumps(names))
    write_whole(folder / "questions" / f"{split}.json", (questions / f"{split}.json").read_text())
  left_out = [{"image": key, "error": error} for key, error in bad.items()]
  left_out += [{"row": f.where, "error": f"{f.kind}: {f.detail}"} for f in unread]
  write_whole(
    folder / "ledger.jsonl",
    "".join(json.dumps(entry | {"action": "left out"}) + "\n" for entry in left_out),
  )
  if text_alone:
    reporter.say(f"{text_alone} rows are text alone: they have no concept and are in no cell")
  if left_out:
    reporter.say(
      f"{len(bad)} images and {len(unread)} rows cannot be read and were left out: "
      f"{folder / 'ledger.jsonl'}"
    )
  index = {
    "corpus_sha256": corpus.sha256(),
    "encoder": shards.sha256(config.checkpoint_folder / "clip" / "model.safetensors"),
    "images": keys,
    "domains": [domains[k] for k in keys],
    "unreadable": sorted(bad),
  }
  write_whole(folder / "embedded.json", json.dumps(index))


def _ignore(fault: Fault) -> None:
  """What the ledger has already."""


def _fit(config, corpus, folder: epath.Path, index: dict, reporter: Reporter) -> None:
  """k-means, names and the atlas card with a contact sheet a concept."""
  reporter.stage("atlas")
  embeddings = np.load(folder / "embeddings.npy")
  row = {key: i for i, key in enumerate(index["images"])}
  captions, pngs = [""] * len(row), [b""] * len(row)
  for example in corpus.examples(_ignore):
    i = row.get(example.image_key)
    if i is not None and (example.task == "caption" or not captions[i]):
      captions[i], pngs[i] = example.answer, example.image
  atlas = Atlas.fit(embeddings, captions, config.concepts, config.seed, encoder=index["encoder"])
  assigned = atlas.assign(embeddings)
  rng = np.random.default_rng(config.seed)
  (folder / "sheets").mkdir(exist_ok=True)
  size = 72
  for c in range(atlas.k):
    members = np.flatnonzero(assigned == c)
    shown = rng.permutation(members)[:SHEET_IMAGES]
    sheet = contact_sheet([embed.decode(pngs[i], size) for i in shown], columns=12)
    (folder / "sheets" / f"{c:02d}.png").write_bytes(sheet)
  known = all(index["domains"])
  card = {
    "concepts": {n: int((assigned == c).sum()) for c, n in enumerate(atlas.names)},
    "nmi_with_true_domains": agreement(assigned, index["domains"]) if known else None,
    "domains": _crosstab(assigned, index["domains"], atlas.names) if known else None,
    "unreadable_images": len(index["unreadable"]),
  }
  gallery_card = folder.parent / "gallery" / "card.json"
  if config.corpus == "gallery":
    built = json.loads(gallery_card.read_text())
    card |= {k: built[k] for k in ("useless", "mislabelled")}
  write_whole(folder / "card.json", json.dumps(card, indent=1))
  atlas.save(folder)
  for name, count in card["concepts"].items():
    reporter.say(f"  {name:32} {count:6} images")
  if known:
    reporter.say(f"  agreement with the true domains: NMI {card['nmi_with_true_domains']:.2f}")


def _crosstab(assigned, domains: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, int]]:
  table: dict[str, dict[str, int]] = {name: {} for name in names}
  for c, domain in zip(assigned, domains, strict=True):
    mine = table[names[int(c)]]
    mine[domain] = mine.get(domain, 0) + 1
  return table


def _write_cells(corpus, folder, atlas: Atlas, index: dict, encoder, reporter: Reporter) -> None:
  """Cells and their encoding, made again when the names in atlas.json were edited."""
  cells_folder, encoded_folder = folder / "cells", folder / "encoded"
  made = folder / "cells_of.json"
  names = {"names": list(atlas.names), "corpus_sha256": index["corpus_sha256"]}
  if made.exists() and json.loads(made.read_text()) == names:
    return
  if (folder.parent / "study").exists():
    raise ValueError(
      f"{folder}/atlas.json was edited after trials were run on its cells: put the names back, "
      "or use another workdir for the renamed atlas"
    )
  reporter.stage("cells")
  for stale in (cells_folder, encoded_folder):
    if stale.exists():
      shutil.rmtree(stale)
  assigned = atlas.assign(np.load(folder / "embeddings.npy"))
  concept = {key: atlas.names[int(c)] for key, c in zip(index["images"], assigned, strict=True)}
  rows = (e for e in corpus.examples(_ignore) if e.image_key in concept)
  manifest = shards.write_cells(
    rows, concept, cells_folder, concepts=atlas.names, token_count=encoder.count
  )
  features = np.load(folder / "features.npy", mmap_mode="r")
  image_row = {key: i for i, key in enumerate(index["images"])}
  encode_cells(shards.open_cells(cells_folder), encoder, features, image_row, encoded_folder)
  write_whole(made, json.dumps(names))
  filled = sum(cell["rows"] > 0 for cell in manifest["cells"].values())
  total = sum(cell["rows"] for cell in manifest["cells"].values())
  reporter.say(f"cells: {total} rows in {filled} cells of {len(manifest['cells'])}")
