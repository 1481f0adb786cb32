"""Compiles the true train step for chips that are not here: fits or not, and what it sends.

  python -m mixjax.main --config=configs/plan.py:model=qwen2_7b,topology=v5e:4x4,batch=16 \\
      --workdir=OUT

The full vision-language model under AdamW, sharded over all chips. Leaves OUT/plan.json: memory a
chip by kind, collectives, FLOPs, an estimated step time, and what would make a step fit that does
not. Takes some minutes, and for TPUs `pip install -r requirements-plan.txt` (libtpu; no TPU), for
`topology=h100:8` requirements-plan-gpu.txt; `topology=cpu:1` needs neither. See docs/plans.md.
"""

from ml_collections import ConfigDict

from configs.common import parse_step


def get_config(arg: str | None = None) -> ConfigDict:
  """`batch`: rows over all chips, or of each proxy; `proxies`: models that one program trains at
  once; `replicated`: every chip holds all weights and moments, as in a plain port. The others are
  `parse_step`'s.
  """
  args = parse_step(
    arg,
    model="qwen2_7b",
    vision="clip_l_336",
    topology="v5e:4x4",
    batch=16,
    frozen_tower=False,
    proxies=1,
    replicated=False,
  )
  return ConfigDict(args | dict(job="plan"))
