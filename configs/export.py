"""Writes a recipe in the format of another trainer.

  python -m mixjax.main \
    --config=configs/export.py:recipe=RUN/recipe.json,cells=RUN/atlas/cells,to=maxtext --workdir=OUT

Seconds. `to` is maxtext, energon, streaming (MosaicML's), llava_next, hugging_face, levanter or
olmix. OUT gets the trainer's file, and beside it FILE.about.json: what its numbers are shares of,
which cells were left out, and what that trainer will not do as the recipe says.
`to=olmix,study=RUN/study` writes the study behind the recipe, as ratios.csv and metrics.csv.
"""

from ml_collections import ConfigDict

from configs.common import parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
  """`recipe`: a recipe, any {cell: weight} JSON, uniform or natural.

  `path`: where the trainer has a cell, with {cell}, {concept}, {task}, {name}, {folder} or {cells}
  in it, such as path=s3://bucket/{folder}; empty takes the format's own. `samples`: how many the
  run will draw, if that is known. `extra_tokens`: a sample's besides its texts, for a trainer that
  weighs tokens. `strategy`: first or random, for llava_next.
  """
  args = parse_arg(
    arg,
    recipe="",
    cells="",
    to="",
    path="",
    study="",
    samples=0,
    extra_tokens=0.0,
    strategy="first",
  )
  return ConfigDict(args | dict(job="export"))
