import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax.training import checkpoint
from mixjax.training.checkpoint import Checkpointer


def state(value):
  return {"w": jnp.full((64, 32), value), "step": jnp.asarray(value, jnp.int32)}


def save(folder, *steps):
  checkpointer = Checkpointer(folder)
  for step in steps:
    checkpointer.save(step, state(step))
  checkpointer.close()


def restore(folder):
  return Checkpointer(folder).restore(state(0))


def flip_a_bit(folder):
  """In the largest file of a step: where the numbers are."""
  path = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)
  return path


def test_nothing_saved_is_none(tmp_path):
  assert restore(tmp_path) is None


def test_the_newest_step_comes_back_bit_for_bit(tmp_path):
  save(tmp_path, 3, 7)
  step, found = restore(tmp_path)
  assert step == 7
  np.testing.assert_array_equal(found["w"], state(7)["w"])


def test_a_flipped_bit_is_found_and_the_step_before_is_used(tmp_path):
  save(tmp_path, 3, 7)
  flip_a_bit(tmp_path / "7")
  step, found = restore(tmp_path)
  assert step == 3
  np.testing.assert_array_equal(found["w"], state(3)["w"])


def test_when_none_is_intact_the_damaged_file_is_named(tmp_path):
  save(tmp_path, 3)
  damaged = flip_a_bit(tmp_path / "3")
  with pytest.raises(ValueError, match=damaged.name):
    restore(tmp_path)


def test_on_a_pod_every_process_knows_what_is_damaged(tmp_path, monkeypatch):
  """The first process alone reads the manifest, and tells the others."""
  save(tmp_path, 3)
  checkpointer = Checkpointer(tmp_path)
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  told = b"d/array, d/other"
  monkeypatch.setattr(
    checkpoint.multihost_utils,
    "broadcast_one_to_all",
    lambda said: np.frombuffer(told.ljust(len(said), b"\0"), np.uint8),
  )
  with pytest.raises(ValueError, match=r"is intact \(3: d/array, d/other\)"):
    checkpointer.restore(state(0))


def test_a_save_killed_before_its_manifest_does_not_count(tmp_path):
  save(tmp_path, 3, 7)
  (tmp_path / "manifest-7.json").unlink()
  assert restore(tmp_path)[0] == 3
