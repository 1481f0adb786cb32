"""Reads a corpus, embeds it, clusters it into named concepts and writes the cells.

  python -m mixjax.main --config=configs/atlas.py --workdir=RUN
  python -m mixjax.main --config=configs/atlas.py:corpus=train.json,questions=DIR --workdir=RUN
  python -m mixjax.main --config=configs/atlas.py:corpus=train.json,lint --workdir=RUN

The first takes the gallery and about a minute; the second a corpus of your own: a LLaVA json or
jsonl, a LLaVA-NeXT list, parquet, WebDataset, Energon or TFDS. The third builds nothing, but writes
lint.json and lint.html: what the corpus holds, and what is wrong with it.
Afterwards RUN/atlas/atlas.json holds the names: edit them there, before any search.
"""

from ml_collections import ConfigDict

from configs.common import parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
  """`checkpoints`: a folder with tokenizer/ and clip/; empty takes the gallery's stand-ins.

  `reading`: a YAML file with what the corpus cannot say about itself (split, images, fields,
  tasks); `split` and `images` (the folder that image paths are relative to) may also be given here.
  `labels`: who gives a task to rows without one, rules or classifier. To lint, `questions` is any
  folder of pictures that must not be in the corpus.
  """
  args = parse_arg(
    arg,
    corpus="gallery",
    questions="",
    checkpoints="",
    concepts=10,
    seed=0,
    tiny=False,
    lint=False,
    reading="",
    split="",
    images="",
    labels="rules",
  )
  tiny = args.pop("tiny")
  if args.pop("lint"):
    for unused in ("checkpoints", "concepts", "seed"):
      args.pop(unused)
    return ConfigDict(args | dict(job="lint", workers=2))
  return ConfigDict(
    args
    | dict(
      job="atlas", gallery_scale=0.05 if tiny else 1.0, per_benchmark=8 if tiny else 150, workers=2
    )
  )
