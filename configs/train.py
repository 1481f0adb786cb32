"""Trains one model on a recipe or a named mixture, over the cells of an atlas.

  python -m mixjax.main --config=configs/train.py:atlas=RUN/atlas,mixture=recipe.json --workdir=OUT

The gallery's proxy: about 5 seconds. `model=target` (5 times the parameters): about a minute.
"""

from ml_collections import ConfigDict

from configs.common import parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
  """`model`: proxy, target, or the folder of a LLaVA checkpoint."""
  args = parse_arg(
    arg, atlas="", mixture="uniform", model="proxy", samples=4096, seed=0, full=False, tokenizer=""
  )
  if not args["atlas"]:
    raise ValueError("configs/train.py needs atlas=DIR, a folder that configs/atlas.py has built")
  known = args["model"] in ("proxy", "target")
  return ConfigDict(
    dict(
      job="train",
      atlas=args["atlas"],
      tokenizer=args["tokenizer"],
      mixture=args["mixture"],
      seed=args["seed"],
      full=args["full"],
      budget=dict(
        model=f"mixjax/standins/{args['model']}" if known else args["model"],
        samples=args["samples"],
        batch_size=32,
        learning_rate=2e-3 if args["model"] == "target" else 3e-3,
        save_every=32,
        curve_points=8,
      ),
    )
  )
