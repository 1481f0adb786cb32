import pathlib

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from mixjax.models import hf
from mixjax.models import mesh as mesh_lib

GOLDEN = pathlib.Path(__file__).parent / "golden"


def test_memory_of_every_matrix_falls_with_the_mesh():
  model = hf.load_llava(GOLDEN / "llava", tower=False)
  placed = mesh_lib.place(model, mesh_lib.make_mesh(4, 2))
  for (path, whole), leaf in zip(
    jax.tree_util.tree_leaves_with_path(model), jax.tree.leaves(placed), strict=True
  ):
    np.testing.assert_array_equal(whole, leaf)
    share = leaf.addressable_shards[0].data.size / whole.size
    if path[-2].name == "kernel":
      assert share == 1 / 8, mesh_lib.dotted(path)


def test_modules_states_and_optimizers_are_placed_alike():
  model = hf.load_llava(GOLDEN / "llava")
  mesh = mesh_lib.make_mesh(4, 2)
  _, state = nnx.split(model)
  moments = mesh_lib.shardings(optax.adamw(1e-3).init(state), mesh)[0]
  assert moments.count.spec == jax.P()
  for tree in (moments.mu, moments.nu, mesh_lib.shardings(state, mesh)):
    assert jax.tree.leaves(tree) == jax.tree.leaves(mesh_lib.shardings(model, mesh))


def test_a_dimension_that_does_not_divide_stays_whole():
  mesh = mesh_lib.make_mesh(2, 4)
  kernel = mesh_lib.placement("layers.attention.k.kernel", (2, 16, 2, 4), mesh)
  assert kernel.spec == jax.P(None, "data", None, None)
  assert mesh_lib.placement("embedding", (41, 15), mesh).spec == jax.P(None, None)


def test_a_path_without_a_rule_is_named():
  with pytest.raises(ValueError, match=r"text\.gadget \(3,\)"):
    mesh_lib.placement("text.gadget", (3,), mesh_lib.make_mesh(1, 1))


def test_a_mesh_larger_than_the_machine_is_refused():
  with pytest.raises(ValueError, match="16x2 mesh needs 32 devices and there are 8"):
    mesh_lib.make_mesh(16, 2)
