"""Folders that are wrong, cut short or mixed up; folders in several files, in and out."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from mixjax.models import hf, hf_arrays
from mixjax.models import mesh as mesh_lib

GOLDEN = pathlib.Path(__file__).parent / "golden"
QWEN2 = GOLDEN / "qwen2_untied"
INDEX = "model.safetensors.index.json"
NORM, HEAD = "model.norm.weight", "lm_head.weight"


def assert_same(ours, theirs):
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.fixture
def folder(tmp_path):
  """Our own export of the golden in several small files."""
  model = hf.load_qwen2(QWEN2)
  hf.save_qwen2(model, tmp_path / "model", max_shard_size=4000)
  return tmp_path / "model"


def shards(folder):
  return sorted(folder.glob("model-*.safetensors"))


def refusal(folder, load=hf.load_qwen2):
  """The lines of the error with which a folder is refused."""
  with pytest.raises(ValueError) as raised:
    load(folder)
  assert str(folder) in str(raised.value)
  return [line.strip() for line in str(raised.value).splitlines()[1:]]


def edit(path, **changes):
  """Sets entries of a JSON file; None takes them out."""
  value = json.loads(path.read_text())
  value |= changes
  path.write_text(json.dumps({k: v for k, v in value.items() if v is not None}))


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


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_in_and_out_is_bit_equal(dtype, tmp_path):
  hf.save_llava(hf.load_llava(GOLDEN / "llava"), tmp_path / "once", dtype)
  again = hf.load_llava(tmp_path / "once")
  hf.save_llava(again, tmp_path / "twice", dtype, max_shard_size=3000)
  once = load_file(tmp_path / "once" / "model.safetensors")
  twice = {
    key: array for path in shards(tmp_path / "twice") for key, array in load_file(path).items()
  }
  assert once.keys() == twice.keys()
  for key, array in once.items():
    assert array.dtype == twice[key].dtype == jnp.dtype(dtype)
    assert array.tobytes() == twice[key].tobytes(), key


@pytest.mark.parametrize(
  ("kind", "shape"),
  [("llava", None), ("clip", None), ("qwen2", (4, 2)), ("llava", (2, 4)), ("clip", (4, 2))],
)
def test_piece_by_piece_is_the_same(kind, shape, monkeypatch):
  load = getattr(hf, f"load_{kind}")
  source = QWEN2 if kind == "qwen2" else GOLDEN / kind
  alone = load(source)
  monkeypatch.setattr(hf_arrays, "PIECE", 300)
  if shape is None:
    assert_same(load(source), alone)
    assert not any(leaf.committed for leaf in jax.tree.leaves(load(source)))
    return
  mesh = mesh_lib.make_mesh(*shape)
  with jax.set_mesh(mesh):
    model = load(source)
  assert_same(model, alone)
  for path, leaf in jax.tree_util.tree_leaves_with_path(model):
    assert leaf.sharding == mesh_lib.placement(mesh_lib.dotted(path), leaf.shape, mesh)
  assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(model))


def test_a_model_on_a_mesh_is_saved_whole(tmp_path):
  with jax.set_mesh(mesh_lib.make_mesh(4, 2)):
    hf.save_llava(hf.load_llava(GOLDEN / "llava"), tmp_path)
  ours, golden = (load_file(f / "model.safetensors") for f in (tmp_path, GOLDEN / "llava"))
  assert ours.keys() == golden.keys()
  jax.tree.map(np.testing.assert_array_equal, ours, golden)


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


def test_what_goes_with_the_weights_comes_from_the_source(tmp_path):
  source = tmp_path / "source"
  shutil.copytree(QWEN2, source)
  edit(source / "config.json", max_position_embeddings=131072, eos_token_id=7)
  for name in ("tokenizer.json", "generation_config.json", "preprocessor_config.json"):
    (source / name).write_text(json.dumps({"name": name}))
  model = hf.load_qwen2(source)
  hf.save_qwen2(model, tmp_path / "out", "bfloat16", source=source)
  for name in ("tokenizer.json", "generation_config.json", "preprocessor_config.json"):
    assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
  assert not (tmp_path / "out" / "io.safetensors").exists()
  config = json.loads((tmp_path / "out" / "config.json").read_text())
  assert config["max_position_embeddings"] == 131072 and config["eos_token_id"] == 7
  assert config["dtype"] == "bfloat16"
  assert hf.load_qwen2(tmp_path / "out").config == model.config
  with pytest.raises(ValueError, match="has no tokenizer"):
    hf.save_qwen2(model, tmp_path / "other", source=QWEN2)
  assert not (tmp_path / "other").exists()


def test_a_source_that_contradicts_the_model_is_refused(tmp_path):
  source = tmp_path / "source"
  shutil.copytree(GOLDEN / "llava", source)
  model = hf.load_llava(source)
  (source / "tokenizer.json").write_text("{}")
  edit(source / "config.json", image_token_id=5, image_token_index=None)
  with pytest.raises(ValueError, match="image_token_index"):
    hf.save_llava(model, tmp_path / "out", source=source)


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


CONFIGS = {
  "not there": (None, "missing file: config.json"),
  "not JSON": ("{", "config.json is not JSON"),
  "a list": ("[]", "config.json is not a JSON object"),
  "without a type": (dict(model_type=None), "config.json has no model_type; 'qwen2' is wanted"),
  "another type": (dict(model_type="llama"), "config.json is of a 'llama' model"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_wrong_config_and_wrong_files_are_told_together(case, folder):
  change, says = CONFIGS[case]
  shards(folder)[0].unlink()
  if change is None:
    (folder / "config.json").unlink()
  elif isinstance(change, str):
    (folder / "config.json").write_text(change)
  else:
    edit(folder / "config.json", **change)
  config, file = refusal(folder)
  assert config.startswith(says)
  assert file.startswith("missing file: model-00001")


def test_every_odd_entry_of_a_config_is_named(tmp_path):
  shutil.copytree(GOLDEN / "llava", tmp_path, dirs_exist_ok=True)
  config = json.loads((tmp_path / "config.json").read_text())
  config["text_config"] |= {"hidden_size": "16", "num_hidden_layers": 0, "rms_norm_eps": -1}
  del config["vision_config"]
  (tmp_path / "config.json").write_text(json.dumps(config))
  assert sorted(refusal(tmp_path, hf.load_llava)) == [
    "config.json: text_config.hidden_size is '16', not a whole number from 1 on",
    "config.json: text_config.num_hidden_layers is 0, not a whole number from 1 on",
    "config.json: text_config.rms_norm_eps is -1, not a positive number",
    "config.json: vision_config is missing",
  ]


def test_every_variant_that_is_not_computed_is_named(tmp_path):
  shutil.copytree(QWEN2, tmp_path, dirs_exist_ok=True)
  rope = {"rope_type": "yarn", "rope_theta": 1e4}
  edit(tmp_path / "config.json", hidden_act="gelu", rope_parameters=rope, use_sliding_window=True)
  assert sorted(refusal(tmp_path)) == [
    "config.json: hidden_act is 'gelu'; only 'silu' is supported",
    "config.json: rope type is 'yarn'; only 'default' is supported",
    "config.json: use_sliding_window is True; only False is supported",
  ]


@pytest.mark.slow
def test_a_large_model_loads_and_saves_in_little_more_memory_than_its_own():
  """1.8 GB in ten files, onto eight devices of one host; a copy of its largest array is 1 GiB."""
  script = pathlib.Path(__file__).parent / "benchmarks" / "load_bench.py"
  command = [sys.executable, str(script), "--size", "scaled"]
  said = subprocess.run(command, cwd=script.parents[2], capture_output=True, text=True, check=True)
  figures = json.loads(said.stdout)
  assert figures["arrays_gb"] > 3.5 and figures["files"] > 5
  assert figures["load_over_mib"] < 512 and figures["save_over_mib"] < 512, figures
  assert figures["bit_equal"]


POD = """
import sys, jax
jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
from mixjax.models import hf, mesh
with jax.set_mesh(mesh.make_mesh(4, 2)):
  model = hf.load_llava(sys.argv[3])
  assert not model.text.embedding[...].is_fully_addressable
  hf.save_llava(model, sys.argv[4], max_shard_size=3000, source=sys.argv[3])
  again = hf.load_llava(sys.argv[4])  # written when save returns, whoever wrote it
"""


@pytest.mark.slow
def test_two_processes_load_and_save_one_model(tmp_path):
  source = tmp_path / "source"
  shutil.copytree(GOLDEN / "llava", source)
  (source / "tokenizer.json").write_text("{}")
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  env = os.environ | {
    "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    "PYTHONPATH": str(GOLDEN.parents[1]),
  }
  command = [sys.executable, "-c", POD, address]
  jobs = [
    subprocess.Popen([*command, str(i), str(source), str(tmp_path / "out")], env=env)
    for i in range(2)
  ]
  assert [job.wait(timeout=300) for job in jobs] == [0, 0]
  assert_same(hf.load_llava(tmp_path / "out"), hf.load_llava(source))
  assert (tmp_path / "out" / "tokenizer.json").exists()
  assert not (tmp_path / "out" / ".part").exists()
