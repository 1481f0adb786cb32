"""The embedded corpus: real visual domains under five tasks, written as LLaVA json beside an image
folder.

Flow: each domain's raw material is dealt to four splits that share none of it; pictures are
rendered from it; every picture becomes a row per task (VQA: two questions); some cells are made
useless or mislabelled, as in any real corpus. The benchmarks show fonts, layouts, composites and
ranges that no training cell holds, on sources that no training cell holds, and one asks what none
of them asks.
"""

import concurrent.futures
import dataclasses
import hashlib
import io
import json
import multiprocessing
import zlib
from collections.abc import Iterator

import numpy as np
from etils import epath
from PIL import Image

from mixjax.corpus import tasks
from mixjax.corpus.gallery import (
  ask,
  charts,
  chess_boards,
  code,
  documents,
  emoji,
  formulae,
  handwriting,
  molecules,
  photos,
  relief,
  satellite,
)
from mixjax.corpus.gallery.picture import Domain, Picture

DOMAINS: dict[str, Domain] = {
  m.DOMAIN.name: m.DOMAIN
  for m in (
    photos, emoji, satellite, relief, molecules, documents, chess_boards, charts, code, formulae,
    handwriting,
  )
}  # fmt: skip

# What share of a domain's raw material each split gets. `pretrain` feeds the stand-ins for
# pretrained checkpoints, `validation` the search's scores, `benchmark` the final table.
SHARES = {"pretrain": 0.4, "train": 0.3, "validation": 0.12, "benchmark": 0.18}

# Training pictures a domain: as skewed as a web corpus, with most pictures where least is asked.
TRAIN_PICTURES = {
  "photos": 1200, "emoji": 1000, "satellite": 800, "relief": 500, "molecules": 400,
  "documents": 300, "chess": 260, "charts": 220, "code": 180, "formulae": 160, "handwriting": 140,
}  # fmt: skip

# VQA rows a picture; which of its questions they ask is left to chance.
QUESTIONS = 2

# Labels of another picture of the same domain: (domain, task) -> share of its rows.
MISLABELLED = {
  ("emoji", "detection"): 1.0,
  ("molecules", "grounded"): 1.0,
  ("charts", "detection"): 1.0,
  ("documents", "grounded"): 1.0,
  ("chess", "caption"): 1.0,
  ("code", "detection"): 1.0,
  ("satellite", "vqa"): 0.5,
}

# Cells that hold nothing to learn: the answer is always "no text".
USELESS = tuple((d, "ocr") for d in ("photos", "emoji", "satellite", "relief", "chess"))


@dataclasses.dataclass(frozen=True)
class Rendered:
  """A picture of one split: `name` is its place in the image folder."""

  name: str
  domain: str
  picture: Picture
  png: bytes


def split_sources(domain: Domain) -> dict[str, list[str]]:
  """Deals the raw material to the splits by a stable hash: exact shares, and no source in two."""
  sources = sorted(
    domain.sources(), key=lambda s: hashlib.sha256(f"{domain.name}:{s}".encode()).digest()
  )
  if len(set(sources)) != len(sources):
    raise ValueError(f"domain {domain.name} lists a source twice")
  edges = np.round(np.cumsum([0, *SHARES.values()]) * len(sources)).astype(int)
  return {split: sources[a:b] for split, a, b in zip(SHARES, edges[:-1], edges[1:], strict=True)}


def render(domain_name: str, split: str, count: int, seed: int) -> list[Rendered]:
  """`count` pictures of a domain and split, sources in turn. Same arguments, same bytes."""
  domain = DOMAINS[domain_name]
  sources = split_sources(domain)[split]
  rendered = []
  for i in range(count):
    # Like the web that CLIP has seen, the pretrain split holds every style; the training cells do
    # not.
    held_out = split in ("validation", "benchmark") or (split == "pretrain" and i % 2 == 1)
    source = sources[i % len(sources)]
    entropy = zlib.crc32(f"{domain_name}:{split}:{source}".encode())
    rng = np.random.default_rng([seed, entropy, i // len(sources)])
    picture = domain.render(source, rng, held_out)
    png = io.BytesIO()
    Image.fromarray(picture.image).save(png, "PNG", compress_level=1)
    rendered.append(
      Rendered(f"{split}/{domain_name}-{i:05d}.png", domain_name, picture, png.getvalue())
    )
  return rendered


def render_all(counts: dict[str, int], split: str, seed: int, workers: int) -> list[Rendered]:
  """Every domain of a split, in parallel; the order does not depend on `workers`."""
  if workers == 0:
    return [r for name, count in counts.items() for r in render(name, split, count, seed)]
  context = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
    parts = [pool.submit(render, name, split, count, seed) for name, count in counts.items()]
    return [r for part in parts for r in part.result()]


def answers(picture: Picture) -> Iterator[tuple[str, str, str]]:
  """(task, prompt, answer) of every row that a picture can give.

  What breadth asks, and which caption fits, is left to the benchmarks alone.
  """
  yield tasks.CAPTION, tasks.PROMPTS[tasks.CAPTION], picture.caption
  yield tasks.OCR, tasks.PROMPTS[tasks.OCR], picture.text or tasks.NO_TEXT
  yield tasks.GROUNDED, tasks.PROMPTS[tasks.GROUNDED], picture.grounded
  yield tasks.DETECTION, tasks.PROMPTS[tasks.DETECTION], picture.detection
  for question, answer in picture.questions:
    yield tasks.VQA, question, answer
  for probe in picture.probes:
    if probe.benchmark != "breadth" and probe.prompt != ask.CAPTION_QUESTION:
      yield tasks.VQA, probe.prompt, probe.answer


def rows(rendered: list[Rendered], seed: int, mislabel: bool) -> list[dict]:
  """LLaVA rows of a split. Where a cell is mislabelled, its answers come from other pictures."""
  out = []
  for r in rendered:
    found = list(answers(r.picture))
    asked = [i for i, (task, _, _) in enumerate(found) if task == tasks.VQA]
    rng = np.random.default_rng([seed, zlib.crc32(r.name.encode())])
    skipped = set(rng.permutation(asked)[QUESTIONS:])
    for i, (task, prompt, answer) in enumerate(found):
      if i in skipped:
        continue
      out.append({
        "id": f"{r.name.removesuffix('.png')}/{task}{i}",
        "image": r.name,
        "conversations": [
          {"from": "human", "value": f"<image>\n{prompt}"},
          {"from": "gpt", "value": answer},
        ],
        "task": task,
        "domain": r.domain,
      })  # fmt: skip
  if mislabel:
    for (domain, task), share in MISLABELLED.items():
      cell = [row for row in out if (row["domain"], row["task"]) == (domain, task)]
      rng = np.random.default_rng([seed, zlib.crc32(f"{domain}/{task}".encode())])
      chosen = rng.permutation(len(cell))[: round(share * len(cell))]
      # A rotation gives every chosen row the answer of another row to, for VQA, the same question.
      groups: dict[str, list[int]] = {}
      for i in chosen:
        groups.setdefault(cell[i]["conversations"][0]["value"], []).append(i)
      for members in groups.values():
        said = [cell[i]["conversations"][1]["value"] for i in members]
        for i, answer in zip(members, said[1:] + said[:1], strict=True):
          cell[i]["conversations"][1]["value"] = answer
  return out


def probes(rendered: list[Rendered], per_benchmark: int, seed: int) -> list[dict]:
  """Benchmark questions, at most `per_benchmark` each, drawn evenly over the pictures."""
  found: dict[str, list[dict]] = {}
  for r in rendered:
    for i, p in enumerate(r.picture.probes):
      found.setdefault(p.benchmark, []).append({
        "id": f"{r.name.removesuffix('.png')}/{i}", "benchmark": p.benchmark, "image": r.name,
        "prompt": p.prompt, "answer": p.answer, "choices": list(p.choices), "domain": r.domain,
      })  # fmt: skip
  kept = []
  for name in sorted(found):
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    chosen = np.sort(rng.permutation(len(found[name]))[:per_benchmark])
    kept += [found[name][i] for i in chosen]
  return kept


def write(
  folder: epath.PathLike,
  seed: int = 0,
  scale: float = 1.0,
  per_benchmark: int = 150,
  workers: int = 2,
) -> dict:
  """Builds the gallery: `train.json`, `validation.json`, `benchmark.json`, images and a card.

  `scale` multiplies the training pictures; the benchmarks have `per_benchmark` questions each, in
  each of the two held-out splits. Returns the card: counts a domain, which cells are
  useless or mislabelled, and a checksum over everything written. Kill-safe: the card is last.
  """
  folder = epath.Path(folder)
  card_path = folder / "card.json"
  if card_path.exists():
    return json.loads(card_path.read_text())
  digest = hashlib.sha256()
  pictures: dict[str, dict[str, int]] = {}

  def save(name: str, rendered: list[Rendered], records: list[dict]):
    for r in rendered:
      path = folder / r.name
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(r.png)
      digest.update(r.png)
    text = json.dumps(records, indent=0)
    digest.update(text.encode())
    (folder / f"{name}.json").write_text(text)

  train_counts = {d: max(1, round(n * scale)) for d, n in TRAIN_PICTURES.items()}
  train = render_all(train_counts, "train", seed, workers)
  save("train", train, rows(train, seed, mislabel=True))
  pictures["train"] = train_counts
  for split in ("validation", "benchmark"):
    # A picture gives two or three questions, and each benchmark draws on several domains.
    pictures[split] = dict.fromkeys(DOMAINS, max(8, round(0.8 * per_benchmark)))
    rendered = render_all(pictures[split], split, seed, workers)
    records = probes(rendered, per_benchmark, seed)
    used = {record["image"] for record in records}
    save(split, [r for r in rendered if r.name in used], records)
  card = {
    "format": 1, "seed": seed, "pictures": pictures,
    "useless": [f"{d}/{t}" for d, t in USELESS],
    "mislabelled": {f"{d}/{t}": share for (d, t), share in MISLABELLED.items()},
    "sha256": digest.hexdigest(),
  }  # fmt: skip
  partial = folder / "card.json.partial"
  partial.write_text(json.dumps(card, indent=1))
  partial.replace(card_path)
  return card
