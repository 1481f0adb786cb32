"""Layers shared by the language model and CLIP.

Axes, in einsum letters and in annotations: b batch, t query position, s key position, z batch and
position together, d width, n heads, k key/value heads, h head width, r pairs of a head that rotate
together, f feed-forward width, v vocabulary, p patches, c input channels.

Every layer computes in the type of its input; parameters stay float32. Under an explicit mesh
weights may be stored split over `data`; they are gathered just before use and keep only their
`model` axis.
"""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PyTree

Layer = TypeVar("Layer", bound=nnx.Module)
Axis = str | tuple[str, ...] | None  # the mesh axis, or axes, that split a dimension
FLOATS = ("float32", "bfloat16", "float16")


def sharding_with(x: Array, *axes: Axis, keep: int | None = None) -> NamedSharding | None:
  """The sharding of x's first `keep` axes (default all), then `axes`; None if no explicit mesh."""
  sharding = jax.typeof(x).sharding
  if sharding.mesh.empty or not sharding.mesh.are_all_axes_explicit:
    return None
  return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec.partitions[:keep], *axes))


def axes_of(x: Array) -> Sequence[Axis]:
  """The mesh axis of each of x's axes."""
  return (*jax.typeof(x).sharding.spec.partitions, *[None] * x.ndim)[: x.ndim]


def flat(x: Array, keep: int) -> Array:
  """x with all but its last `keep` axes merged; only the first of the merged ones may be split."""
  kept = axes_of(x)[x.ndim - keep :]
  shape = (-1, *x.shape[x.ndim - keep :])
  return jnp.reshape(x, shape, out_sharding=sharding_with(x, *kept, keep=1))


def undivided(x: Array) -> Array:
  """x with its last axis whole on each device; x itself without an explicit mesh."""
  sharding = sharding_with(x, None, keep=-1)
  return x if sharding is None else jax.sharding.reshard(x, sharding)


def split_like(x: Array, other: Array) -> Array:
  """x split over devices as `other` is; x itself without an explicit mesh."""
  sharding = sharding_with(other)
  return x if sharding is None else jax.sharding.reshard(x, sharding)


def gathered(weight: nnx.Param, dtype: jnp.dtype, *, for_product: bool = False) -> Array:
  """The weight in the type of the computation, gathered over `data`, which only stores it.

  If matrix products alone use it (`for_product`) its gradient is summed where it is scattered to
  the slices, which sends half of what summing it whole on every device does.
  """
  value = weight[...].astype(dtype)
  stored = sharding_with(value)
  if stored is None or "data" not in stored.spec:
    return value
  axes = (None if axis == "data" else axis for axis in stored.spec)
  used = PartitionSpec(*axes, reduced={"data"} if for_product else set())
  return jax.sharding.reshard(value, NamedSharding(stored.mesh, used))


def spread(weight: nnx.Param, dtype: jnp.dtype) -> Array | None:
  """The weight with `data` moved from its last axis to its first; None where that cannot be."""
  value = weight[...].astype(dtype)
  stored = sharding_with(value)
  if stored is None or stored.spec[-1] != "data":
    return None
  first = tuple(axis for axis in (stored.spec[0], "data") if axis is not None)
  if value.shape[0] % math.prod(stored.mesh.shape[axis] for axis in first):
    return None
  split = PartitionSpec(first, *[None] * (value.ndim - 1))
  return jax.sharding.reshard(value, NamedSharding(stored.mesh, split))


def split_as(x: Array, *axes: Axis) -> Array:
  """x split over these mesh axes; x itself without an explicit mesh."""
  split = sharding_with(x, *axes, keep=0)
  return x if split is None else jax.sharding.reshard(x, split)


def everywhere(x: Array) -> Array:
  """x whole on every device; x itself without an explicit mesh."""
  return split_as(x, *[None] * x.ndim)


def normal(rngs: nnx.Rngs, shape: Sequence[int], fan_in: int) -> nnx.Param:
  """Normal weights of variance 1 / fan_in."""
  return nnx.Param(jax.random.normal(rngs.params(), shape) * fan_in**-0.5)


class Einsum(nnx.Module):
  """`einsum(equation, x, kernel) + bias`, a dense layer with named axes such as `zd,dnh->znh`.

  z stands for all leading axes of x at once: on a CPU, XLA differentiates the product of one tall
  matrix twice as fast as that of a batch. The result is split over devices as the first axis of x
  and the outputs of the kernel are.
  """

  def __init__(self, equation: str, *, bias: bool = False, rngs: nnx.Rngs, **sizes: int):
    inputs, rest = equation.split(",")
    weights, outputs = rest.split("->")
    self.equation = equation
    self.made = tuple(weights.index(axis) for axis in outputs[1:])
    self.inputs = len(inputs) - 1
    fan_in = math.prod(sizes[axis] for axis in inputs[1:])
    self.kernel = normal(rngs, [sizes[axis] for axis in weights], fan_in)
    self.bias = nnx.Param(jnp.zeros([sizes[axis] for axis in outputs[1:]])) if bias else None

  def __call__(self, x: Array) -> Array:
    kernel = gathered(self.kernel, x.dtype, for_product=True)
    leading, made = x.shape[: x.ndim - self.inputs], [kernel.shape[axis] for axis in self.made]
    axes = axes_of(kernel)
    split = [axes[axis] for axis in self.made]
    y = jnp.einsum(
      self.equation, flat(x, self.inputs), kernel, out_sharding=sharding_with(x, *split, keep=1)
    )
    if self.bias is not None:
      y = y + gathered(self.bias, x.dtype)[None]
    rest = [None] * (len(leading) - 1)
    return jnp.reshape(y, (*leading, *made), out_sharding=sharding_with(x, *rest, *split, keep=1))


class RMSNorm(nnx.Module):
  """Divides by the root mean square, in float32."""

  def __init__(self, size: int, epsilon: float):
    self.epsilon = epsilon
    self.scale = nnx.Param(jnp.ones(size))

  def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.epsilon)
    return y.astype(x.dtype) * gathered(self.scale, x.dtype)[None, None]


class LayerNorm(nnx.Module):
  """Standardises, in float32, then scales and shifts."""

  def __init__(self, size: int, epsilon: float):
    self.epsilon = epsilon
    self.scale = nnx.Param(jnp.ones(size))
    self.bias = nnx.Param(jnp.zeros(size))

  def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.epsilon)
    leading = (None,) * (x.ndim - 1)
    scale, bias = gathered(self.scale, x.dtype), gathered(self.bias, x.dtype)
    return y.astype(x.dtype) * scale[leading] + bias[leading]


def rotary_angles(
  positions: Int[Array, "#b t"], head_dim: int, theta: float
) -> tuple[Float[Array, "#b t 1 r"], Float[Array, "#b t 1 r"]]:
  """Cosine and sine of the rotary angles, float32 whatever the model computes in.

  bfloat16 cannot count past 256, so positions must not pass through it.
  """
  frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
  angles = positions.astype(jnp.float32)[:, :, None, None] * frequencies[None, None, None]
  return jnp.cos(angles), jnp.sin(angles)


def rotate(
  x: Float[Array, "b t n h"],
  angles: tuple[Float[Array, "#b t 1 r"], Float[Array, "#b t 1 r"]],
) -> Float[Array, "b t n h"]:
  """Applies rotary position embeddings; the two halves of a head form the rotated pairs."""
  cos, sin = angles
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
  return turned.astype(x.dtype)


def embed(table: nnx.Param, ids: Array, dtype: jnp.dtype) -> Float[Array, "b t d"]:
  """Rows of a table. An id outside the table gives NaN, so that it cannot pass unnoticed.

  A table that `data` stores stays where it is: each device looks up all ids in its slice of the
  width, and the devices exchange what they found, which is far less than the table.
  """
  rows = sharding_with(ids, None)
  stored = sharding_with(table[...])
  width = None if stored is None else axes_of(table[...])[1]
  options = dict(mode="fill", fill_value=jnp.nan)
  if width is None:
    return gathered(table, dtype).at[ids].get(out_sharding=rows, **options)
  found = NamedSharding(stored.mesh, PartitionSpec(None, None, width))
  x = table[...].at[everywhere(ids)].get(out_sharding=found, **options).astype(dtype)
  return jax.sharding.reshard(x, rows)


def causal_mask(length: int, valid: Bool[Array, "b s"] | None) -> Bool[Array, "b 1 t s"]:
  """Position t may look at s <= t where s is valid."""
  causal = jnp.tril(jnp.ones((length, length), bool))[None, None]
  return causal if valid is None else causal & valid[:, None, None, :]


def attend(
  q: Float[Array, "b t n h"],
  k: Float[Array, "b s k h"],
  v: Float[Array, "b s k h"],
  mask: Bool[Array, "#b 1 t s"] | None,
) -> Float[Array, "b t n h"]:
  """Softmax attention in which n / k query heads share a key head, with float32 weights.

  The group's queries are stacked as if they were one longer text, and weights are normalised after
  they have met the values: on a CPU a third faster than jax.nn.dot_product_attention. Queries are
  split over devices as keys are.
  """
  b, t, n, h = q.shape
  s, heads = k.shape[1:3]
  group = n // heads
  batch, _, over, _ = axes_of(k)

  def reshape(x, shape, *axes):
    return jnp.reshape(x, shape, out_sharding=sharding_with(k, *axes, keep=0))

  q = reshape(split_like(q, k) * h**-0.5, (b, t, heads, group, h), batch, None, over, None, None)
  q = reshape(q.transpose(0, 2, 3, 1, 4), (b, heads, group * t, h), batch, over, None, None)
  scores = jnp.einsum("bkxh,bskh->bkxs", q, k, preferred_element_type=jnp.float32)
  scores = reshape(scores, (b, heads, group, t, s), batch, over, None, None, None)
  if mask is not None:
    scores = jnp.where(mask[:, :, None], scores, jnp.finfo(jnp.float32).min)
  top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
  weights = jnp.exp(scores - top)
  total = reshape(jnp.sum(weights, axis=-1), (b, heads, group * t, 1), batch, over, None, None)
  weights = reshape(weights.astype(v.dtype), (b, heads, group * t, s), batch, over, None, None)
  y = jnp.einsum("bkxs,bskh->bkxh", weights, v, preferred_element_type=jnp.float32) / total
  y = reshape(y.astype(v.dtype), (b, heads, group, t, h), batch, over, None, None, None)
  return reshape(y.transpose(0, 3, 1, 2, 4), (b, t, n, h), batch, None, over, None)


def check_running(remat: str | None, **dtypes: str) -> None:
  """Raises ValueError for a policy or a type that does not exist, before anything is loaded."""
  if remat is not None and not hasattr(jax.checkpoint_policies, remat):
    raise ValueError(
      f"remat={remat!r} is no policy of jax.checkpoint_policies: give nothing_saveable, another "
      "one, or none"
    )
  for name, dtype in dtypes.items():
    if dtype not in FLOATS:
      raise ValueError(f"{name}={dtype!r} is none of {', '.join(FLOATS)}")


def scan_layers(
  body: Callable,
  carry: Array,
  layers: Layer | list[Layer],
  *inputs: PyTree[Array],
  remat: str | None,
  unroll: int,
) -> tuple[Array, PyTree[Array]]:
  """`lax.scan` of `body(carry, (layer, *inputs)) -> (carry, output)` over layers stacked on axis 0.

  Layers and inputs may also be lists, as `unstacked` makes them: a list of outputs comes back.
  `remat` names a policy of `jax.checkpoint_policies` (None keeps every activation).
  """
  if remat is not None:
    body = jax.checkpoint(body, policy=getattr(jax.checkpoint_policies, remat), prevent_cse=False)
  if not isinstance(layers, list):
    return jax.lax.scan(body, carry, (layers, *inputs), unroll=unroll)
  outputs = []
  for each in zip(layers, *inputs, strict=True):
    carry, output = body(carry, each)
    outputs.append(output)
  return carry, outputs


def unstacked(stack: PyTree[Array]) -> list[PyTree[Array]]:
  """What is stacked on axis 0 of all arrays of `stack`, one by one."""
  count = jax.tree.leaves(stack)[0].shape[0]
  return [jax.tree.map(lambda leaf, i=i: leaf[i], stack) for i in range(count)]
