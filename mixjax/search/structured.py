"""A process for cells that knows their concepts and tasks (the paper leaves the joint space open).

With 50 cells and few runs a length-scale for each cell has little to learn from. Here the kernel is
a sum of three Matern-5/2: one compares the cells, one the weights of whole concepts, one those of
whole tasks. Each has an amplitude of its own, so runs decide how much is additive and how much
hangs on combinations. The length-scale of a cell is the product of a common one, one of its
concept, one of its task (of rank one) and a correction of its own.

On synthetic scores over 10 x 5 cells (`tests/benchmarks/structured_bench.py`) 16 runs rank others
as well as 64 do with a flat kernel where concepts and tasks add up, and the squared error is a
fifth to a half lower where similar cells help each other. Where five single cells are all that
counts, it is behind at 16 runs (Spearman 0.51 against 0.75), level at 32, with a lower error.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
import tinygp
from jaxtyping import Array, Float

from mixjax.search import flat, surrogate
from mixjax.search.coordinates import Coordinates
from mixjax.search.observations import Observations
from mixjax.search.process import Form, Matern52, Points
from mixjax.search.space import Space
from mixjax.search.surrogate import Surrogate


class Parts(tinygp.kernels.Kernel):
  """A sum of Matern-5/2, each of its own columns, which lie side by side."""

  parts: tuple[Matern52, ...]

  def evaluate(self, a: Points, b: Points) -> Float[Array, ""]:
    return self(*(Points(p.features[None], p.real[None]) for p in (a, b)))[0, 0]

  def __call__(self, a: Points, b: Points | None = None) -> Array:
    total, start = 0.0, 0
    for part in self.parts:
      mine = slice(start, start + len(part.lengths))
      start = mine.stop
      a_part = Points(a.features[:, mine], a.real)
      total += part(a_part, None if b is None else Points(b.features[:, mine], b.real))
    return total


@dataclasses.dataclass(frozen=True)
class Grid:
  """The form of that kernel for cells `(concept, task)`, as places in `concepts` and `tasks`.

  Its columns, and so the length-scales, are the cells, then the concepts, then the tasks; so are
  its three amplitudes. A concept need not have every task.
  """

  concepts: tuple[str, ...]
  tasks: tuple[str, ...]
  cells: tuple[tuple[int, int], ...]

  @classmethod
  def of(cls, space: Space) -> "Grid":
    """ValueError names a coordinate of `space` that is not called <concept>/<task>."""
    pairs = [name.split("/") for name in space.names]
    for name, pair in zip(space.names, pairs, strict=True):
      if len(pair) != 2 or not all(pair):
        raise ValueError(
          f"{name!r} is not called <concept>/<task>: a structured surrogate needs cells of a "
          "concept and a task; on other spaces use surrogate.fit"
        )
    concepts, tasks = (tuple(dict.fromkeys(words)) for words in zip(*pairs, strict=True))
    cells = tuple((concepts.index(concept), tasks.index(task)) for concept, task in pairs)
    return cls(concepts, tasks, cells)

  @property
  def shape(self) -> tuple[int, int, int]:
    """How many columns the three parts have."""
    return len(self.cells), len(self.concepts), len(self.tasks)

  def size(self, dim: int) -> tuple[int, int]:
    cells, concepts, tasks = self.shape
    # The cells' length-scales come from 1 + concepts + tasks + cells numbers.
    lengths = 1 + cells + 2 * (concepts + tasks)
    return lengths, lengths + 3 + 1

  def unpack(self, z):
    cells, concepts, tasks = self.shape
    ends = np.cumsum([1, concepts, tasks, cells, concepts, tasks, 3])
    common, by_concept, by_task, by_cell, concept, task, amplitude, noise = jnp.split(z, ends)
    at_concept, at_task = np.array(self.cells).T
    # Four equal factors, so that a cell's length-scale varies as much as if it were one number.
    cell = (common + by_concept[at_concept] + by_task[at_task] + by_cell) / 2
    lengths = [
      flat.LENGTH * len(part) ** 0.5 * jnp.exp(flat.LENGTH_SPREAD * part)
      for part in (cell, concept, task)
    ]
    # The three variances add up to that of a flat kernel.
    amplitude = flat.AMPLITUDE / 3**0.5 * jnp.exp(flat.AMPLITUDE_SPREAD * amplitude)
    noise = flat.NOISE * jnp.exp(flat.NOISE_SPREAD * noise[0])
    return jnp.concatenate(lengths), amplitude, noise

  def columns(self, rows):
    at_concept, at_task = np.array(self.cells).T
    by_concept = np.eye(len(self.concepts))[at_concept]
    by_task = np.eye(len(self.tasks))[at_task]
    return jnp.concatenate([rows, rows @ by_concept, rows @ by_task], axis=1)

  def kernel(self, lengths, amplitude):
    split = jnp.split(lengths, np.cumsum(self.shape)[:-1])
    return Parts(tuple(Matern52(part, amplitude[i]) for i, part in enumerate(split)))


def fit(
  observations: Observations,
  space: Space,
  *,
  coordinates: Coordinates | None = None,
  draws: int | None = None,
) -> Surrogate:
  """As `surrogate.fit`, for a space whose coordinates are cells called <concept>/<task>.

  `hyper.lengths` and `hyper.amplitude` are those of `Grid`. Deterministic. ValueError if there is
  no run, or names a coordinate that is no such cell.
  """
  form = Grid.of(space)
  return surrogate.fit(observations, space, coordinates=coordinates, draws=draws, form=form)


def form_of(space: Space) -> Form:
  """The form for `space`: `Grid` where its weights are cells of a grid, otherwise the flat one.

  They are if all are called <concept>/<task> and there are fewer concepts and tasks than cells.
  """
  try:
    grid = Grid.of(space)
  except ValueError:
    return flat.FLAT
  cells, concepts, tasks = grid.shape
  return grid if concepts + tasks < cells else flat.FLAT


def fit_by_evidence(
  observations: Observations, space: Space, *, draws: int = surrogate.DRAWS
) -> Surrogate:
  """The structured process, or the flat one where the runs make that more probable.

  The larger `evidence` wins, not the larger `log_marginal`: at its mode the form with more numbers
  to tune has an unfair lead. From few runs it is no oracle: at 16 runs on single cells (see above)
  it preferred the structured one as well. The `form` of the answer tells which it is. Two fits;
  errors as for `fit`, and ValueError for fewer than two draws, as the mode has no evidence.
  """
  if draws < 2:
    raise ValueError(f"evidence comes with the draws: at least 2, not {draws}")
  structured = fit(observations, space, draws=draws)
  flat = surrogate.fit(observations, space, draws=draws)
  return max(structured, flat, key=lambda fitted: fitted.evidence)
