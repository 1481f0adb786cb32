"""What the main job is asked for, and the spaces that it searches."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from mixjax.evals import benchmarks
from mixjax.jobs.atlas import AtlasConfig
from mixjax.jobs.trial import Budget
from mixjax.search import design
from mixjax.search.acquire import KAPPA, Acquisition, check_acquisition
from mixjax.search.constraints import Constraints, supply_caps
from mixjax.search.objective import Objective
from mixjax.search.space import Space, candidates

# The place of an axis is part of its key: new ones go to the end.
SPACES = {
  "task": Space.task_axis,
  "concept": Space.concept_axis,
  "product": Space.product,
  "joint": Space.joint,
}


@dataclasses.dataclass(frozen=True)
class AxisBudget:
  """Proxies on one axis: `seeds` at random, then UCB up to `runs`, replicates included."""

  seeds: int
  runs: int
  replicates: int = 4


@dataclasses.dataclass(frozen=True)
class SearchOptions:
  """How MixAtlas proposes (see `policies.mixatlas`), and how much data there is to propose.

  With a `repetition` above 0 no method proposes or recommends a mixture that shows the target a
  row more often than that; 0 sets no limit. ValueError names an option that cannot be.
  """

  acquisition: Acquisition = "ucb"
  kappa: float = KAPPA
  continuous: bool = False
  repetition: float = 0.0

  def __post_init__(self):
    check_acquisition(self.acquisition)
    if self.continuous and self.acquisition == "thompson":
      raise ValueError("search.acquisition thompson needs search.continuous False: it uses a pool")
    for name in ("kappa", "repetition"):
      if not (math.isfinite(value := getattr(self, name)) and value >= 0):
        raise ValueError(f"search.{name} is {value}: it is finite and not negative")


@dataclasses.dataclass(frozen=True)
class SearchConfig:
  """Everything the main job needs. The recipe comes from the axis `headline`.

  `objective` is what each benchmark counts, `{name: weight}`; empty weighs all alike. ValueError
  names an axis that is not known, or weights that cannot be; whether there are such benchmarks is
  for `weights` to say, as the questions may be gone when a finished search is read.
  """

  atlas: AtlasConfig
  proxy: Budget
  target: Budget
  axes: dict[str, AxisBudget]
  headline: str = "product"
  pool: int = 2000
  batch: int = 4
  uniform_seeds: int = 4
  target_seeds: int = 1
  correlation_mixtures: int = 0  # mixtures run on the target beyond the recipes, to compare ranks
  top: int = 16
  floor: float = 0.1
  seed: int = 0
  workers: int | None = None
  search: SearchOptions = SearchOptions()
  objective: dict[str, float] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    if unknown := [name for name in self.axes if name not in SPACES]:
      raise ValueError(f"axes names {unknown}; known are {', '.join(SPACES)}")
    for name, axis in self.axes.items():
      if min(axis.seeds, axis.runs) < 1 or axis.seeds + axis.replicates > axis.runs:
        raise ValueError(
          f"the {name} axis has {axis.runs} runs for {axis.seeds} seeds and {axis.replicates} "
          "replicates: every method gets as many runs, so give at least their sum"
        )
    if self.headline not in self.axes:
      raise ValueError(
        f"the recipe is to come from the axis {self.headline!r}, which is not searched: "
        f"make headline one of {', '.join(self.axes)}, or give it a budget in axes"
      )
    if self.objective:
      Objective(self.objective)

  @property
  def benchmarks(self) -> tuple[str, ...]:
    """What is asked, in the order of its scores: the gallery's, or what `questions` hold."""
    if self.atlas.corpus == "gallery":
      return tuple(benchmarks.BENCHMARKS)
    asked = benchmarks.read_splits(self.atlas.questions_folder)
    return tuple(benchmarks.metrics_of(asked["validation"]))

  @property
  def weights(self) -> Float[np.ndarray, " b"] | None:
    """What each benchmark counts, summing to 1; None where the score is their plain mean.

    ValueError if the objective weighs what is no benchmark.
    """
    return self.weights_over(self.benchmarks) if self.objective else None

  def weights_over(self, names: Sequence[str]) -> Float[np.ndarray, " b"] | None:
    """As `weights`, for benchmarks of these names."""
    if not self.objective:
      return None
    if unknown := [name for name in self.objective if name not in names]:
      raise ValueError(
        f"objective weighs {unknown}, which are no benchmarks; known are {', '.join(names)}"
      )
    return Objective(self.objective).over(names)


def parse(config: dict) -> SearchConfig:
  """ConfigDict's plain dict -> dataclasses; ConfigDict ends here."""
  fields = {k: v for k, v in config.items() if k != "job"}
  options = config.get("search", {})
  known = [field.name for field in dataclasses.fields(SearchOptions)]
  if unknown := [name for name in options if name not in known]:
    raise ValueError(f"search has no option {unknown}; known are {', '.join(known)}")
  return SearchConfig(
    **fields
    | dict(
      atlas=AtlasConfig(**config["atlas"]),
      proxy=Budget(**config["proxy"]),
      target=Budget(**config["target"]),
      axes={name: AxisBudget(**budget) for name, budget in config["axes"].items()},
      search=SearchOptions(**options),
    )
  )


def spaces(
  config: SearchConfig, rows: dict[str, int]
) -> dict[str, tuple[Space, Constraints | None]]:
  """The searched axes, each with its pool of candidates and what the rows there are allow.

  ValueError if they allow nothing, or if a pool is too small for its axis.
  """
  concepts = list(dict.fromkeys(cell.split("/")[0] for cell in rows))
  tasks = list(dict.fromkeys(cell.split("/")[1] for cell in rows))
  empty = {cell for cell, n in rows.items() if not n}
  found = {}
  for i, name in enumerate(config.axes):
    space, limits = SPACES[name](concepts, tasks, empty=empty), None
    if config.search.repetition:
      limits = _supply(space, config, rows)
      pool = design.pool(space, config.pool, (config.seed, i), limits)
    else:
      pool = candidates(space, config.pool, (config.seed, i))
    if len(pool) < config.axes[name].runs:
      raise ValueError(
        f"the {name} axis has a pool of {len(pool)} candidates for {config.axes[name].runs} runs: "
        "enlarge pool, raise search.repetition, or lower the runs of the axis"
      )
    found[name] = space.with_pool(pool), limits
  return found


def _supply(space: Space, config: SearchConfig, rows: dict[str, int]) -> Constraints:
  """No row is seen more often than `repetition` times by a target run."""
  samples, repetition = config.target.samples, config.search.repetition
  try:
    return Constraints(space, caps=supply_caps(space, rows, samples, repetition))
  except ValueError as error:
    raise ValueError(
      f"no mixture on the {space.name} axis shows each row at most {repetition} times in "
      f"{samples} target samples: raise search.repetition or lower target.samples ({error})"
    ) from error
