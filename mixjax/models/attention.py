"""Causal attention through one door; a name says what computes it.

`xla` is plain array code and runs anywhere; it holds a layer's scores, which grow with the square
of the row. `splash` is the Pallas kernel for TPUs and `cudnn` the fused kernel of NVIDIA GPUs:
neither ever holds the scores. All give the same values.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mixjax.models import layers

IMPLEMENTATIONS = ("xla", "splash", "cudnn")
SPLASH_BLOCKS = (512, 256, 128)  # tokens in a tile; the largest that divides the row

Attend = Callable[
  [Float[Array, "b t n h"], Float[Array, "b t k h"], Float[Array, "b t k h"]],
  Float[Array, "b t n h"],
]


def platform() -> str:
  """`cpu`, `gpu` or `tpu`: what the mesh in use is made of, or else the default device."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return jax.default_backend() if device is None else device.platform


def best(platform: str, dtype: str) -> str:
  """The implementation for a long row on `cpu`, `gpu` (or `cuda`) or `tpu`.

  cuDNN's kernel is of 16-bit numbers alone.
  """
  if platform == "tpu":
    return "splash"
  return "cudnn" if platform in ("gpu", "cuda") and dtype != "float32" else "xla"


def causal(
  length: int,
  valid: Bool[Array, "b t"] | None = None,
  segments: Int[Array, "b t"] | None = None,
  implementation: str = "xla",
) -> Attend:
  """Attention `(q, k, v) -> y` for rows of `length` tokens, to be used by one layer after another.

  A token sees itself and the earlier tokens of its own segment that are `valid`; segment 0 is
  padding, whose own values mean nothing. Without segments a row is one. n / k query heads share a
  key head. Raises ValueError for an unknown implementation, and for one that this platform or this
  length does not have.
  """
  if implementation == "xla":
    return functools.partial(layers.attend, mask=visible(length, valid, segments))
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(f"attention={implementation!r}: choose one of {', '.join(IMPLEMENTATIONS)}")
  if valid is not None:
    segments = valid.astype(jnp.int32) if segments is None else jnp.where(valid, segments, 0)
  if implementation == "splash":
    if length % SPLASH_BLOCKS[-1]:
      raise ValueError(
        f"attention='splash' reads rows in tiles of {SPLASH_BLOCKS[-1]} tokens, and {length} is no "
        "multiple: pad the rows, or use attention='xla'"
      )
    return functools.partial(_on_each_device, _splash, segments=segments)
  if platform() not in ("gpu", "cuda"):
    raise ValueError(f"attention='cudnn' needs an NVIDIA GPU, not {platform()}: use 'xla'")
  return functools.partial(_on_each_device, _cudnn, segments=segments)


def visible(
  length: int, valid: Bool[Array, "b t"] | None, segments: Int[Array, "b t"] | None
) -> Bool[Array, "#b 1 t s"]:
  """Position t may look at s <= t of its own segment where s is valid."""
  mask = layers.causal_mask(length, valid)
  if segments is None:
    return mask
  return mask & (segments[:, None, :, None] == segments[:, None, None, :])


def _on_each_device(function, q, k, v, segments):
  """`function(q, k, v, segments)` on the rows and heads that each device has: no compiler could
  part a kernel among devices."""
  split = layers.sharding_with(k)
  if split is None:
    return function(q, k, v, segments)
  rows = jax.sharding.PartitionSpec(split.spec[0])
  if segments is not None:
    segments = jax.sharding.reshard(segments, jax.sharding.NamedSharding(split.mesh, rows))
  return jax.shard_map(
    function,
    in_specs=(*[split.spec] * 3, None if segments is None else rows),
    out_specs=split.spec,
    check_vma=False,
  )(layers.split_like(q, k), k, v, segments)


def _splash(q, k, v, segments):
  """Off a TPU the kernel is emulated: slow, for tests."""
  # Experimental in jax: whoever computes without it must not depend on where it lives.
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask

  length, heads = q.shape[1:3]
  block = next(size for size in SPLASH_BLOCKS if length % size == 0)
  sizes = dict.fromkeys(
    ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq"), block
  )
  kernel = splash.make_splash_mha(
    splash_mask.MultiHeadMask([splash_mask.CausalMask((length, length))] * heads),
    block_sizes=splash.BlockSizes(**{f"block_{name}": size for name, size in sizes.items()}),
    head_shards=1,
    q_seq_shards=1,
    interpret=platform() != "tpu",
  )

  def row(q, k, v, segments):
    ids = None if segments is None else splash.SegmentIds(segments, segments)
    return kernel(q, k, v, segment_ids=ids)

  q = q * q.shape[-1] ** -0.5
  q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
  return jax.vmap(row)(q, k, v, segments).swapaxes(1, 2)


def _cudnn(q, k, v, segments):
  """Computes in bfloat16 or float16 only, as the kernel does."""
  mask = None if segments is None else visible(q.shape[1], None, segments)
  return jax.nn.dot_product_attention(
    q, k, v, mask=mask, is_causal=mask is None, implementation="cudnn"
  )
