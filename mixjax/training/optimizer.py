"""AdamW under a warm-up and cosine schedule, as the LLaVA-NeXT mid-training recipe has it."""

import dataclasses
import functools

import jax
import optax
from jaxtyping import PyTree

from mixjax.models import mesh as mesh_lib


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """`warmup` is a share of all steps; weight decay spares norms and biases.

  The learning rate ends at the share `final` of its peak. `rates` gives parts of the model (vision,
  projector, text) a peak of their own; at 0 a part stays as it is and needs no moments.
  """

  learning_rate: float = 1e-3
  warmup: float = 0.03
  weight_decay: float = 0.0
  clip: float = 1.0
  b2: float = 0.98
  final: float = 0.1
  rates: tuple[tuple[str, float], ...] = ()

  @property
  def frozen(self) -> tuple[str, ...]:
    """The parts that do not move."""
    return tuple(part for part, rate in self.rates if rate == 0)


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
  """AdamW for `steps` updates of a model's parameters."""
  warmup = max(1, round(config.warmup * steps))

  def adamw(peak: float) -> optax.GradientTransformation:
    schedule = optax.warmup_cosine_decay_schedule(
      0.0, peak, warmup, max(steps, warmup + 1), config.final * peak
    )
    return optax.adamw(schedule, b2=config.b2, weight_decay=config.weight_decay, mask=_decays)

  move = adamw(config.learning_rate)
  if config.rates:
    rates = dict(config.rates)
    parts = {part: adamw(rate) if rate else optax.set_to_zero() for part, rate in rates.items()}

    def part_of(path, _):
      name = mesh_lib.dotted(path).split(".")[0]
      return name if name in parts else "others"

    label = functools.partial(jax.tree_util.tree_map_with_path, part_of)
    move = optax.partition({**parts, "others": move}, label)
  return optax.chain(optax.clip_by_global_norm(config.clip), move)


def _decays(params: PyTree) -> PyTree[bool]:
  return jax.tree_util.tree_map_with_path(
    lambda path, _: mesh_lib.dotted(path).split(".")[-1] not in ("scale", "bias"), params
  )
