"""Folders that are wrong, cut short or mixed up; folders in several files, in and out."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from golden_models import GOLDEN, QWEN2, assert_same, refusal, shards
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from mixjax.models import hf, hf_arrays

INDEX = "model.safetensors.index.json"
NORM, HEAD = "model.norm.weight", "lm_head.weight"


@pytest.fixture
def folder(tmp_path):
  """Our own export of the golden in several small files."""
  model = hf.load_qwen2(QWEN2)
  hf.save_qwen2(model, tmp_path / "model", max_shard_size=4000)
  return tmp_path / "model"


def test_export_keeps_to_the_size_of_a_file(folder):
  index = json.loads((folder / INDEX).read_text())
  golden = load_file(QWEN2 / "model.safetensors")
  assert index["metadata"]["total_size"] == sum(array.nbytes for array in golden.values())
  assert sorted(set(index["weight_map"].values())) == [path.name for path in shards(folder)]
  assert len(shards(folder)) > 3 and not (folder / "model.safetensors").exists()
  for path in shards(folder):
    arrays = load_file(path)  # the format's own reader
    assert sum(array.nbytes for array in arrays.values()) <= 4000
    for key, array in arrays.items():
      assert index["weight_map"][key] == path.name
      np.testing.assert_array_equal(array, golden[key], err_msg=key)
    with safe_open(path, framework="np") as file:
      assert file.metadata() == {"format": "pt"}
  assert_same(hf.load_qwen2(folder), hf.load_qwen2(QWEN2))


def test_an_array_larger_than_a_file_has_its_own(tmp_path):
  hf.save_qwen2(hf.load_qwen2(QWEN2), tmp_path, max_shard_size=1)
  assert all(len(load_file(path)) == 1 for path in shards(tmp_path))
  assert_same(hf.load_qwen2(tmp_path), hf.load_qwen2(QWEN2))


def test_torch_reads_several_files(folder):
  pytest.importorskip("torch")
  import transformers

  ours, notes = transformers.Qwen2ForCausalLM.from_pretrained(folder, output_loading_info=True)
  assert not any(notes.values()), notes
  theirs = transformers.Qwen2ForCausalLM.from_pretrained(QWEN2).state_dict()
  for key, value in ours.state_dict().items():
    assert bool((value == theirs[key]).all()), key


def test_a_new_export_leaves_nothing_of_the_old(folder):
  (folder / "notes.txt").write_text("mine")
  model = jax.tree.map(lambda leaf: 2 * leaf, hf.load_qwen2(folder))
  hf.save_qwen2(model, folder)
  assert sorted(path.name for path in folder.iterdir()) == [
    "config.json",
    "model.safetensors",
    "notes.txt",
  ]
  assert_same(hf.load_qwen2(folder), model)
  hf.save_qwen2(model, folder, max_shard_size=4000)
  assert not (folder / "model.safetensors").exists()
  assert_same(hf.load_qwen2(folder), model)


def test_an_export_that_fails_changes_nothing(folder, monkeypatch):
  before = {path.name: path.read_bytes() for path in folder.iterdir()}
  model = jax.tree.map(lambda leaf: 2 * leaf, hf.load_qwen2(folder))
  fetched, count = hf_arrays.fetched, iter(range(100))

  def failing(*args):
    if next(count) == 9:
      raise OSError("no space left on device")
    return fetched(*args)

  monkeypatch.setattr(hf_arrays, "fetched", failing)
  with pytest.raises(OSError, match="no space"):
    hf.save_qwen2(model, folder, max_shard_size=2000)
  assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_stopped_between_the_old_and_the_new_a_folder_is_not_taken_for_whole(folder, monkeypatch):
  model = hf.load_qwen2(folder)
  rename = pathlib.Path.rename

  def stopped(path, target):
    if path.name == INDEX:
      raise KeyboardInterrupt
    return rename(path, target)

  monkeypatch.setattr(pathlib.Path, "rename", stopped)
  with pytest.raises(KeyboardInterrupt):
    hf.save_qwen2(model, folder, max_shard_size=2000)
  assert any("missing file: model.safetensors" in line for line in refusal(folder))


def test_everything_wrong_with_files_is_told_at_once(folder):
  where = json.loads((folder / INDEX).read_text())["weight_map"]
  files = list(where.values())
  names = sorted(set(files), key=lambda name: (-files.count(name), name))
  moved = next(key for key in where if where[key] == names[0])
  lost = [key for key in where if where[key] == names[1]]
  cut = folder / names[2]
  twice, extra = next(k for k in where if where[k] == names[3]), "extra.weight"
  # 1 is gone, 2 is cut, and arrays of 0 and 3 are not where the index says.
  (folder / names[1]).unlink()
  cut.write_bytes(cut.read_bytes()[:-5])
  three, four = load_file(folder / names[3]), load_file(folder / names[4])
  save_file(four | {twice: three[twice], extra: np.zeros(2, np.float32)}, folder / names[4])
  first = load_file(folder / names[0])
  save_file(three | {moved: first.pop(moved)}, folder / names[3])
  save_file(first, folder / names[0])
  lines = refusal(folder)
  assert f"missing file: {names[1]}, with {len(lost)} arrays by the index" in lines
  assert any(f"{names[2]} is cut short" in line for line in lines)
  assert f"in another file: {moved} is in {names[3]}, the index says {names[0]}" in lines
  both = sorted(names[3:5])
  assert f"in two files: {twice} is in {both[0]} and in {both[1]}" in lines
  assert f"not in the index: {extra} of {names[4]}" in lines
  assert f"left over: {extra} (2,)" in lines
  assert len(lines) == 6, lines  # arrays of the missing file are not listed once more


def test_an_index_that_promises_too_much(folder):
  index = json.loads((folder / INDEX).read_text())
  index["weight_map"]["nothing.weight"] = index["weight_map"][NORM]
  (folder / INDEX).write_text(json.dumps(index))
  assert refusal(folder) == [
    f"not in its file: nothing.weight is not in {index['weight_map'][NORM]}, as the index says"
  ]


@pytest.mark.parametrize(
  "text", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', '{"weight_map": {}}']
)
def test_a_damaged_index(text, folder):
  (folder / INDEX).write_text(text)
  (line,) = refusal(folder)
  assert line.startswith(INDEX)


def test_an_index_cannot_lead_out_of_its_folder(folder):
  (folder / INDEX).write_text(json.dumps({"weight_map": {NORM: "../model.safetensors"}}))
  (line,) = refusal(folder)
  assert "../model.safetensors" in line


@pytest.mark.parametrize(
  ("damage", "says"),
  [
    (lambda data: b"", "is cut short"),
    (lambda data: data[:5], "is cut short"),
    (lambda data: data[:300], "is cut short"),
    (lambda data: data[:-1], "is cut short"),
    (lambda data: data + b"x", "goes on past its last array"),
    (lambda data: data[:8] + b"!" + data[9:], "its header is damaged"),
    (lambda data: data.replace(b'"F32"', b'"F3!"', 1), "its header is damaged"),
    (lambda data: data.replace(b"[16]", b"[17]", 1), "its header is damaged"),
    (lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
  ],
)
def test_a_damaged_file(damage, says, tmp_path):
  shutil.copytree(QWEN2, tmp_path, dirs_exist_ok=True)
  path = tmp_path / "model.safetensors"
  path.write_bytes(damage(path.read_bytes()))
  (line,) = refusal(tmp_path)
  assert line.startswith("model.safetensors") and says in line


def test_integers_are_no_parameters(tmp_path):
  shutil.copytree(QWEN2, tmp_path, dirs_exist_ok=True)
  arrays = load_file(tmp_path / "model.safetensors")
  arrays[NORM], arrays[HEAD] = np.ones(16, np.int8), np.ones((40, 16), np.int32)
  save_file(arrays, tmp_path / "model.safetensors")
  assert refusal(tmp_path) == [
    f"wrong type: {HEAD} is int32, not floating point",
    f"wrong type: {NORM} is int8, not floating point",
  ]


def test_two_sets_of_weights_in_a_folder(folder):
  shutil.copy(QWEN2 / "model.safetensors", folder)
  (line,) = refusal(folder)
  assert line.startswith("both model.safetensors and model.safetensors.index.json")


def test_old_and_new_names_of_one_array(tmp_path):
  shutil.copytree(GOLDEN / "llava", tmp_path, dirs_exist_ok=True)
  arrays = load_file(tmp_path / "model.safetensors")
  new = "vision_tower.pre_layrnorm.weight"
  arrays["vision_tower.vision_model.pre_layrnorm.weight"] = arrays[new] + 1
  save_file(arrays, tmp_path / "model.safetensors")
  assert refusal(tmp_path, hf.load_llava) == [f"twice, old and new name: {new}"]


def test_torchs_own_files_are_named(tmp_path):
  shutil.copy(QWEN2 / "config.json", tmp_path)
  (tmp_path / "pytorch_model.bin").write_bytes(b"")
  (line,) = refusal(tmp_path)
  assert "pytorch_model.bin must be saved as safetensors first" in line


def test_no_folder(tmp_path):
  with pytest.raises(FileNotFoundError, match="nowhere"):
    hf.load_qwen2(tmp_path / "nowhere")
