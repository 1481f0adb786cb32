"""The true train step compiled for chips that are not here: does it fit, and what does it send?

Nothing is computed and no parameter exists: shapes with shardings are lowered and compiled ahead of
time. Memory is the compiler's own account, communication is counted in its program, FLOPs are the
model's arithmetic, and the seconds are an estimate whose assumptions are written beside it.
"""

import dataclasses
import math
import re
import time
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mixjax.data.packed import PackedShape
from mixjax.models import attention, layers, sizes
from mixjax.models.llava_next import LlavaNextConfig
from mixjax.training import arithmetic, collectives, step, topology, vlm
from mixjax.training.optimizer import OptimizerConfig, make_optimizer
from mixjax.training.topology import GIB

# Of the chip's peak, what large matrix products reach; and of its links', what a ring reaches.
COMPUTE_SHARE, LINK_SHARE = 0.7, 0.5


@dataclasses.dataclass(frozen=True)
class PlanConfig:
  """What to compile. Axes: the chips that `tensor` leaves over split batch and weights (FSDP)."""

  model: str
  topology: str
  batch: int  # rows over all chips, or of each proxy
  seq: int  # tokens in a row
  vision: str = "clip_l_336"
  image_tokens: int = 2928  # the most that LLaVA-NeXT makes of a picture: 5 tiles
  tiles: int = 5
  tensor: int = 1  # chips that share each matrix product
  remat: str | None = "nothing_saveable"
  loss_chunk: int | None = 512
  attention: str = "auto"
  dtype: str = "bfloat16"
  frozen_tower: bool = False
  accumulate: int = 1  # parts of the rows that pass one after another
  proxies: int = 1  # models trained at once by one program, each on a mixture of its own
  replicated: bool = False  # every chip holds all weights and moments, as in a plain port

  def __post_init__(self):
    for name, known in (("model", sizes.TEXT), ("vision", sizes.VISION)):
      if getattr(self, name) not in known:
        raise ValueError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(known)}")
    layers.check_running(self.remat, dtype=self.dtype)
    for name in ("batch", "seq", "tensor", "accumulate", "proxies", "tiles"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)}: give 1 or more")
    if self.attention == "cudnn" and self.proxies > 1:
      raise ValueError(
        "attention=cudnn: jax's kernel takes no masks of several proxies at once; use attention=xla"
      )
    if not 0 < self.image_tokens < self.seq:
      raise ValueError(f"{self.image_tokens} image tokens leave no text in a row of {self.seq}")
    patches = self.tiles * sizes.VISION[self.vision].num_patches
    if self.image_tokens > 2 * patches:
      raise ValueError(
        f"{self.tiles} tiles with {patches} patches cannot fill {self.image_tokens} image tokens: "
        "give more tiles"
      )

  def llava_next(self, platform: str) -> LlavaNextConfig:
    """The model as it runs on a platform."""
    name = attention.best(platform, self.dtype) if self.attention == "auto" else self.attention
    if name == "cudnn" and self.proxies > 1:
      name = "xla"
    running = dict(remat=self.remat, dtype=self.dtype)
    return LlavaNextConfig(
      text=dataclasses.replace(sizes.TEXT[self.model], attention=name, **running),
      vision=dataclasses.replace(sizes.VISION[self.vision], **running),
      image_token_id=sizes.IMAGE_TOKEN_ID,
    )

  def packed(self, groups: int) -> PackedShape:
    """The batch of one model, the tiles of each row in one of so many groups."""
    return PackedShape(
      rows=self.batch,
      length=self.seq,
      image_tokens=self.image_tokens,
      tiles=self.tiles * self.batch // groups,
      groups=groups,
      side=sizes.VISION[self.vision].image_size,
    )


def lower(config: PlanConfig, mesh: Mesh):
  """(the lowered AdamW step on the mesh, its abstract state, its abstract batch).

  Several proxies have a leading axis in every array, split over the mesh's `proxy`.
  """
  rates = (("vision", 0.0),) if config.frozen_tower else ()
  optimizer = OptimizerConfig(rates=rates)
  tx = make_optimizer(optimizer, steps=1000)
  model = config.llava_next(mesh.devices.flat[0].platform)
  graphdef, state = vlm.abstract_state(model, tx, mesh)
  batch = vlm.abstract_batch(config.packed(mesh.shape["data"] * config.accumulate), mesh)
  down = vlm.slope(graphdef, config.loss_chunk, optimizer.frozen, config.accumulate)
  update = step.descend(down, tx)
  if config.replicated:
    whole = NamedSharding(mesh, PartitionSpec())
    state = jax.tree.map(lambda leaf: leaf.update(sharding=whole), state)
  if config.proxies > 1:

    def several(leaf):
      spec = PartitionSpec("proxy", *leaf.sharding.spec)
      where = NamedSharding(mesh, spec)
      return jax.ShapeDtypeStruct((config.proxies, *leaf.shape), leaf.dtype, sharding=where)

    state, batch = jax.tree.map(several, (state, batch))
    update = jax.vmap(update)
  with jax.set_mesh(mesh):
    return jax.jit(update, donate_argnums=0).lower(state, batch), state, batch


def plan(config: PlanConfig) -> dict[str, Any]:
  """Everything that `plan.json` says. Raises ValueError for what cannot be laid out on the chips.

  A step that does not fit is no error: `fits` is false, and `advice` says what would change that.
  """
  chip, devices = topology.devices(config.topology)
  mesh = topology.make_mesh(devices, config.tensor, config.proxies)
  data = mesh.shape["data"]
  if config.batch % data:
    raise ValueError(
      f"batch={config.batch} rows do not divide among {data} chips: make it a multiple of {data}, "
      f"or give tensor={config.tensor * data // math.gcd(config.batch, data)}"
    )
  if config.batch % (data * config.accumulate):
    raise ValueError(
      f"batch={config.batch} rows make no accumulate={config.accumulate} parts on {data} chips: "
      f"make it a multiple of {data * config.accumulate}"
    )
  model = config.llava_next(devices[0].platform)
  lowered, state, batch = lower(config, mesh)
  held = {
    "parameters": _bytes_on_a_chip(state.params),
    "optimiser": _bytes_on_a_chip(state.opt_state),
    "batch": _bytes_on_a_chip(batch),
  }
  flops = arithmetic.step_flops(
    model.text,
    model.vision,
    batch=config.batch * config.proxies,
    length=config.seq,
    tiles=config.tiles,
    layer=model.feature_layer,
    frozen=config.frozen_tower,
  )
  result = {
    "topology": config.topology,
    "chip": chip.name,
    "chips": len(devices),
    "mesh": dict(mesh.shape),
    "total_parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
    "limit_gib": round(chip.limit_gib, 2),
    "flops": flops,
  }
  begun = time.time()
  sent = None
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    peak = needed_gib(str(error))
    if peak is None:
      raise
    temporaries = peak * GIB - sum(held.values())
  else:
    memory = compiled.memory_analysis()
    # A TPU's program reuses what it donates; others' accounts of the peak leave something out.
    whole = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    tpu = devices[0].platform == "tpu"
    peak = (memory.peak_memory_in_bytes if tpu else whole) / GIB
    temporaries = memory.temp_size_in_bytes
    sent = collectives.read(compiled.as_text())
  held["temporaries"] = temporaries
  if config.proxies > 1:
    # Memory grows with the proxies on a chip, and as many as fit on one fit on each.
    parts = mesh.shape["proxy"]
    here = config.proxies // parts
    result["proxies"] = {
      "planned": config.proxies,
      "gib_each": float(f"{peak / here:.3g}"),
      "fit_about": parts * int(chip.limit_gib / (peak / here)),
    }
  gib = {kind: float(f"{size / GIB:.3g}") for kind, size in held.items()}
  return result | {
    "fits": sent is not None and peak <= chip.limit_gib,
    "peak_gib": float(f"{peak:.4g}"),
    "gib": gib,
    "compile_seconds": round(time.time() - begun, 1),
    "collectives": {kind: found._asdict() for kind, found in (sent or {}).items()},
    **seconds(chip, len(devices), flops, sent),
    "advice": advise(config, model, chip, data, gib, peak),
  }


def seconds(
  chip: topology.Chip,
  chips: int,
  flops: dict[str, Any],
  sent: dict[str, collectives.Collectives] | None,
) -> dict[str, Any]:
  """`step_seconds` and what it is made of; null where the chip's speed is not known."""
  if chip.flops is None or sent is None:
    return {"step_seconds": None, "seconds": None, "assumptions": []}
  compute = flops["hardware"] / chips / (chip.flops * COMPUTE_SHARE)
  links = sum(found.bytes for found in sent.values()) / (chip.link_bytes * LINK_SHARE)
  return {
    "step_seconds": round(max(compute, links), 3),
    "seconds": {"compute": round(compute, 3), "collectives": round(links, 3)},
    "model_flops_utilisation": round(flops["model"] / chips / chip.flops / max(compute, links), 3),
    "assumptions": [
      f"matrix products reach {COMPUTE_SHARE:.0%} of {chip.flops / 1e12:.0f} TFLOP/s",
      f"chips send at {LINK_SHARE:.0%} of {chip.link_bytes / 1e9:.0f} GB/s",
      "communication and computation overlap wholly: the slower of the two counts",
      "never measured on a chip",
    ],
  }


def advise(
  config: PlanConfig,
  model: LlavaNextConfig,
  chip: topology.Chip,
  data: int,
  gib: dict[str, float],
  peak: float,
) -> list[str]:
  """What would make a step that does not fit fit, the cheapest first; nothing for one that does."""
  if peak <= chip.limit_gib:
    return []
  text, rows = model.text, config.batch // (data * config.accumulate)
  advice = []
  if config.replicated:
    advice.append("replicated=false: chips split weights and moments")
  if config.remat != "nothing_saveable":
    advice.append("remat=nothing_saveable: layers keep only what enters them")
  logits = rows * config.seq * text.vocab_size * 4 / config.tensor / GIB
  if config.loss_chunk is None:
    advice.append(f"loss_chunk=512: the logits are {logits:.1f} GiB a chip")
  elif logits * config.loss_chunk / config.seq > 0.1 * chip.limit_gib:
    advice.append(f"loss_chunk={max(128, config.loss_chunk // 4)}: fewer logits at once")
  scores = rows * text.num_attention_heads * config.seq**2 * 4 / config.tensor / GIB
  if config.attention == "xla" and config.seq >= 1024:
    advice.append(f"attention=auto: plain attention has {scores:.1f} GiB of scores a layer")
  if config.proxies > 1:
    advice.append("fewer proxies: see proxies.fit_about")
  if rows > 1:
    advice.append(f"accumulate={config.batch // data}: one row a chip at once in place of {rows}")
    advice.append(f"batch={data * config.accumulate}: one row a chip in place of {rows}")
  state = gib["parameters"] + gib["optimiser"]
  chips = data * config.tensor
  if state > 0.75 * chip.limit_gib:
    wanted = 2 ** math.ceil(math.log2(chips * state / (0.5 * chip.limit_gib)))
    advice.append(
      f"more chips: parameters and optimiser alone are {state:.1f} of {chip.limit_gib:.1f} GiB on "
      f"{chips}; {wanted} would leave half for the rest"
    )
  elif rows == 1 and data > 1 and config.tensor < text.num_key_value_heads:
    advice.append(
      f"tensor={2 * config.tensor}, batch={data // 2 * config.accumulate}: two chips share a row, "
      "at half the batch"
    )
  return advice or [f"more chips than {chips}, or rows shorter than {config.seq}"]


def needed_gib(message: str) -> float | None:
  """What the compiler says a program needs, GiB, from its out-of-memory error; None for others."""
  units = {"K": 2**-20, "M": 2**-10, "G": 1.0, "T": 1024.0}
  for pattern in (r"Used ([\d.]+)([KMGT]) of", r"\(([\d.]+)([KMGT])\) exceeds available"):
    if found := re.search(pattern, message):
      return float(found[1]) * units[found[2]]
  return None


def _bytes_on_a_chip(tree: Any) -> int:
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )
