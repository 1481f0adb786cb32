"""Runs a function of a model and a batch on no mesh, or on an explicit one."""

from collections.abc import Callable

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from mixjax.models import mesh as mesh_lib

SHAPES = (None, (1, 1), (4, 2))


def run(
  function: Callable, model: nnx.Module, *batch: np.ndarray, shape: tuple[int, int] | None
) -> jax.Array:
  """`function(model, *batch)`, jitted, parameters and batch placed on a mesh of this shape."""
  if shape is None:
    return jax.jit(function)(model, *batch)
  mesh = mesh_lib.make_mesh(*shape)
  with jax.set_mesh(mesh):
    rows = NamedSharding(mesh, PartitionSpec("data"))
    placed = [jax.device_put(array, rows) for array in batch]
    return jax.jit(function)(mesh_lib.place(model, mesh), *placed)
