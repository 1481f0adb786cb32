"""Named TPU topologies without the TPUs: libtpu compiles for chips that are not here.

`v5e:4x4` names a slice as Google does; `cpu:8` is 8 devices of this machine, on which every part of
a plan but the TPU's own compiler can be tried.
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
  """What its maker says of one chip; `limit_gib` is what libtpu lets a program have of its memory.

  `flops`: bfloat16 FLOP/s; `link_bytes`: bytes a second that it sends over all its links.
  """

  name: str
  limit_gib: float
  flops: float | None
  link_bytes: float | None


# https://cloud.google.com/tpu/docs/system-architecture-tpu-vm: peak bfloat16 compute and bandwidth
# of the links between chips, of which one direction counts here.
CHIPS = {
  "v5e": Chip("TPU v5e", 15.75, 197e12, 200e9),
  "v5p": Chip("TPU v5p", 95.74, 459e12, 600e9),
  "v6e": Chip("TPU v6e", 31.25, 918e12, 400e9),
}

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
  """The chip and the devices of a topology such as `v5e:4x4`, `v5p:2x2x4` or `cpu:8`.

  Raises ValueError for one that does not exist, and when libtpu is not installed.
  """
  family, _, shape = topology.partition(":")
  sizes = [int(size) for size in shape.split("x")] if re.fullmatch(r"\d+(x\d+)*", shape) else []
  if not sizes or family not in (*CHIPS, "cpu"):
    raise ValueError(
      f"topology={topology!r}: give FAMILY:SHAPE with a family of cpu, {', '.join(CHIPS)}, "
      "such as v5e:4x4, v5p:2x2x4 or cpu:8"
    )
  if family == "cpu":
    found = jax.devices("cpu")
    wanted = math.prod(sizes)
    if len(found) < wanted:
      raise ValueError(
        f"topology={topology} wants {wanted} devices and there are {len(found)}: set "
        f"XLA_FLAGS=--xla_force_host_platform_device_count={wanted}"
      )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    return Chip("CPU", memory / wanted, None, None), found[:wanted]
  if importlib.util.find_spec("libtpu") is None:
    raise ValueError(
      f"planning for {topology} needs libtpu, TPU's compiler, and it is not installed: "
      "pip install -r requirements-plan.txt"
    )
  for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  try:
    described = topologies.get_topology_desc(topology, platform="tpu")
  except jax.errors.JaxRuntimeError as error:
    raise ValueError(f"topology={topology}: {error}") from error
  return CHIPS[family], list(described.devices)


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
