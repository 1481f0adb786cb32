"""Trains one model on a recipe or a named mixture, over the cells of an atlas.

  python -m mixjax.main --config=configs/train.py:atlas=RUN/atlas,mixture=recipe.json --workdir=OUT

The gallery's proxy, on cached features of its pictures: about 5 seconds. `model=target` (4 times
the parameters): about a minute.

  python -m mixjax.main --workdir=OUT \\
      --config=configs/train.py:pixels,model=LLAVA_NEXT,cells=RUN/atlas/cells,mixture=recipe.json

A real model from pixels, on all chips: MODEL is a folder of Hugging Face's, of a LLaVA-NeXT with a
Qwen2, or of a Qwen2 with `vision=CLIP` beside it. Leaves OUT/model, which `transformers` opens.

Both take a curriculum, `mixture=stages.json` with `{"stages": [{"step": 0, "mixture": "a.json"},
...]}`, and `repetition=4`, the epochs that a cell may be read, with `exhausted`, what happens then:
repeat, stop (the run is refused) or redistribute. docs/loading.md says more.
"""

from ml_collections import ConfigDict

from configs.common import parse_arg, parse_step


def get_config(arg: str | None = None) -> ConfigDict:
  """With `pixels` a real model, without it the gallery's."""
  names = (arg or "").split(",")
  if "pixels" not in names:
    return gallery(arg)
  names.remove("pixels")
  return pixels(",".join(names))


def gallery(arg: str | None) -> ConfigDict:
  """`model`: proxy, target, or the folder of a LLaVA checkpoint."""
  args = parse_arg(
    arg,
    atlas="",
    mixture="uniform",
    repetition=0.0,
    exhausted="stop",
    model="proxy",
    samples=4096,
    seed=0,
    full=False,
    tokenizer="",
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
      repetition=args["repetition"],
      exhausted=args["exhausted"],
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


def pixels(arg: str | None) -> ConfigDict:
  """Hyper-parameters by default as in LLaVA-NeXT's mid-training (stage 1.5).

  `rows`: a batch. `vision_rate`: the tower's learning rate, 0 to freeze it; with `freeze_text` too,
  the projector alone learns, as a model from `vision=CLIP` needs first (with learning_rate=1e-3).
  `export`: the type of the weights in OUT/model. `workers`: processes that read and cut pictures.
  `distributed`: this is one of the processes of a pod, each with chips of its own, and all with the
  same folders. A run may go on with other `workers`, or on a pod. The others are `parse_step`'s.
  """
  args = parse_step(
    arg,
    model="",
    vision="",
    tokenizer="",
    cells="",
    mixture="uniform",
    repetition=0.0,
    exhausted="stop",
    seed=0,
    steps=1000,
    rows=16,
    learning_rate=1e-5,
    vision_rate=2e-6,
    freeze_text=False,
    weight_decay=0.0,
    warmup=0.03,
    save_every=500,
    log_every=16,
    export="bfloat16",
    workers=0,
    distributed=False,
  )
  for name, what in (("model", "a LLaVA-NeXT or Qwen2 checkpoint"), ("cells", "an atlas' cells")):
    if not args[name]:
      raise ValueError(f"configs/train.py:pixels needs {name}=DIR, the folder of {what}")
  own = ("learning_rate", "weight_decay", "warmup")
  optimizer = {name: args.pop(name) for name in own} | dict(b2=0.999, final=0.0)
  return ConfigDict(args | dict(job="train_pixels", optimizer=optimizer))
