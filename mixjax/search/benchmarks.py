"""One process for each benchmark: what every objective over them is forecast from.

Every run keeps its whole score vector, and an objective is a weighted sum of benchmarks. Each
process has a kernel of its own: on RegMix's 13 losses (32 and 64 runs) one kernel for all, or for
the eigenvectors of their correlation (intrinsic coregionalisation by Kronecker's trick), had two to
three times the squared error, as losses depend on different domains. One process fitted to the
weighted sum itself had three to four times that of the sum of processes. What benchmarks share is
what their predictions miss together: the correlation of their leave-one-out residuals.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float
from sklearn.covariance import ledoit_wolf

from mixjax.search import process, surrogate
from mixjax.search.objective import Objective, ScoreVectors
from mixjax.search.observations import Observations, matches
from mixjax.search.policies import pool_of
from mixjax.search.space import Key, Space, generator
from mixjax.search.surrogate import Surrogate

# Runs that all score alike on a benchmark, so that it is taken to be at its floor or ceiling.
ALIKE = 8

# So many sds are certainty.
CERTAIN = 40.0

# What rounding alone does to a mean of scores, as a share of them.
ROUNDING = 1e-12


@dataclasses.dataclass(frozen=True, eq=False)
class Forecast:
  """What is believed of the b benchmarks at m mixtures: posterior means and sds, noise-free.

  What the b predictions at one mixture miss is correlated, alike at every mixture.
  """

  names: tuple[str, ...]
  mixtures: Float[np.ndarray, "m d"]
  mean: Float[np.ndarray, "m b"]
  sd: Float[np.ndarray, "m b"]
  correlation: Float[np.ndarray, "b b"]

  @property
  def covariance(self) -> Float[np.ndarray, "m b b"]:
    """Posterior covariance of the benchmarks at each mixture."""
    return self.sd[:, :, None] * self.correlation * self.sd[:, None, :]

  def of(self, objective: Objective) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Posterior mean and sd of the objective, higher is better."""
    weights = objective.over(self.names)
    shares = self.sd * weights
    variance = np.einsum("mb,bc,mc->m", shares, self.correlation, shares)
    return self.mean @ weights, np.sqrt(np.maximum(variance, 0))

  def margins(self, objective: Objective) -> Float[np.ndarray, "m f"]:
    """By how many sds each mean keeps each floor, in the order of `objective.floors`.

    What is certain keeps its floor for sure, or breaks it for sure.
    """
    objective.over(self.names)
    kept = [self.names.index(name) for name in objective.floors]
    floors = np.array(list(objective.floors.values()))
    above, sd = objective.sign * (self.mean[:, kept] - floors), self.sd[:, kept]
    certain = np.where(above >= -ROUNDING * np.abs(floors), CERTAIN, -CERTAIN)
    return np.where(sd > 0, above / np.where(sd > 0, sd, 1.0), certain)


@dataclasses.dataclass(frozen=True, eq=False)
class Benchmarks:
  """One process a benchmark, conditioned on the same runs."""

  runs: ScoreVectors
  processes: tuple[Surrogate, ...]
  correlation: Float[np.ndarray, "b b"]

  @property
  def names(self) -> tuple[str, ...]:
    return self.runs.names

  @property
  def space(self) -> Space:
    return self.processes[0].space

  def forecast(self, points: Float[np.ndarray, "m d"] | None = None) -> Forecast:
    """At `points`, or at the space's pool and the observed mixtures, raised to the lower bounds.

    A benchmark on which all of eight or more runs score alike is taken to do so everywhere, for
    sure: it says nothing against any mixture. ValueError if there is no point.
    """
    if points is None:
      pool = pool_of(self.space)
      observed = np.unique(self.runs.mixtures[~matches(self.runs.mixtures, pool)], axis=0)
      points = self.space.raise_to_floor(np.concatenate([pool, observed]))
    points = self.space.check(points)
    mean, sd = np.stack([one.predict(points) for one in self.processes], axis=2)
    if len(self.runs) >= ALIKE:
      sd[:, np.ptp(self.runs.scores, axis=0) == 0] = 0
    return Forecast(self.names, points, mean, sd, self.correlation)

  def only(self, names: Sequence[str]) -> "Benchmarks":
    """The same beliefs about some benchmarks, in this order; ValueError if one is unknown."""
    if unknown := [name for name in names if name not in self.names]:
      raise ValueError(f"{unknown} are none of the benchmarks {list(self.names)}")
    kept = [self.names.index(name) for name in names]
    stderr = None if self.runs.stderr is None else self.runs.stderr[:, kept]
    runs = ScoreVectors(tuple(names), self.runs.mixtures, self.runs.scores[:, kept], stderr)
    processes = tuple(self.processes[place] for place in kept)
    return Benchmarks(runs, processes, self.correlation[np.ix_(kept, kept)])

  def draw(
    self, points: Float[np.ndarray, "m d"], count: int, key: Key
  ) -> Float[np.ndarray, "count m b"]:
    """Draws of all benchmarks at all points together. The time grows with the cube of m."""
    normal = generator(key).standard_normal((count, len(points), len(self.names)))
    values, vectors = np.linalg.eigh(self.correlation)
    normal = normal @ (vectors * np.sqrt(np.maximum(values, 0))).T
    for place, one in enumerate(self.processes):
      mean, covariance = one.joint(points)
      with process.exact():
        values, vectors = np.linalg.eigh(covariance)
        # Symmetric roots: processes of one kernel, whose roots are in proportion, are correlated
        # exactly as `forecast` says; any others somewhat less.
        root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
        normal[:, :, place] = mean + normal[:, :, place] @ root
    return normal


def fit_benchmarks(
  runs: ScoreVectors,
  space: Space,
  fit: Callable[[Observations, Space], Surrogate] = surrogate.fit,
) -> Benchmarks:
  """One process for each benchmark of `runs`. ValueError if there is no run.

  The correlation of their errors is Ledoit and Wolf's (2004) shrunk one of the standardised
  leave-one-out residuals, which hold what the processes miss and the noise of a run alike.
  """
  processes, residuals = [], []
  for name, scores in zip(runs.names, runs.scores.T, strict=True):
    fitted = fit(runs.observations(Objective({name: 1.0})), space)
    left_out = fitted.leave_one_out()
    processes.append(fitted)
    residuals.append((scores - left_out.mean) / left_out.sd)
  correlation = np.eye(len(runs.names))
  if len(runs) > 2 and len(runs.names) > 1:
    size = np.sqrt(np.mean(np.square(residuals), axis=1, keepdims=True))
    correlation, _ = ledoit_wolf((residuals / np.maximum(size, 1e-12)).T, assume_centered=True)
    # It is 1 already, but for a benchmark on which all runs score alike.
    np.fill_diagonal(correlation, 1.0)
  return Benchmarks(runs, tuple(processes), correlation)
