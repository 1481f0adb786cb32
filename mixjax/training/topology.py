"""Named accelerators without the accelerators: libtpu and XLA's CUDA plugin compile without them.

`v5e:4x4` names a TPU slice as Google does and `h100:8` a machine of 8 GPUs; `cpu:8` is 8 devices of
this machine, on which every part of a plan but those compilers can be tried.
"""

import dataclasses
import importlib.util
import math
import os
import re

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """What its maker says of one chip.

  `limit_gib`: what libtpu, or jax on a GPU, lets a program have of its memory; `flops`: bfloat16
  FLOP/s; `link_bytes`: bytes a second that it sends over all its links.
  """

  name: str
  limit_gib: float
  flops: float | None
  link_bytes: float | None


# https://cloud.google.com/tpu/docs/system-architecture-tpu-vm and NVIDIA's data sheet of the H100:
# peak bfloat16 compute, dense, and bandwidth of the links between chips, of which one direction
# counts here. Of a GPU's 79.1 GiB jax takes three quarters, unless XLA_PYTHON_CLIENT_MEM_FRACTION
# says otherwise.
CHIPS = {
  "v5e": Chip("TPU v5e", 15.75, 197e12, 200e9),
  "v5p": Chip("TPU v5p", 95.74, 459e12, 600e9),
  "v6e": Chip("TPU v6e", 31.25, 918e12, 400e9),
  "h100": Chip("H100 SXM", 59.33, 989e12, 450e9),
}
GPUS = {"h100": 8}  # as many as one machine joins by links of that speed

# What XLA would ask the GPU: its GpuTargetConfig, with NVIDIA's figures for compute capability 9.0.
H100 = """
gpu_device_info {
  name: "NVIDIA H100 80GB HBM3"
  device_vendor: "NVIDIA Corporation"
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  device_memory_size: 84942979072
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  core_count: 132
  fpus_per_core: 128
  device_address_bits: 64
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_core: 233472
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  driver_version: "13.0.0"
  runtime_version: "12.8.0"
  compile_time_toolkit_version: "12.8.0"
  dnn_version: "9.10.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""

# Read by libtpu when it starts: there is no machine to ask what it is, and compiling for a chip
# that is not here takes no lock on one.
ENVIRONMENT = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_WORKER_ID": "0",
  "TPU_ACCELERATOR_TYPE": "v5litepod-1",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def devices(topology: str) -> tuple[Chip, list[jax.Device]]:
  """The chip and the devices of a topology such as `v5e:4x4`, `v5p:2x2x4`, `h100:8` or `cpu:8`.

  Raises ValueError for one that does not exist, and when its compiler is not installed.
  """
  family, _, shape = topology.partition(":")
  sizes = [int(size) for size in shape.split("x")] if re.fullmatch(r"\d+(x\d+)*", shape) else []
  if not sizes or family not in (*CHIPS, "cpu"):
    raise ValueError(
      f"topology={topology!r}: give FAMILY:SHAPE with a family of cpu, {', '.join(CHIPS)}, "
      "such as v5e:4x4, v5p:2x2x4, h100:8 or cpu:8"
    )
  wanted = math.prod(sizes)
  if family == "cpu":
    found = jax.devices("cpu")
    if len(found) < wanted:
      raise ValueError(
        f"topology={topology} wants {wanted} devices and there are {len(found)}: set "
        f"XLA_FLAGS=--xla_force_host_platform_device_count={wanted}"
      )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    return Chip("CPU", memory / wanted, None, None), found[:wanted]
  if family in GPUS:
    if not 0 < wanted <= GPUS[family]:
      raise ValueError(f"topology={topology}: give 1 to {GPUS[family]} GPUs, those of one machine")
    _need("jax_cuda12_plugin", topology, "requirements-plan-gpu.txt")
    what = dict(platform="cuda", target_config=H100, topology=f"1x1x{wanted}")
  else:
    _need("libtpu", topology, "requirements-plan.txt")
    for name, value in ENVIRONMENT.items():
      os.environ.setdefault(name, value)
    what = dict(platform="tpu", topology_name=topology)
  try:
    described = topologies.get_topology_desc(**what)
  except jax.errors.JaxRuntimeError as error:
    raise ValueError(f"topology={topology}: {error}") from error
  return CHIPS[family], list(described.devices)


def _need(compiler: str, topology: str, requirements: str) -> None:
  if importlib.util.find_spec(compiler) is None:
    raise ValueError(
      f"planning for {topology} needs {compiler}, a compiler that is not installed: "
      f"pip install -r {requirements}"
    )


def make_mesh(devices: list[jax.Device], model: int, proxies: int = 1) -> Mesh:
  """An explicit mesh of (proxy, data, model) over all devices; neighbours share `model`.

  As many chips as divide them part the proxies; a lone model has no axis of that name. Raises
  ValueError when the devices do not divide.
  """
  if len(devices) % model:
    raise ValueError(f"{len(devices)} chips do not divide by {model}: change tensor={model}")
  grid, names = np.array(devices).reshape(-1, model), ("data", "model")
  if proxies > 1:
    grid = grid.reshape(math.gcd(proxies, len(grid)), -1, model)
    names = ("proxy", *names)
  return Mesh(grid, names, axis_types=(AxisType.Explicit,) * len(names))
