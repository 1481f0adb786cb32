"""Orbax checkpoints that are verified before they are believed.

Orbax restores a flipped bit without a word, so each step gets a SHA-256 manifest, written last;
restoring checks it and falls back to the newest step that still matches. On a pod every process
calls each method, writes and reads the shards of its own devices, and the first one sees to the
manifests.
"""

import hashlib
import json
import os
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

UNFINISHED = "no manifest: killed before the save was done"


def _digests(folder: epath.Path) -> dict[str, str]:
  """{path within `folder`: SHA-256} of every file below it."""
  digests = {}
  for path in sorted(folder.iterdir()):
    if path.is_dir():
      digests |= {f"{path.name}/{name}": digest for name, digest in _digests(path).items()}
    else:
      with path.open("rb") as file:
        digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
  return digests


def _agreed(said: str, room: int = 1024) -> str:
  """What the first process says, on every process; no more than `room` bytes of it."""
  told = np.zeros(room, np.uint8)
  kept = said.encode()[:room]
  told[: len(kept)] = np.frombuffer(kept, np.uint8)
  told = np.asarray(multihost_utils.broadcast_one_to_all(told), np.uint8)
  return told.tobytes().rstrip(b"\0").decode(errors="ignore")


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
    if jax.process_index() == 0:
      partial = self._folder / f"manifest-{step}.json.partial"
      partial.write_text(json.dumps(_digests(self._folder / str(step)), indent=1))
      partial.replace(self._manifest(step))
      for path in self._folder.glob("manifest-*.json"):
        if int(path.stem.split("-")[1]) not in self._manager.all_steps():
          path.unlink()
    multihost_utils.sync_global_devices("manifest")

  def restore(self, like: Any) -> tuple[int, Any] | None:
    """(step, state) of the newest intact step; None when nothing was saved.

    `like` has the shapes of the state and its places on a mesh. A damaged or unfinished step is
    named in the log and removed. Raises ValueError when steps were saved and none is intact: delete
    the folder to start the run anew.
    """
    damaged = []
    for step in sorted(self._manager.all_steps(), reverse=True):
      wrong = _agreed(", ".join(self._wrong(step)) if jax.process_index() == 0 else "")
      if not wrong:
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        return step, self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
      logging.warning("checkpoint %d of %s: %s", step, self._folder, wrong)
      if wrong != UNFINISHED:
        damaged.append(f"{step}: {wrong}")
      self._manager.delete(step)
      if jax.process_index() == 0:
        self._manifest(step).unlink(missing_ok=True)
    if damaged:
      raise ValueError(
        f"no checkpoint in {self._folder} is intact ({'; '.join(damaged)}); "
        "delete the folder to start anew"
      )
    return None

  def _wrong(self, step: int) -> list[str]:
    """The files of a step that are not what its manifest says."""
    manifest = self._manifest(step)
    if not manifest.exists():
      return [UNFINISHED]
    said, found = json.loads(manifest.read_text()), _digests(self._folder / str(step))
    return sorted(name for name in said if found.get(name) != said[name])

  def close(self) -> None:
    self._manager.close()
