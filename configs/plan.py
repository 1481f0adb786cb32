"""Compiles the true train step for a TPU slice that is not here: fits or not, and what it sends.

  python -m mixjax.main --config=configs/plan.py:model=qwen2_7b,topology=v5e:4x4,batch=16 \\
      --workdir=OUT

The full vision-language model under AdamW, sharded over all chips. Leaves OUT/plan.json: memory a
chip by kind, collectives, FLOPs, an estimated step time, and what would make a step fit that does
not. Needs `pip install -r requirements-plan.txt` (libtpu; no TPU) and one or two minutes;
`topology=cpu:1` needs neither.
"""

from ml_collections import ConfigDict

from configs.common import parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
  """`tensor`: chips that share each matrix product; the others split batch and weights.

  `remat`: a policy of jax.checkpoint_policies, or none; `loss_chunk`: positions of a row whose
  logits are in memory at once, 0 for all; `attention`: auto, xla, splash or cudnn; `accumulate`:
  parts of the rows that pass one after another; `proxies`: models that one program trains at once,
  `batch` rows each.
  """
  args = parse_arg(
    arg,
    model="qwen2_7b",
    vision="clip_l_336",
    topology="v5e:4x4",
    batch=16,
    seq=4096,
    image_tokens=2928,
    tiles=5,
    tensor=1,
    remat="nothing_saveable",
    loss_chunk=512,
    attention="auto",
    dtype="bfloat16",
    frozen_tower=False,
    accumulate=1,
    proxies=1,
  )
  args["remat"] = None if args["remat"] in ("", "none") else args["remat"]
  args["loss_chunk"] = args["loss_chunk"] or None
  return ConfigDict(args | dict(job="plan"))
