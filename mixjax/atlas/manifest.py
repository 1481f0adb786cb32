"""The manifest of a folder of cells: what is in it, file by file, and how it is changed.

A source is added in four steps: everything is written into a folder of its own beside the cells;
the new files move to their places, where nothing names them yet; the manifest is replaced, and from
then on the source is there; TFDS's metadata of the cells follow. `settle` ends or undoes what was
killed in between, so that a source is there whole or not at all.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Mapping

FORMAT = 2
MANIFEST = "manifest.json"
_METADATA = "dataset_info.json"  # the one file of a cell that an addition replaces


class DamagedCellsError(ValueError):
  """A file of a cells folder is missing or is not what was written."""


def sha256(path: pathlib.Path) -> str:
  """Hex digest of a file's bytes."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def digest(manifest: Mapping) -> str:
  """Of the manifest's own content, its "sha256" left out."""
  content = {key: value for key, value in manifest.items() if key != "sha256"}
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: str | os.PathLike) -> dict:
  """The manifest of a cells folder. Raises DamagedCellsError where it was changed or is no JSON."""
  path = pathlib.Path(folder) / MANIFEST
  if not path.exists():
    raise FileNotFoundError(f"{path} is missing: {folder} is not a folder of cells")
  try:
    manifest = json.loads(path.read_text())
    intact = manifest["sha256"] == digest(manifest)
  except (ValueError, KeyError, TypeError):
    intact = False
  if not intact:
    raise DamagedCellsError(f"{path} is not what was written; write the cells again")
  if manifest["format"] != FORMAT:
    raise ValueError(f"{path} has format {manifest['format']}, this code reads format {FORMAT}")
  return manifest


def verify(folder: str | os.PathLike) -> dict:
  """Checks every file against the manifest, which it returns; ends an addition that was killed.

  Raises:
    DamagedCellsError: names the first file that is missing or whose bytes changed, and its cell.
  """
  folder = pathlib.Path(folder)
  manifest = settle(folder)
  for cell, entry in manifest["cells"].items():
    for name, written in entry["files"].items():
      path = folder / name
      if not path.exists():
        problem = "is missing"
      elif path.stat().st_size != written["bytes"]:
        problem = f"has {path.stat().st_size} bytes, {written['bytes']} were written"
      elif sha256(path) != written["sha256"]:
        problem = "has changed since it was written (its checksum differs)"
      else:
        continue
      raise DamagedCellsError(f"{path} of cell {cell!r} {problem}; write the cells again")
  return manifest


def adding(folder: pathlib.Path) -> pathlib.Path:
  """Where everything is written before it becomes `folder`, or a part of it."""
  return folder.with_name(f".{folder.name}.partial")


def publish(folder: pathlib.Path) -> None:
  """Moves what was written beside a folder of cells into it; see the steps above."""
  new = adding(folder)
  for path in _files(new):
    target = folder / path.relative_to(new)
    if path.name not in (_METADATA, MANIFEST):
      target.parent.mkdir(parents=True, exist_ok=True)
      os.replace(path, target)
  # By way of a copy: where the two are equal, the addition is known to have come this far.
  shutil.copyfile(new / MANIFEST, folder / f".{MANIFEST}.partial")
  os.replace(folder / f".{MANIFEST}.partial", folder / MANIFEST)
  settle(folder)


def settle(folder: pathlib.Path) -> dict:
  """Ends an addition that was killed after the manifest was replaced, and undoes an earlier one.

  Returns the manifest, and raises as `read_manifest` does.
  """
  manifest, new = read_manifest(folder), adding(folder)
  if not new.exists():
    return manifest
  with contextlib.suppress(FileNotFoundError):  # another process is settling it as well
    written = new / MANIFEST
    if written.exists() and written.read_bytes() == (folder / MANIFEST).read_bytes():
      for path in _files(new):
        if path.name == _METADATA:
          os.replace(path, folder / path.relative_to(new))
    else:
      listed = {name for cell in manifest["cells"].values() for name in cell["files"]}
      for path in _files(folder):
        if path.name != MANIFEST and path.relative_to(folder).as_posix() not in listed:
          path.unlink()
  shutil.rmtree(new, ignore_errors=True)
  return manifest


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
  return sorted(path for path in folder.rglob("*") if path.is_file())
