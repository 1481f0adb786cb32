"""Arrays by pieces, in half precision, on meshes and from two processes."""

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
from golden_models import GOLDEN, QWEN2, assert_same, shards
from safetensors.numpy import load_file

from mixjax.models import hf, hf_arrays
from mixjax.models import mesh as mesh_lib


@pytest.fixture
def folder(tmp_path):
  """Our own export of the golden in several small files."""
  model = hf.load_qwen2(QWEN2)
  hf.save_qwen2(model, tmp_path / "model", max_shard_size=4000)
  return tmp_path / "model"


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
