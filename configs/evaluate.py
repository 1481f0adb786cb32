"""Scores a checkpoint on the benchmarks.

  python -m mixjax.main --config=configs/evaluate.py:atlas=RUN/atlas,run=OUT --workdir=SCORES

The gallery's models, sighted and blind: under half a minute. Without `run`, the starting checkpoint
is scored.

  python -m mixjax.main --config=configs/evaluate.py:pixels,model=OUT/model,questions=FOLDER \\
      --workdir=SCORES

A real model from pixels, on all chips: what `configs/train.py:pixels` leaves, or any folder of
Hugging Face's that holds a LLaVA-NeXT with a Qwen2; FOLDER holds benchmark.json and its
pictures. Leaves scores.json, and answers.jsonl with what the model said.
"""

from ml_collections import ConfigDict

from configs.common import parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
  """With `pixels` a real model, without it the gallery's."""
  names = (arg or "").split(",")
  if "pixels" not in names:
    return gallery(arg)
  names.remove("pixels")
  return pixels(",".join(names))


def gallery(arg: str | None) -> ConfigDict:
  """`run`: the workdir of a configs/train.py run; `model`: what that run started from."""
  args = parse_arg(arg, atlas="", run="", model="proxy", tokenizer="")
  if not args["atlas"]:
    raise ValueError(
      "configs/evaluate.py needs atlas=DIR, a folder that configs/atlas.py has built"
    )
  if args["model"] in ("proxy", "target"):
    args["model"] = f"mixjax/standins/{args['model']}"
  return ConfigDict(args | dict(job="evaluate"))


def pixels(arg: str | None) -> ConfigDict:
  """`batch` questions are asked at once, or as many more as the chips divide.

  `tensor`: chips that share each matrix product, the others split questions and weights. Answers
  are cut after `new_tokens`, or more where a true one of the benchmark has more. `split`: the
  questions' file, without its .json. Weights are float32, and attention is plain: where memory is
  short, `batch=1` and more chips.
  """
  args = parse_arg(
    arg,
    model="",
    tokenizer="",
    questions="",
    split="benchmark",
    batch=8,
    tensor=1,
    new_tokens=32,
    dtype="bfloat16",
  )
  for name, what in (
    ("model", "a LLaVA-NeXT checkpoint"),
    ("questions", "benchmark.json and its pictures"),
  ):
    if not args[name]:
      raise ValueError(f"configs/evaluate.py:pixels needs {name}=DIR, the folder of {what}")
  return ConfigDict(args | dict(job="evaluate_pixels"))
