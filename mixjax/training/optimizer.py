"""AdamW under a warm-up and cosine schedule, as the LLaVA-NeXT mid-training recipe has it."""

import dataclasses

import jax
import optax


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """`warmup` is a share of all steps; weight decay spares vectors (norms and biases)."""

  learning_rate: float = 1e-3
  warmup: float = 0.03
  weight_decay: float = 0.0
  clip: float = 1.0
  b2: float = 0.98


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
  """The learning rate ends at a tenth of its peak after `steps` updates."""
  warmup = max(1, round(config.warmup * steps))
  schedule = optax.warmup_cosine_decay_schedule(
    0.0, config.learning_rate, warmup, max(steps, warmup + 1), 0.1 * config.learning_rate
  )
  return optax.chain(
    optax.clip_by_global_norm(config.clip),
    optax.adamw(
      schedule,
      b2=config.b2,
      weight_decay=config.weight_decay,
      mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
    ),
  )
