"""Reads a corpus, embeds it, clusters it into named concepts and writes the cells.

  python -m mixjax.main --config=configs/atlas.py --workdir=RUN
  python -m mixjax.main --config=configs/atlas.py:corpus=train.json,questions=DIR --workdir=RUN

The first takes the gallery and about a minute; the second a corpus of your own.
Afterwards RUN/atlas/atlas.json holds the names: edit them there, before any search.
"""

from ml_collections import ConfigDict

from configs.common import parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
  """`checkpoints`: a folder with tokenizer/ and clip/; empty takes the gallery's stand-ins."""
  args = parse_arg(
    arg, corpus="gallery", questions="", checkpoints="", concepts=10, seed=0, tiny=False
  )
  tiny = args.pop("tiny")
  return ConfigDict(
    args
    | dict(
      job="atlas", gallery_scale=0.05 if tiny else 1.0, per_benchmark=8 if tiny else 150, workers=2
    )
  )
