"""Scores a checkpoint on the benchmarks, sighted and blind.

  python -m mixjax.main --config=configs/evaluate.py:atlas=RUN/atlas,run=OUT --workdir=SCORES

Without `run`, the starting checkpoint is scored. Under half a minute for the gallery's models.
"""

from ml_collections import ConfigDict

from configs.common import parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
  """`run`: the workdir of a configs/train.py run; `model`: what that run started from."""
  args = parse_arg(arg, atlas="", run="", model="proxy", tokenizer="")
  if not args["atlas"]:
    raise ValueError(
      "configs/evaluate.py needs atlas=DIR, a folder that configs/atlas.py has built"
    )
  if args["model"] in ("proxy", "target"):
    args["model"] = f"mixjax/standins/{args['model']}"
  return ConfigDict(args | dict(job="evaluate"))
