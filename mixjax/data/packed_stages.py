"""Stages that begin at steps, and cells that run out, where rows of batches are packed.

How many samples a step takes depends on how they pack, and so on all weights before it. So a run is
gone through from its start, by lengths alone, and what is found is the loader of its batches.
"""

from collections.abc import Mapping

import numpy as np

from mixjax.data import mixture
from mixjax.data.lengths import MeasuredCells
from mixjax.data.packed import PackedShape
from mixjax.data.packed_loader import PackedLoader
from mixjax.data.packing import BLOCK
from mixjax.data.stages import Stages
from mixjax.data.supply import Exhausted, Plan, Supply, follow


def planned_loader(
  measured: MeasuredCells,
  weights: Mapping[int, Mapping[str, float]] | Stages,
  seed: int,
  shape: PackedShape,
  steps: int,
  repetition: float = 0.0,
  exhausted: Exhausted = "stop",
  block: int = BLOCK,
) -> tuple[PackedLoader, Plan]:
  """The batches of a run of `steps`, and its stages by sample, which the loader has as well.

  A stage that is to begin at a step begins with the first block of samples of which no batch before
  it has a row, so batches before are as they would be without it. A stage of which no batch of the
  run has a row is left out, and is named in the plan. A cell that runs out does so at the sample at
  which it does, whichever block that is in; what is read is counted to the end of the block that
  the last batch has rows of.

  Args:
    weights: `{step from which they hold: shares of samples by cell}`, or stages by sample.
    repetition: as `supply.plan` takes it, and `exhausted` too.
    measured, seed, shape, block: as `PackedLoader` takes them.

  Raises ValueError as `PackedLoader` and `supply.plan` do, and for two stages in one block.
  """
  by_sample = isinstance(weights, Stages)
  if by_sample:
    weights = {stage.start: stage.weights for stage in weights}
  given = dict(sorted(weights.items()))
  starts = [start for start in given if by_sample or start < steps]
  mixtures = [mixture.check(given[start], measured.rows) for start in starts]
  vectors = [np.array(list(one.values())) for one in mixtures]
  supply = Supply(measured.rows, repetition, exhausted)
  loader = PackedLoader(measured, given[starts[0]], seed, shape, block=block)

  def begin(start: int, shares: np.ndarray) -> None:
    nonlocal loader
    named = supply.named(shares)
    if start == 0 and supply.redistributed:
      loader = PackedLoader(measured, named, seed, shape, block=block)
    elif start:
      loader.append(start, named)

  def start_of_step(step: int, by: float) -> int | None:
    # What comes after `by` packs otherwise than the weights have it that hold now.
    if np.isfinite(by) and not loader.packing.reach(int(by) // block, step * shape.rows):
      return None
    return loader.start_of(step)

  def start_of(stage: int, by: float) -> int | None:
    if stage == len(starts):
      return start_of_step(steps, by)
    if by_sample:
      start = starts[stage] if starts[stage] <= by else None
    else:
      start = start_of_step(starts[stage], by)
    if loader.packing.reach(int(by if start is None else start) // block, steps * shape.rows):
      del starts[stage:], vectors[stage:]  # no batch of the run has a row of theirs
      return loader.start_of(steps)
    if start == loader.sampler.stages.stages[-1].start:
      raise ValueError(
        f"the stages of steps {starts[stage - 1]} and {starts[stage]} begin in one block of "
        f"{block} samples, which are packed together: put steps between them"
      )
    return start

  follow(vectors, supply, start_of, begin)
  if supply.limited:
    supply.check(loader.start_of(steps))
  loader.packing.keep()
  unread = tuple(f"{'sample' if by_sample else 'step'} {one}" for one in [*given][len(starts) :])
  return loader, Plan(loader.sampler.stages, supply.run_out, unread)
