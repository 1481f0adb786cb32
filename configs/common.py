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
