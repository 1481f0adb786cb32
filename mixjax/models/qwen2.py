"""Qwen2, the language model (arXiv:2407.10671): one implementation for toy proxies and for 7B."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from mixjax.models import attention, layers

# Fields that say how a model runs, not what it is: no checkpoint carries them.
RUNNING = ("remat", "unroll", "dtype", "attention")


@dataclasses.dataclass(frozen=True)
class Qwen2Config:
  """Sizes of a Qwen2 model and how to run it."""

  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_hidden_layers: int
  num_attention_heads: int
  num_key_value_heads: int
  rope_theta: float = 1e6
  rms_norm_eps: float = 1e-6
  tie_word_embeddings: bool = True
  remat: str | None = None  # a policy of jax.checkpoint_policies
  unroll: int = 1  # layers in one turn of the scan
  dtype: str = "float32"  # of activations; parameters are float32
  attention: str = "xla"  # what computes it: see models/attention.py

  def __post_init__(self):
    if self.hidden_size % (2 * self.num_attention_heads):
      raise ValueError(
        f"hidden_size={self.hidden_size} does not give {self.num_attention_heads} heads of even "
        "width: make it a multiple of 2 * num_attention_heads"
      )
    if self.num_attention_heads % self.num_key_value_heads:
      raise ValueError(
        f"num_attention_heads={self.num_attention_heads} is not a multiple of "
        f"num_key_value_heads={self.num_key_value_heads}"
      )

  @property
  def head_dim(self) -> int:
    return self.hidden_size // self.num_attention_heads

  @classmethod
  def from_hf(cls, config: dict[str, Any], **running: Any) -> "Qwen2Config":
    """Reads a Hugging Face `config.json` of either layout; `running` sets the fields of RUNNING.

    Raises ValueError for a variant that this model does not compute.
    """
    config = {**HF_DEFAULTS, **config}
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    wanted = {
      "model_type": (config["model_type"], "qwen2"),
      "hidden_act": (config["hidden_act"], "silu"),
      "use_sliding_window": (config["use_sliding_window"], False),
      "rope type": (rope.get("rope_type", rope.get("type", "default")), "default"),
    }
    odd = [
      f"{k} is {v!r}; only {good!r} is supported" for k, (v, good) in wanted.items() if v != good
    ]
    if odd:
      raise ValueError("\n".join(odd))
    names = {field.name for field in dataclasses.fields(cls)} - {"rope_theta", *RUNNING}
    theta = rope.get("rope_theta", config.get("rope_theta", 1e4))
    made = cls(**{name: config[name] for name in names}, rope_theta=float(theta), **running)
    if config.get("head_dim") not in (None, made.head_dim):
      raise ValueError(f"head_dim={config['head_dim']} is not hidden_size / num_attention_heads")
    return made

  def to_hf(self) -> dict[str, Any]:
    """The `config.json` of a Qwen2ForCausalLM, readable by transformers 4 and 5."""
    sizes = dataclasses.asdict(self)
    for name in RUNNING:
      del sizes[name]
    return {
      "architectures": ["Qwen2ForCausalLM"],
      "model_type": "qwen2",
      "hidden_act": "silu",
      "use_sliding_window": False,
      "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
      **sizes,
    }


# What transformers assumes for a key that config.json leaves out.
HF_DEFAULTS = {
  "model_type": "qwen2",
  "vocab_size": 151936,
  "hidden_size": 4096,
  "intermediate_size": 22016,
  "num_hidden_layers": 32,
  "num_attention_heads": 32,
  "num_key_value_heads": 32,
  "hidden_act": "silu",
  "rms_norm_eps": 1e-6,
  "tie_word_embeddings": False,
  "use_sliding_window": False,
}


class Cache(NamedTuple):
  """Keys and values of every layer; the slot of a token is its place in the padded row.

  A head's slots stand together, as the products of attention read them.
  """

  keys: Float[Array, "*l b k s h"]
  values: Float[Array, "*l b k s h"]


class Attention(nnx.Module):
  """Grouped-query attention with biases on queries, keys and values."""

  def __init__(self, config: Qwen2Config, *, rngs: nnx.Rngs):
    sizes = dict(
      d=config.hidden_size,
      n=config.num_attention_heads,
      k=config.num_key_value_heads,
      h=config.head_dim,
    )
    self.q = layers.Einsum("zd,dnh->znh", bias=True, rngs=rngs, **sizes)
    self.k = layers.Einsum("zd,dkh->zkh", bias=True, rngs=rngs, **sizes)
    self.v = layers.Einsum("zd,dkh->zkh", bias=True, rngs=rngs, **sizes)
    self.o = layers.Einsum("znh,nhd->zd", rngs=rngs, **sizes)

  def __call__(self, x, angles, attend, cache=None, start=None):
    """Output and the cache, if there is one, after x filled its slots from `start`."""
    q = layers.rotate(self.q(x), angles)
    k = layers.rotate(self.k(x), angles)
    v = self.v(x)
    if cache is not None:
      new = Cache(k.swapaxes(1, 2), v.swapaxes(1, 2))
      cache = jax.tree.map(
        lambda old, new: jax.lax.dynamic_update_slice_in_dim(
          layers.split_like(old, new), new, start, axis=2
        ),
        cache,
        new,
      )
      k, v = (x.swapaxes(1, 2) for x in cache)
    y = attend(q, k, v)
    return self.o(y), cache


class FeedForward(nnx.Module):
  """SwiGLU."""

  def __init__(self, config: Qwen2Config, *, rngs: nnx.Rngs):
    sizes = dict(d=config.hidden_size, f=config.intermediate_size)
    self.gate = layers.Einsum("zd,df->zf", rngs=rngs, **sizes)
    self.up = layers.Einsum("zd,df->zf", rngs=rngs, **sizes)
    self.down = layers.Einsum("zf,fd->zd", rngs=rngs, **sizes)

  def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
    return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Block(nnx.Module):
  """One pre-norm decoder layer."""

  def __init__(self, config: Qwen2Config, *, rngs: nnx.Rngs):
    self.attention_norm = layers.RMSNorm(config.hidden_size, config.rms_norm_eps)
    self.attention = Attention(config, rngs=rngs)
    self.mlp_norm = layers.RMSNorm(config.hidden_size, config.rms_norm_eps)
    self.mlp = FeedForward(config, rngs=rngs)

  def __call__(self, x, angles, attend, cache=None, start=None):
    y, kept = self.attention(self.attention_norm(x), angles, attend, cache, start)
    x = x + y
    return x + self.mlp(self.mlp_norm(x)), kept


class Qwen2(nnx.Module):
  """Qwen2ForCausalLM. The decoder layers are one stacked block, scanned."""

  def __init__(self, config: Qwen2Config, *, rngs: nnx.Rngs):
    self.config = config
    table = (config.vocab_size, config.hidden_size)
    self.embedding = layers.normal(rngs, table, config.hidden_size)
    blocks = rngs.split(config.num_hidden_layers)
    self.layers = jax.vmap(lambda one: Block(config, rngs=one))(blocks)
    self.norm = layers.RMSNorm(config.hidden_size, config.rms_norm_eps)
    tied = config.tie_word_embeddings
    self.head = None if tied else layers.normal(rngs, table, config.hidden_size)

  def embed(self, ids: Int[Array, "b t"]) -> Float[Array, "b t d"]:
    """Token embeddings; NaN for an id outside the vocabulary."""
    return layers.embed(self.embedding, ids, jnp.dtype(self.config.dtype))

  def __call__(
    self,
    x: Float[Array, "b t d"],
    positions: Int[Array, "#b t"],
    mask: Bool[Array, "b t"] | None = None,
    segments: Int[Array, "b t"] | None = None,
  ) -> Float[Array, "b t d"]:
    """Hidden states after the final norm; tokens where `mask` is false are never looked at.

    A packed row has `segments`, 0 for padding, and positions that start anew in each: its tokens
    see those of their own segment alone.
    """
    config = self.config
    angles = layers.rotary_angles(positions, config.head_dim, config.rope_theta)
    attend = attention.causal(x.shape[1], mask, segments, config.attention)

    def body(x, inputs):
      (block,) = inputs
      return block(x, angles, attend)[0], None

    x = x.astype(config.dtype)
    x, _ = layers.scan_layers(body, x, self.layers, remat=config.remat, unroll=config.unroll)
    return self.norm(x)

  def table(self, dtype: jnp.dtype, tokens: int | None = None) -> Float[Array, "v d"]:
    """The rows that score each token, in the type of the computation.

    Where fewer `tokens` than these are to be scored, it is less to send all tokens to the table's
    slices than the table to the tokens: the vocabulary is then split over `data` too.
    """
    table = self.embedding if self.head is None else self.head
    if tokens is not None and tokens < table.shape[0]:
      split = layers.spread(table, dtype)
      if split is not None:
        return split
    return layers.gathered(table, dtype, for_product=True)

  def logits(
    self, hidden: Float[Array, "*b d"], table: Float[Array, "v d"] | None = None
  ) -> Float[Array, "*b v"]:
    """Next-token logits, float32; a `table` at hand spares making it anew."""
    if table is None:
      table = self.table(hidden.dtype)
    out = layers.sharding_with(hidden, layers.axes_of(table)[0], keep=-1)
    return jnp.einsum(
      "...d,vd->...v", hidden, table, preferred_element_type=jnp.float32, out_sharding=out
    )

  def init_cache(self, batch: int, length: int) -> Cache:
    """An empty cache for rows of `length` slots."""
    config = self.config
    shape = (config.num_hidden_layers, batch, config.num_key_value_heads, length, config.head_dim)
    return Cache(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype))

  def decode(
    self,
    x: Float[Array, "b t d"],
    positions: Int[Array, "#b t"],
    cache: Cache | list[Cache],
    start: int | Int[Array, ""],
    mask: Bool[Array, "b s"],
    blocks: list[Block] | None = None,
  ) -> tuple[Float[Array, "b t d"], Cache | list[Cache]]:
    """Hidden states of t new tokens that fill cache slots start .. start + t - 1.

    `mask` is false for slots of padding; slots past those of x may say anything. The whole prompt
    at start = 0 is the prefill; one token at a time is decoding, with what `for_tokens` gives.
    """
    config = self.config
    angles = layers.rotary_angles(positions, config.head_dim, config.rope_theta)
    slots = jnp.arange(mask.shape[1])
    causal = slots[None, :] <= start + jnp.arange(x.shape[1])[:, None]
    attend = functools.partial(layers.attend, mask=causal[None, None] & mask[:, None, None, :])

    def body(x, inputs):
      block, kept = inputs
      return block(x, angles, attend, kept, start)

    x = x.astype(config.dtype)
    blocks = self.layers if blocks is None else blocks
    x, cache = layers.scan_layers(body, x, blocks, cache, remat=None, unroll=config.unroll)
    return self.norm(x), cache

  def for_tokens(self, cache: Cache) -> tuple[list[Block] | None, Cache | list[Cache]]:
    """The `blocks` and the cache to `decode` one token after another with, made before that loop.

    XLA for CPUs copies each layer's weights and cache out of the stack, for every token: two fifths
    of its time with 54 million parameters. So there the layers are taken apart beforehand, at the
    price of their size in memory; other compilers read them where they are.
    """
    if attention.platform() != "cpu":
      return None, cache
    return layers.unstacked(self.layers), layers.unstacked(cache)
