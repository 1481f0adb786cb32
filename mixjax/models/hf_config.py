"""The config.json of a Hugging Face folder: read, with all that is wrong told at once, and made."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any, TypeVar

from mixjax.models import hf_files

Config = TypeVar("Config")


def configured(
  folder: str | os.PathLike, model_type: str, kind: type[Config], **running: Any
) -> Config:
  """`kind.from_hf` of a folder's config.json.

  Raises FileNotFoundError without the folder, and ValueError with everything that is wrong with
  the config (not there, not JSON, another model, odd sizes, variants that are not computed) and,
  if anything is, with the files beside it.
  """
  config, problems = parsed(folder)
  if config is not None:
    found = config.get("model_type")
    if found is None:
      problems.append(f"config.json has no model_type; {model_type!r} is wanted")
    elif found != model_type:
      problems.append(f"config.json is of a {found!r} model; {model_type!r} is wanted")
    else:
      problems += misfits(kind, config)
  if not problems:
    try:
      return kind.from_hf(config, **running)
    except ValueError as error:
      problems += [f"config.json: {line.strip()}" for line in str(error).splitlines()]
  refuse(folder, problems + hf_files.contents(folder)[1])


def read_config(folder: str | os.PathLike) -> dict[str, Any]:
  """The config.json of a folder. Raises FileNotFoundError without the folder, else ValueError."""
  config, problems = parsed(folder)
  if config is None:
    refuse(folder, problems + hf_files.contents(folder)[1])
  return config


def refuse(folder: str | os.PathLike, problems: list[str]) -> None:
  """Raises ValueError with all problems of a folder."""
  raise ValueError(
    f"{folder} does not hold the model that is asked for:\n  " + "\n  ".join(problems)
  )


def parsed(folder: str | os.PathLike) -> tuple[dict[str, Any] | None, list[str]]:
  """The config.json of a folder, or None and why."""
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise FileNotFoundError(f"no folder at {folder}")
  path = folder / "config.json"
  if not path.exists():
    return None, ["missing file: config.json"]
  try:
    config = json.loads(path.read_text())
  except ValueError as error:
    return None, [f"config.json is not JSON: {error}"]
  if not isinstance(config, dict):
    return None, ["config.json is not a JSON object"]
  return config, []


def misfits(kind: type, config: dict[str, Any], where: str = "") -> Iterator[str]:
  """What in a config.json, or a section of it, cannot be a value of `kind`'s fields."""
  for field in dataclasses.fields(kind):
    if dataclasses.is_dataclass(field.type):
      name = f"{field.name}_config"
      if isinstance(config.get(name), dict):
        yield from misfits(field.type, config[name], f"{where}{name}.")
      else:
        yield f"config.json: {where}{name} is missing"
    elif field.name in config:
      value, least = config[field.name], 0 if field.name.endswith("_id") else 1
      name = f"config.json: {where}{field.name} is {value!r}"
      if field.type is int and (type(value) is not int or value < least):
        yield f"{name}, not a whole number from {least} on"
      elif field.type is float and (type(value) not in (int, float) or value <= 0):
        yield f"{name}, not a positive number"
      elif field.type is bool and type(value) is not bool:
        yield f"{name}, not true or false"


def exported(config: Any, dtype: str, source: str | os.PathLike | None) -> dict[str, Any]:
  """The config.json of a model whose weights are stored as `dtype`.

  From the config.json of `source`, if it is of the same kind, come the entries that the model has
  no use for and other programs do, such as the longest context and the ids of special tokens.
  """
  ours = config.to_hf()
  theirs = read_config(source) if source is not None else {}
  if theirs.get("model_type") == ours["model_type"]:
    merged = merge(theirs, ours)
    again = type(config).from_hf(merged)
    # Two spellings of one thing: the newer would hide ours if they differ.
    if again.to_hf() != ours:
      raise ValueError(
        f"the config.json of {os.fspath(source)} says otherwise than the model in "
        f"{', '.join(sorted(k for k, v in again.to_hf().items() if v != ours[k]))}: "
        "take another source"
      )
    ours = merged
  return {**ours, "dtype": dtype, "torch_dtype": dtype}


def merge(theirs: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
  """`theirs` updated by `ours`, section by section."""
  pairs = {k: (theirs.get(k), v) for k, v in ours.items()}
  both = {k: merge(*p) for k, p in pairs.items() if all(isinstance(v, dict) for v in p)}
  return {**theirs, **ours, **both}
