"""Policies and surrogates judged on a recorded table of runs; nothing is trained.

  python -m mixjax.main --config=configs/replay.py:table=DIR,policy=mixatlas,random,budget=48 \\
      --workdir=OUT
  python -m mixjax.main --config=configs/replay.py:table=DIR,mode=fit,objective=each --workdir=OUT

DIR holds `ratios.csv` and `metrics.csv`, or pairs of `*_mixture*.csv` and `*_loss*.csv`, perhaps
each with train_ and test_ in front. The first replays searches and says how far from the best run
each policy is after every evaluation; the second says how well each surrogate predicts runs it has
not seen. Leaves OUT/replay.json. A search of 48 takes seconds, all of them minutes.
"""

import os
import re

from ml_collections import ConfigDict

from configs.common import parse_arg

# Stands for a comma within a value while commas part the arguments.
_COMMA = "\x1f"


def get_config(arg: str | None = None) -> ConfigDict:
  """`objective`: a metric's column, `mean` of all, or `each`; `policy`, `surrogate`: names or all;
  `n`: runs to fit on, as in n=32,64,all; `minimize`: metrics are losses (default: of *_loss* files)
  """
  cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count())
  # What follows a comma and neither sets a key nor is the flag belongs to the value before it.
  listed = re.sub(r",(?!minimize(?:,|$))(?=[^=,]+(?:,|$))", _COMMA, arg or "")
  args = parse_arg(
    listed,
    table="",
    objective="mean",
    mode="search",
    policy="all",
    surrogate="all",
    budget=48,
    batch=1,
    seeds=5,
    n="",
    minimize="guess",
    workers=len(cores),
  )
  args = {k: v.replace(_COMMA, ",") if isinstance(v, str) else v for k, v in args.items()}
  args["minimize"] = args["minimize"] or "true"  # a bare `minimize`
  return ConfigDict(args | dict(job="replay"))
