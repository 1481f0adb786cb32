"""Where arrays live: an explicit mesh of two axes, and one table of parameter placements.

`data` splits the batch and stores slices of the weights (gathered before use, so memory falls as in
FSDP); `model` splits heads, feed-forward width and vocabulary.
"""

import re
from typing import Any, TypeVar

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

Tree = TypeVar("Tree")

# A rule holds for the paths that end in it. Axis 0 of stacked layers is the layer, never split.
PLACEMENTS = (
  (r"attention\.[qkv]\.kernel", P(None, "data", "model", None)),
  (r"attention\.[qkv]\.bias", P(None, "model", None)),
  (r"attention\.o\.kernel", P(None, "model", None, "data")),
  (r"layers\.(mlp\.)?(gate|up)\.kernel", P(None, "data", "model")),
  (r"layers\.up\.bias", P(None, "model")),
  (r"layers\.(mlp\.)?down\.kernel", P(None, "model", "data")),
  (r"projector\.up\.kernel", P("data", "model")),
  (r"projector\.up\.bias", P("model")),
  (r"projector\.down\.kernel", P("model", "data")),
  (r"embedding|head", P("model", "data")),
  (r"(o|down)\.bias|\w*norm\.(scale|bias)", P()),
  (r"positions|patch\.kernel", P(None, "data")),
  (r"class_embedding|stem\.\d+\.kernel|\w+_projection\.kernel|logit_scale", P()),
  (r"image_newline", P()),
)


def make_mesh(data: int = 1, model: int = 1) -> Mesh:
  """An explicit mesh over the first data * model devices. Raises ValueError if there are fewer."""
  if data * model > jax.device_count():
    raise ValueError(
      f"a {data}x{model} mesh needs {data * model} devices and there are {jax.device_count()}: "
      "make data or model smaller"
    )
  devices = jax.devices()[: data * model]
  return jax.make_mesh(
    (data, model), ("data", "model"), axis_types=(AxisType.Explicit,) * 2, devices=devices
  )


def placement(path: str, shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
  """The sharding of the parameter at a dotted path.

  A dimension that the mesh does not divide, or of one element, stays whole. Raises ValueError for a
  path without a rule.
  """
  if not shape:
    return NamedSharding(mesh, P())
  rules = (spec for pattern, spec in PLACEMENTS if re.search(rf"\.({pattern})$", f".{path}"))
  spec = next(rules, None)
  if spec is None:
    raise ValueError(f"no placement for parameter {path} {shape}: add a rule to PLACEMENTS")
  axes = (*spec, *[None] * (len(shape) - len(spec)))
  fits = (
    axis if axis is not None and size > 1 and size % mesh.shape[axis] == 0 else None
    for axis, size in zip(axes, shape, strict=True)
  )
  return NamedSharding(mesh, P(*fits))


def shardings(tree: Tree, mesh: Mesh) -> Tree:
  """The sharding of each leaf of a module, its state, or an optimizer state that mirrors it."""
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: placement(dotted(path), leaf.shape, mesh), tree
  )


def place(tree: Tree, mesh: Mesh) -> Tree:
  """The tree with each leaf moved to its place on the mesh."""
  return jax.tree.map(jax.device_put, tree, shardings(tree, mesh))


def dotted(path: tuple[Any, ...]) -> str:
  """A key path as `text.layers.mlp.up.kernel`, without nnx's closing `value`."""
  names = [str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", "")))) for key in path]
  return ".".join(names[:-1] if names[-1] == "value" else names)
