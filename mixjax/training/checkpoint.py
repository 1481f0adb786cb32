"""Orbax checkpoints that are verified before they are believed.

Orbax restores a flipped bit without a word, so each step gets a SHA-256 manifest, written last;
restoring checks it and falls back to the newest step that still matches.
"""

import hashlib
import json
import os
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath


def _digests(folder: epath.Path) -> dict[str, str]:
  """{path within `folder`: SHA-256} of every file below it."""
  digests = {}
  for path in sorted(folder.iterdir()):
    if path.is_dir():
      digests |= {f"{path.name}/{name}": digest for name, digest in _digests(path).items()}
    else:
      digests[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
  return digests


class Checkpointer:
  """The steps of one run under `folder`; keeps the newest two."""

  def __init__(self, folder: epath.PathLike, keep: int = 2):
    self._folder = epath.Path(os.path.abspath(folder))
    self._folder.mkdir(parents=True, exist_ok=True)
    self._manager = ocp.CheckpointManager(
      self._folder,
      options=ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False),
    )

  def _manifest(self, step: int) -> epath.Path:
    return self._folder / f"manifest-{step}.json"

  def save(self, step: int, state: Any) -> None:
    """Writes `state` (a pytree of arrays) whole; it counts once its manifest is in place."""
    if not self._manager.save(step, args=ocp.args.StandardSave(state)):
      return
    self._manager.wait_until_finished()
    partial = self._folder / f"manifest-{step}.json.partial"
    partial.write_text(json.dumps(_digests(self._folder / str(step)), indent=1))
    partial.replace(self._manifest(step))
    for path in self._folder.glob("manifest-*.json"):
      if int(path.stem.split("-")[1]) not in self._manager.all_steps():
        path.unlink()

  def restore(self, like: Any) -> tuple[int, Any] | None:
    """(step, state) of the newest intact step, shaped as `like`; None when nothing was saved.

    A damaged or unfinished step is named in the log and removed. Raises ValueError when steps were
    saved and none is intact: delete the folder to start the run anew.
    """
    steps = sorted(self._manager.all_steps(), reverse=True)
    damaged = []
    for step in steps:
      manifest = self._manifest(step)
      if not manifest.exists():  # killed between the save and its manifest
        logging.warning("checkpoint %d of %s has no manifest: not used", step, self._folder)
        self._manager.delete(step)
        continue
      said, found = json.loads(manifest.read_text()), _digests(self._folder / str(step))
      wrong = sorted(name for name in said if found.get(name) != said[name])
      if not wrong:
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        return step, self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
      logging.warning("checkpoint %d of %s is damaged in %s", step, self._folder, wrong)
      damaged.append(f"{step}: {', '.join(wrong)}")
      self._manager.delete(step)
      manifest.unlink()
    if damaged:
      raise ValueError(
        f"no checkpoint in {self._folder} is intact ({'; '.join(damaged)}); "
        "delete the folder to start anew"
      )
    return None

  def close(self) -> None:
    self._manager.close()
