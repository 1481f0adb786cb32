"""A workdir belongs to one config: opening it with another is refused, naming every difference."""

import json
from typing import Any

from etils import epath


def write_whole(path: epath.Path, text: str) -> None:
  """Writes a file whole or not at all: a temporary name, then a rename."""
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.parent / f".{path.name}.partial"
  partial.write_text(text)
  partial.replace(path)


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  """{"a": {"b": 1}} -> {"a.b": 1}."""
  flat: dict[str, Any] = {}
  for key, value in tree.items():
    if isinstance(value, dict):
      flat |= flatten(value, f"{prefix}{key}.")
    else:
      flat[f"{prefix}{key}"] = value
  return flat


def check_free(workdir: epath.PathLike, config: dict[str, Any]) -> None:
  """Raises ValueError listing the differing keys when it holds the results of another config."""
  path = _path(workdir, config)
  if not path.exists():
    return
  new = flatten(json.loads(json.dumps(config)))
  old = flatten(json.loads(path.read_text()))
  keys = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
  if keys:
    listed = "\n".join(f"  {k}: {old.get(k)!r} there, {new.get(k)!r} asked for" for k in keys)
    raise ValueError(
      f"{workdir} holds a run of another config:\n{listed}\nUse another --workdir, or these values."
    )


def claim(workdir: epath.PathLike, config: dict[str, Any]) -> epath.Path:
  """Makes the workdir this config's own, or goes on in it.

  Raises ValueError as `check_free` does.
  """
  check_free(workdir, config)
  path = _path(workdir, config)
  if not path.exists():
    write_whole(path, json.dumps(config, indent=1, sort_keys=True))
  return epath.Path(workdir)


def _path(workdir: epath.PathLike, config: dict[str, Any]) -> epath.Path:
  return epath.Path(workdir) / f"config.{config['job']}.json"
