"""Collectives counted in programs that XLA compiled for 8 devices, and in a TPU's form of them."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from mixjax.models import mesh as mesh_lib
from mixjax.training import collectives
from mixjax.training.collectives import Collectives

KIB = 1024


def compiled(function, *shape):
  """The text of `function` mapped over the rows of a float32 array, split over 8 devices."""
  mesh = mesh_lib.make_mesh(8, 1)
  with jax.set_mesh(mesh):
    mapped = jax.shard_map(function, in_specs=P("data"), out_specs=P("data"), check_vma=False)
    rows = jax.sharding.NamedSharding(mesh, P("data"))
    x = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=rows)
    return jax.jit(mapped).lower(x).compile().as_text()


def gather(x):
  return jax.lax.all_gather(x, "data", tiled=True)[: x.shape[0]] + x


def test_each_kind_is_counted_with_what_a_chip_sends():
  """Each device has 8 KiB: a row of 2048 numbers."""
  programs = {
    "all-reduce": (lambda x: jax.lax.psum(x, "data"), 2 * 7 * KIB),
    "all-gather": (gather, 7 * 8 * KIB),
    "all-to-all": (
      lambda x: jax.lax.all_to_all(x, "data", 1, 0, tiled=True).reshape(1, -1),
      7 * KIB,
    ),
    "reduce-scatter": (
      lambda x: jax.lax.psum_scatter(x[0], "data", tiled=True)[None],
      7 * KIB,
    ),
    "collective-permute": (
      lambda x: jax.lax.ppermute(x, "data", [(i, (i + 1) % 8) for i in range(8)]),
      8 * KIB,
    ),
  }
  for kind, (function, size) in programs.items():
    assert collectives.read(compiled(function, 8, 2048)) == {kind: Collectives(1, size)}, kind


def test_a_loop_counts_once_for_each_turn_and_nested_loops_multiply():
  def inner(x, _):
    return jnp.sin(jax.lax.psum(x, "data")), None

  def outer(x, _):
    return jax.lax.scan(inner, x, None, length=3)[0], None

  once = jax.jit(functools.partial(jax.lax.scan, outer, length=5))
  found = collectives.read(compiled(lambda x: once(x, None)[0], 8, 2048))
  assert found == {"all-reduce": Collectives(15, 15 * 2 * 7 * KIB)}


TPU = """HloModule jit_step, is_scheduled=true

%add (x: bf16[], y: bf16[]) -> bf16[] {
  ROOT %sum = bf16[] add(%x, %y)
}

%all-reduce-scatter.2 (input: bf16[1024,8]) -> bf16[256,8] {
  %all-reduce.4 = bf16[1024,8]{1,0:T(8,128)(2,1)} all-reduce(%pad), channel_id=9, \
replica_groups={{0,2,4,6},{1,3,5,7}}, use_global_device_ids=true, to_apply=%add
  ROOT %dynamic-slice.1 = bf16[256,8]{1,0} dynamic-slice(%all-reduce.4, %i), dynamic_slice_sizes={}
}

%async_collective_fusion.1 (p: bf16[64,8]) -> (bf16[64,8], bf16[512,8]) {
  %all-gather.1 = bf16[512,8]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=3, \
replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0','axis_1'}, dimensions={0}
}

%async_collective_fusion.2 (p: bf16[64,8]) -> (bf16[64,8], bf16[512,8]) {
  %all-gather.2 = bf16[512,8]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=3, \
replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0','axis_1'}, dimensions={0}
}

%body.1 (p: (s32[], bf16[64,8])) -> (s32[], bf16[64,8]) {
  %start = (bf16[64,8], bf16[512,8]) fusion(%x), kind=kCustom, calls=%async_collective_fusion.1
  %done = (bf16[64,8], bf16[512,8]) fusion(%start), kind=kOutput, calls=%async_collective_fusion.2
  %scattered = bf16[256,8]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.2
}

%condition.1 (p: (s32[], bf16[64,8])) -> pred[] {
  %bound = s32[]{:T(128)} constant(28), metadata={op_name="jit(step)/while/cond/lt"}
  ROOT %lt = pred[]{:T(512)} compare(%i, %bound), direction=LT
}

ENTRY %main.1 (p: bf16[64,8]) -> bf16[64,8] {
  %while.1 = (s32[], bf16[64,8]) while(%tuple), condition=%condition.1, body=%body.1
  %some = bf16[16,8]{1,0} all-gather(%p), channel_id=12, dimensions={0}, \
replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0':(2)2}
}
"""


def test_a_tpus_fusions_of_one_channel_are_one_collective():
  """Its loops note no count, and a reduce-scatter is an all-reduce within a fusion of that name."""
  assert collectives.read(TPU) == {
    "all-gather": Collectives(29, 28 * 512 * 8 * 2 * 7 // 8 + 16 * 8 * 2 // 2),
    "reduce-scatter": Collectives(28, 28 * 1024 * 8 * 2 * 3 // 4),
  }


def test_other_text_is_refused():
  with pytest.raises(ValueError, match="no ENTRY computation"):
    collectives.read("module @jit_step {}")
