"""What lint and the task labels get right on the gallery, where the truth is known.

  python tests/benchmarks/corpora_bench.py RUN/gallery

RUN is the workdir of any job that has built the gallery, as configs/atlas.py does. Look-alikes: how
many pictures are found again that were saved anew, and how many of the benchmark's, which share no
source with the rows, are matched all the same. Tasks: how many rows rules and classifier label as
they are, and how many where the prompts are blank. About two minutes on one core.
"""

import argparse
import dataclasses
import io
import pathlib
import sys

import numpy as np
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from mixjax.corpus import readers, task_classifier, task_rules
from mixjax.corpus.example import Turn
from mixjax.corpus.lint import lookalike, picture


def saved_again(data: bytes) -> dict[str, bytes]:
  """The picture as others may have it."""
  found, image = {}, Image.open(io.BytesIO(data)).convert("RGB")
  half = image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC)
  for name, one, kind in (("JPEG of quality 40", image, "JPEG"), ("half the size", half, "PNG")):
    file = io.BytesIO()
    one.save(file, kind, quality=40)
    found[name] = file.getvalue()
  return found


def distance(one: picture.Facts, other: picture.Facts) -> int:
  """Bits in which what they look like differs."""
  return sum((a ^ b).bit_count() for a, b in zip(one.looks, other.looks, strict=True))


def looks(folder: pathlib.Path) -> tuple[np.ndarray, list[bytes], int]:
  """Hashes of the pictures that are not plain, their bytes, and how many there are in all."""
  files = [path.read_bytes() for path in sorted(folder.glob("*.png"))]
  facts = [picture.inspect(data)[0] for data in files]
  kept = [i for i, one in enumerate(facts) if not one.plain]
  hashes = np.array([facts[i].looks for i in kept], np.uint64)
  return hashes, [files[i] for i in kept], len(files)


def print_lookalikes(gallery: pathlib.Path) -> None:
  ours, files, _ = looks(gallery / "train")
  near: dict[str, int] = {}
  for data in files:
    before, _ = picture.inspect(data)
    for name, again in saved_again(data).items():
      after, _ = picture.inspect(again)
      near[name] = near.get(name, 0) + (distance(before, after) <= lookalike.BOUND)
  for name, count in near.items():
    print(f"look-alikes: {count / len(files):.1%} of {len(files)} pictures found at {name}")
  theirs, _, asked = looks(gallery / "benchmark")
  matched = np.unique(lookalike.matches(theirs, ours)[0])
  print(f"look-alikes: {len(matched)} of {asked} benchmark pictures match a training one")


def print_tasks(gallery: pathlib.Path) -> None:
  rows = [
    task_classifier.without_pictures(example) for example in readers.read(gallery / "train.json")
  ]
  for prompts in ("as they are", "blank"):
    if prompts == "blank":
      blank = [tuple(Turn("", turn.answer) for turn in row.turns) for row in rows]
      rows = [dataclasses.replace(row, turns=t) for row, t in zip(rows, blank, strict=True)]
    right = np.mean([task_rules.label(row.turns, True)[0] == row.task for row in rows])
    _, found = task_classifier.train(rows)
    answered = 1 - found.abstains
    print(
      f"tasks of {len(rows)} rows, prompts {prompts}: rules are right on {right:.1%}; the "
      f"classifier answers {answered:.1%} of {found.rows} held out, {found.classifier:.1%} rightly"
    )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("gallery", type=pathlib.Path)
  gallery = parser.parse_args().gallery
  print_tasks(gallery)
  print_lookalikes(gallery)


if __name__ == "__main__":
  main()
