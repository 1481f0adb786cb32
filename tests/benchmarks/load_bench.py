"""What loading a checkpoint costs a host in memory, beside the arrays that its own devices keep.

  python tests/benchmarks/load_bench.py [--size scaled] [--folder DIR]

writes a synthetic Qwen2 checkpoint in bfloat16, several files and an index, loads it as float32
onto a mesh of 8 fake CPU devices, checks values against those that were written, and deletes it.
`scaled` has the 7B's depth and a fraction of its width (1.8 GB; only the feed-forward is wide, for
its shards must come in pieces), all 8 devices in one process, which then also exports the model and
compares the files. `7b` is the true shape of Qwen2-7B (15.2 GB of
disk, 5 GB of memory), as one host of several sees it: a first process has one of the 8 devices and
loads what lies there, a second has the other seven and loads nothing.

Prints one line of JSON. Memory is RssAnon of /proc/self/status, sampled: the pages of mapped files
are not in it, for the system takes them back when it needs them. `over` is its peak above what it
was before loading and above the bytes of the arrays themselves.
"""

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zlib

import numpy as np

SIZES = {
  "tiny": dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2)
  | dict(num_attention_heads=4, num_key_value_heads=2),
  "scaled": dict(vocab_size=32000, hidden_size=512, intermediate_size=19456, num_hidden_layers=28)
  | dict(num_attention_heads=4, num_key_value_heads=2),
  "7b": dict(vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28)
  | dict(num_attention_heads=28, num_key_value_heads=4),
}
SHARD = 2 * 10**9
MIB = 2**20


def config_of(size):
  from mixjax.models.qwen2 import Qwen2Config

  return Qwen2Config(**SIZES[size], tie_word_embeddings=False)


def shapes_of(config):
  """Every key on disk and its shape."""
  import jax
  from flax import nnx

  from mixjax.models import hf, hf_keys, mesh
  from mixjax.models.qwen2 import Qwen2

  rows = {path: (key, layout) for path, key, layout in hf_keys.qwen2_table(config)}
  leaves = jax.eval_shape(lambda: Qwen2(config, rngs=nnx.Rngs(0)))
  shapes = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(leaves):
    key, layout = rows[mesh.dotted(path)]
    shapes |= {name: layout.shape(shape) for name, shape in hf.spread(key, leaf.shape)}
  return shapes


def values(key, shape):
  """bfloat16 that differ from key to key and place to place, made as fast as they are copied."""
  import ml_dtypes

  random = np.random.default_rng(zlib.crc32(key.encode()))
  # A prime number of them, so that no two rows begin alike.
  bits = random.integers(0x3C00, 0x4000, 1_000_003, np.uint16)
  return np.resize(bits, shape).view(ml_dtypes.bfloat16)


def make(size, folder):
  """Writes the checkpoint with the safetensors package."""
  from safetensors.numpy import save_file

  folder.mkdir(parents=True)
  config = config_of(size)
  (folder / "config.json").write_text(json.dumps(config.to_hf()))
  shards, room = [[]], 0
  for key, shape in sorted(shapes_of(config).items()):
    room -= 2 * int(np.prod(shape))
    if room < 0:
      shards.append([])
      room = SHARD // (10 if size != "7b" else 1) - 2 * int(np.prod(shape))
    shards[-1].append((key, shape))
  shards, where = shards[1:], {}
  for i, shard in enumerate(shards):
    name = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
    save_file({key: values(key, shape) for key, shape in shard}, folder / name, {"format": "pt"})
    where |= {key: name for key, _ in shard}
  (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def anonymous():
  """Bytes of memory of this process that no file backs."""
  status = pathlib.Path("/proc/self/status").read_text()
  return 1024 * int(status.split("RssAnon:")[1].split()[0])


@contextlib.contextmanager
def watched():
  """A dict that has, in the end, the seconds and the peak of anonymous memory above the start's."""
  start, began, stop, figures = anonymous(), time.time(), threading.Event(), {"peak": 0}

  def watch():
    while not stop.wait(0.002):
      figures["peak"] = max(figures["peak"], anonymous() - start)

  watcher = threading.Thread(target=watch)
  watcher.start()
  try:
    yield figures
  finally:
    stop.set()
    watcher.join()
    figures["seconds"] = time.time() - began


def check(model):
  """Raises AssertionError if a shard of this process is not what was written."""
  import jax

  from mixjax.models import hf, hf_keys, mesh

  rows = {path: (key, layout) for path, key, layout in hf_keys.qwen2_table(model.config)}
  for path, leaf in jax.tree_util.tree_leaves_with_path(model):
    key, layout = rows[mesh.dotted(path)]
    for layer, (name, shape) in enumerate(hf.spread(key, leaf.shape)):
      if layer in (0, leaf.shape[0] - 1):
        whole = layout.from_torch(values(name, layout.shape(shape)), shape)
        for shard in leaf.addressable_shards:
          index = shard.index[1:] if "{}" in key else shard.index
          ours = shard.data[layer] if "{}" in key else shard.data
          np.testing.assert_array_equal(ours, whole[index].astype(np.float32), err_msg=name)


def load(size, folder):
  """Loads, and exports and compares if every device is here; prints figures."""
  import jax

  from mixjax.models import hf
  from mixjax.models import mesh as mesh_lib

  with jax.set_mesh(mesh_lib.make_mesh(4, 2)):
    jax.block_until_ready(jax.jit(lambda: 0)())  # the runtime's own memory, first
    with watched() as loading:
      model = jax.block_until_ready(hf.load_qwen2(folder))
  kept = sum(s.data.nbytes for leaf in jax.tree.leaves(model) for s in leaf.addressable_shards)
  files = sorted(folder.glob("*.safetensors"))
  figures = {
    "size": size,
    "devices": f"{jax.local_device_count()} of {jax.device_count()}",
    "files": len(files),
    "file_gb": sum(path.stat().st_size for path in files) / 1e9,
    "arrays_gb": kept / 1e9,
    "load_seconds": loading["seconds"],
    "load_peak_gb": loading["peak"] / 1e9,
    "load_over_mib": (loading["peak"] - kept) / MIB,
  }
  check(model)
  if jax.process_count() == 1:
    with watched() as saving:
      hf.save_qwen2(model, folder / "again", "bfloat16", max_shard_size=SHARD // 10)
    figures |= {"save_seconds": saving["seconds"], "save_over_mib": saving["peak"] / MIB}
    figures["bit_equal"] = same(folder, folder / "again")
  return figures


def same(one, other):
  """Whether two checkpoints have the same keys with the same bits."""
  from mixjax.models import hf_files

  (one, _), (other, _) = hf_files.contents(one), hf_files.contents(other)
  bits = (np.array_equal(one[k].view(np.uint16), other[k].view(np.uint16)) for k in one)
  return one.keys() == other.keys() and all(bits)


def process(role, size, folder, devices, port):
  env = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    "PYTHONPATH": os.getcwd(),
  }
  command = [sys.executable, __file__, "--size", size, "--folder", str(folder), "--role", role]
  return subprocess.Popen(
    [*command, "--port", str(port)], env=env, stdout=subprocess.PIPE, text=True
  )


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("--size", choices=SIZES, default="scaled")
  parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path(tempfile.gettempdir()))
  parser.add_argument("--role", choices=["make", "load", "first", "second"])
  parser.add_argument("--port", type=int, default=0)
  args = parser.parse_args()
  if args.role == "make":
    make(args.size, args.folder)
  elif args.role == "load":
    print(json.dumps(load(args.size, args.folder)))
  elif args.role:
    import jax

    rank = ["first", "second"].index(args.role)
    jax.distributed.initialize(f"localhost:{args.port}", num_processes=2, process_id=rank)
    jax.devices()
    if args.role == "first":
      print(json.dumps(load(args.size, args.folder)), flush=True)
    jax.distributed.shutdown()  # waits for the other
  else:
    folder = args.folder / f"load_bench_{args.size}_{os.getpid()}"
    try:
      made = process("make", args.size, folder, 1, 0)
      if made.wait():
        sys.exit(made.returncode)
      if args.size == "7b":
        with socket.socket() as free:
          free.bind(("localhost", 0))
          port = free.getsockname()[1]
        second = process("second", args.size, folder, 7, port)
        first = process("first", args.size, folder, 1, port)
      else:
        first = process("load", args.size, folder, 8, 0)
      print(first.communicate()[0].strip())
      if args.size == "7b":
        second.wait()
      sys.exit(first.returncode)
    finally:
      shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
  main()
