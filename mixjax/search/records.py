"""JSON files that appear whole or not at all, and digests of what results depend on."""

import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

MISSING = "is missing"


def fingerprint(config: Mapping[str, Any]) -> str:
  """A short digest of a JSON-able config, whatever the order of its keys."""
  text = json.dumps(config, sort_keys=True, separators=(",", ":"), default=plain)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def read(path: epath.Path) -> tuple[dict[str, Any] | None, str]:
  """The JSON object in `path`, or None and what is wrong with it."""
  try:
    content = json.loads(path.read_text())
  except FileNotFoundError:
    return None, MISSING
  except ValueError as error:  # a disk or network error is not a torn file: it must not pass as one
    return None, f"is torn: {error}"
  return (content, "") if isinstance(content, dict) else (None, "holds no JSON object")


def write(path: epath.Path, content: Mapping[str, Any]) -> None:
  """Under a temporary name, then renamed: a kill leaves the old file or the new one."""
  text = json.dumps(content, indent=1, allow_nan=False, default=plain) + "\n"
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}"
  temporary.write_text(text)
  temporary.replace(path)


def plain(value):
  """What JSON makes of numpy's numbers and arrays."""
  if isinstance(value, (np.generic, np.ndarray)):
    return value.tolist()
  raise TypeError(f"{value!r} of type {type(value).__name__} cannot be written as JSON")


def differences(old: Any, new: Any, where: str = "") -> Iterator[str]:
  """A line for each value that is not the same in both, by its path."""
  if isinstance(old, dict) and isinstance(new, dict):
    for key in sorted(old.keys() | new.keys()):
      place = f"{where}.{key}" if where else key
      if key not in new:
        yield f"{place}: {old[key]!r} -> (absent)"
      elif key not in old:
        yield f"{place}: (absent) -> {new[key]!r}"
      else:
        yield from differences(old[key], new[key], place)
  elif old != new:
    yield f"{where}: {old!r} -> {new!r}"
