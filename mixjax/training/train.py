"""The loop: batches in, a trained model out, resumable at any moment with the same bits."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import nnx
from jaxtyping import Array, Float, PyTree

from mixjax.data.loader import Loader
from mixjax.training import step as step_lib
from mixjax.training.checkpoint import Checkpointer
from mixjax.training.loss import Batch
from mixjax.training.metric_writer import MetricWriter
from mixjax.training.optimizer import OptimizerConfig, make_optimizer

Params = PyTree[Float[Array, "..."]]


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """A run of `steps` updates; the batch size is the loader's."""

  steps: int
  optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
  log_every: int = 16
  save_every: int = 0  # steps between checkpoints; 0 keeps none, for runs of seconds
  curve_every: int = 0  # steps between calls of `on_curve`; 0 never
  loss_chunk: int | None = None  # positions whose logits are in memory at once; None: all

  def __post_init__(self):
    for name, least in (("steps", 1), ("log_every", 1), ("save_every", 0)):
      if getattr(self, name) < least:
        raise ValueError(f"{name}={getattr(self, name)}: give {least} or more")


@functools.lru_cache(maxsize=8)
def compiled_step(graphdef: nnx.GraphDef, config: TrainConfig, loss_from: int):
  """(optimiser, jitted step), cached: all runs of one shape in a process share a program."""
  tx = make_optimizer(config.optimizer, config.steps)
  step = step_lib.train_step(graphdef, tx, loss_from, config.loss_chunk)
  return tx, jax.jit(step, donate_argnums=0)


def train(
  graphdef: nnx.GraphDef,
  params: Params,
  loader: Loader,
  config: TrainConfig,
  folder: epath.PathLike,
  loss_from: int,
  on_curve: Callable[[int, Params], dict[str, Any]] | None = None,
  on_step: Callable[[int, float], None] | None = None,
) -> Params:
  """Trains on cached features from `params`, which stay, and returns the final parameters.

  What is written and raised is `fit`'s.
  """
  tx, step = compiled_step(graphdef, config, loss_from)
  state = step_lib.init_state(params, tx)

  def batches(start):
    for batch in loader.dataset(config.steps - start, start=start):
      batch.pop("cell")
      yield batch

  return fit(step, state, lambda: state, batches, config, folder, on_curve, on_step).params


def fit(
  step: step_lib.Update,
  like: step_lib.TrainState,
  start: Callable[[], step_lib.TrainState],
  batches: Callable[[int], Iterable[Batch]],
  config: TrainConfig,
  folder: epath.PathLike,
  on_curve: Callable[[int, Params], dict[str, Any]] | None = None,
  on_step: Callable[[int, float], None] | None = None,
) -> step_lib.TrainState:
  """Steps from `start()` to the end, and returns the final state.

  `like` has the shapes of that state, and its places on a mesh; `batches(i)` are those from batch i
  on. Writes `metrics.jsonl` (one line every `log_every` steps: step, loss in nats a token) under
  `folder`, and checkpoints under `folder/checkpoints`, from the newest intact of which it goes on.
  Raises FloatingPointError naming the step when the loss is not finite.
  """
  folder = epath.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  checkpointer = Checkpointer(folder / "checkpoints") if config.save_every else None
  restored = checkpointer.restore(like) if checkpointer else None
  begin, state = restored or (0, start())
  losses = []
  with contextlib.closing(MetricWriter(folder, begin)) as writer:
    for i, batch in enumerate(batches(begin) if begin < config.steps else (), begin + 1):
      state, metrics = step(state, batch)
      losses.append(metrics["loss"])
      last = i == config.steps
      logs = i % config.log_every == 0 or last
      saves = checkpointer is not None and (i % config.save_every == 0 or last)
      if logs or saves:  # what has diverged is not saved either
        loss = float(np.mean(jax.device_get(losses)))
        losses = []
        if not np.isfinite(loss):
          raise FloatingPointError(
            f"the loss is {loss} at step {i} of {folder}: lower the learning rate"
          )
      if logs:
        scalars = {"loss": loss}
        if on_curve and config.curve_every and (i % config.curve_every == 0 or last):
          scalars |= on_curve(i, state.params)
        writer.write_scalars(i, scalars)
        if on_step:
          on_step(i, loss)
      if saves:
        checkpointer.save(i, state)
  if checkpointer:
    checkpointer.close()
  return state
