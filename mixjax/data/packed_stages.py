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
  it has a row, so batches before are as they would be without it. A cell that runs out does so at
  the sample at which it does, whichever block that is in; what is read is counted to the end of the
  block that the last batch has rows of.

  Args:
    weights: `{step from which they hold: shares of samples by cell}`, or stages by sample.
    repetition: as `supply.plan` takes it, and `exhausted` too.
    measured, seed, shape, block: as `PackedLoader` takes them.

  Raises ValueError as `PackedLoader` and `supply.plan` do, and for two stages in one block.
  """
  if isinstance(weights, Stages):
    starts, mixtures = zip(*((stage.start, stage.weights) for stage in weights), strict=True)
  else:
    weights = {step: shares for step, shares in sorted(weights.items()) if step < steps}
    starts, mixtures = tuple(weights), tuple(weights.values())
  vectors = [np.array(list(mixture.check(one, measured.rows).values())) for one in mixtures]
  supply = Supply(measured.rows, repetition, exhausted)
  loader = PackedLoader(measured, mixtures[0], seed, shape, block=block)
  total = steps * shape.rows

  def begin(start: int, shares: np.ndarray) -> None:
    nonlocal loader
    named = supply.named(shares)
    if start == 0 and supply.redistributed:
      loader = PackedLoader(measured, named, seed, shape, block=block)
    elif start:
      loader.append(start, named)

  def start_of(stage: int, by: float) -> int | None:
    if isinstance(weights, Stages) and stage < len(starts):
      return starts[stage] if starts[stage] <= by else None
    rows = starts[stage] * shape.rows if stage < len(starts) else total
    # What comes after `by` packs otherwise than the weights have it that hold now.
    if np.isfinite(by) and not loader.packing.reach(int(by) // block, rows):
      return None
    found, row = loader.packing.locate(rows)
    start = (found + (row > 0)) * block
    if stage < len(starts) and start == loader.sampler.stages.stages[-1].start:
      raise ValueError(
        f"the stages of steps {starts[stage - 1]} and {starts[stage]} begin in one block of "
        f"{block} samples, which are packed together: put steps between them"
      )
    return start

  follow(vectors, supply, start_of, begin)
  if supply.limited:
    supply.check(start_of(len(starts), np.inf))
  loader.packing.keep()
  return loader, Plan(loader.sampler.stages, supply.run_out)
