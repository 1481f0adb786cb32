"""Shared by the configs: arguments after the colon, and the gallery's budgets."""

from typing import Any


def parse_arg(arg: str | None, **defaults: Any) -> dict[str, Any]:
  """`"full,seed=3"` -> the defaults with those values, each of its default's type.

  A bare name sets a boolean. Raises ValueError naming an unknown key and the known ones.
  """
  values = dict(defaults)
  for part in filter(None, (arg or "").split(",")):
    key, _, text = part.partition("=")
    if key not in defaults:
      raise ValueError(f"unknown config argument {key!r}; known: {', '.join(sorted(defaults))}")
    kind = type(defaults[key])
    if kind is bool:
      if text.lower() not in ("", "true", "false"):
        raise ValueError(f"config argument {key} is true or false, not {text!r}")
      values[key] = text.lower() != "false"
    else:
      try:
        values[key] = kind(text)
      except ValueError as error:
        raise ValueError(
          f"config argument {key}={text!r} is not of type {kind.__name__}"
        ) from error
  return values


def parse_step(arg: str | None, **defaults: Any) -> dict[str, Any]:
  """`parse_arg` with what the step of a real model takes too: what is planned is what is trained.

  `seq`: tokens in a row; `image_tokens`, `tiles`: the most of a row that are of pictures; `tensor`:
  chips that share each matrix product, the others split batch and weights; `accumulate`: parts of
  the batch that pass one after another, with the activations of one in memory; `remat`: a policy of
  jax.checkpoint_policies, or none; `loss_chunk`: positions of a row whose logits are in memory at
  once, 0 for all; `attention`: auto, xla, splash or cudnn; `dtype`: of the computation.
  """
  args = parse_arg(
    arg,
    seq=4096,
    image_tokens=2928,
    tiles=5,
    tensor=1,
    accumulate=1,
    remat="nothing_saveable",
    loss_chunk=512,
    attention="auto",
    dtype="bfloat16",
    **defaults,
  )
  args["remat"] = None if args["remat"] in ("", "none") else args["remat"]
  args["loss_chunk"] = args["loss_chunk"] or None
  return args
