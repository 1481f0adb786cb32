"""What a search is for: weights over benchmarks and floors under them, changed without training."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from scipy.stats import t

from mixjax.search.observations import Observations
from mixjax.search.space import Space
from mixjax.search.trial import DONE, INFEASIBLE, Scores, Trial, fidelities


@dataclasses.dataclass(frozen=True)
class Objective:
  """A weighted mean of benchmarks, and the least score each of some must keep.

  `weights` are divided by their sum; None weighs all benchmarks alike. Weights and floors are in
  each benchmark's own units. Where lower scores are better (losses), `minimize`: the objective is
  then minus the mean, and a floor is the highest score allowed. ValueError if a weight is negative,
  if all are zero, or if a number is not finite.
  """

  weights: Mapping[str, float] | None = None
  floors: Mapping[str, float] = dataclasses.field(default_factory=dict)
  minimize: bool = False

  def __post_init__(self):
    for what, numbers in (("weight", self.weights or {}), ("floor", self.floors)):
      for name, number in numbers.items():
        if not np.isfinite(number) or (what == "weight" and number < 0):
          raise ValueError(f"{what} of {name!r} is {number}; it is finite, a weight not negative")
    if self.weights is not None and not sum(self.weights.values()) > 0:
      raise ValueError("no benchmark has a weight: give one, or None to weigh all alike")

  def __call__(self, scores: Scores) -> tuple[float, float | None]:
    """Value of one trial, higher is better, and its standard error, as `study.observe` wants it.

    The errors of benchmarks count as independent; None if one that has a weight states none.
    ValueError names benchmarks with a weight or a floor that the trial was not scored on.
    """
    weights = self.over(tuple(scores))
    used = [(w, s) for w, s in zip(weights, scores.values(), strict=True) if w]
    # fsum rounds once, so that the order of the benchmarks in a file changes no bit.
    value = math.fsum(weight * entry["score"] for weight, entry in used)
    errors = [(weight, entry.get("stderr")) for weight, entry in used]
    if any(error is None for _, error in errors):
      return value, None
    return value, math.sqrt(math.fsum((weight * error) ** 2 for weight, error in errors))

  @property
  def sign(self) -> int:
    """What turns scores into values, higher is better."""
    return -1 if self.minimize else 1

  def over(self, names: Sequence[str]) -> Float[np.ndarray, " b"]:
    """What each of `names` counts in the value, the sign included; ValueError if one is missing."""
    wanted = [*(self.weights or {}), *self.floors]
    if missing := [name for name in dict.fromkeys(wanted) if name not in names]:
      raise ValueError(f"{missing} have a weight or floor but no score; scored are {list(names)}")
    given = self.weights or dict.fromkeys(names, 1.0)
    weights = np.array([given.get(name, 0.0) for name in names], np.float64)
    return self.sign * weights / weights.sum()

  def keeping(self, floors: Mapping[str, float]) -> "Objective":
    """This objective with more floors; where a benchmark has two, the stricter one holds."""
    stricter = min if self.minimize else max
    both = {n: stricter(floors.get(n, f), f) for n, f in self.floors.items()}
    return dataclasses.replace(self, floors={**floors, **both})

  def not_below(
    self,
    baseline: Sequence[Scores],
    slack: float | Mapping[str, float] = 0.0,
    level: float | None = None,
  ) -> "Objective":
    """This objective with "no benchmark below baseline", whose replicates' scores are given.

    A floor is the replicates' mean less `slack`, in score units (per benchmark if a mapping), and
    by default that alone. `level` (0.95) also takes off what the mean may be too high by: Student's
    one-sided quantile times its standard error from the spread of the replicates, at least two.
    Without slack the baseline itself keeps each floor with a probability of about one half.
    ValueError if there are too few, or if they were not scored on the same benchmarks.
    """
    if len(baseline) < (1 if level is None else 2):
      raise ValueError(f"{len(baseline)} replicates of the baseline at level {level}: run more")
    names = list(baseline[0])
    if differing := sorted({n for scores in baseline for n in set(scores) ^ set(names)}):
      raise ValueError(f"only some replicates of the baseline were scored on {differing}")
    if isinstance(slack, Mapping) and (unknown := sorted(set(slack) - set(names))):
      raise ValueError(f"slack for {unknown}, on which the baseline was not scored")
    floors = {}
    for name in names:
      found = np.array([scores[name]["score"] for scores in baseline], np.float64)
      allowed = slack.get(name, 0.0) if isinstance(slack, Mapping) else slack
      if level is not None:
        error = found.std(ddof=1) / np.sqrt(len(found))
        allowed = allowed + t.ppf(level, len(found) - 1) * error
      floors[name] = float(found.mean() - self.sign * allowed)
    return self.keeping(floors)


def observed(
  mixtures: Float[np.ndarray, "n d"],
  vectors: Float[np.ndarray, "n b"],
  weights: Float[np.ndarray, " b"] | None = None,
) -> Observations:
  """Runs that score the sum of their benchmarks times `weights`, or the plain mean without any.

  What each benchmark with a weight adds is a part.
  """
  if weights is None:
    return Observations(mixtures, vectors.mean(axis=1), parts=vectors / vectors.shape[1])
  parts = vectors[:, weights != 0] * weights[weights != 0]
  return Observations(mixtures, parts.sum(axis=1), parts=parts)


@dataclasses.dataclass(frozen=True, eq=False)
class ScoreVectors:
  """n runs on all b benchmarks, in the benchmarks' own units.

  `stderr` is NaN where unknown, None if all of it is; `pending` are mixtures under way or given up,
  `infeasible` those whose run went wrong. ValueError if shapes disagree.
  """

  names: tuple[str, ...]
  mixtures: Float[np.ndarray, "n d"]
  scores: Float[np.ndarray, "n b"]
  stderr: Float[np.ndarray, "n b"] | None = None
  pending: Float[np.ndarray, "p d"] | None = None
  infeasible: Float[np.ndarray, "i d"] | None = None

  def __post_init__(self):
    shape = (len(self.mixtures), len(self.names))
    for what, found in (("scores", self.scores), ("stderr", self.stderr)):
      if found is not None and np.shape(found) != shape:
        raise ValueError(f"{what} of runs and benchmarks have shape {shape}, not {np.shape(found)}")

  @classmethod
  def of(cls, trials: Sequence[Trial], space: Space) -> "ScoreVectors":
    """The finished trials on `space`, where fidelities are known those of the highest.

    Those on it that are not finished are pending, those that cannot be infeasible.

    ValueError if there is none, or names a benchmark, or the fidelity, that only some have.
    """
    asked = [trial for trial in trials if trial.axis == space.name]
    done = [trial for trial in asked if trial.state == DONE]
    if not done:
      raise ValueError(f"none of {len(trials)} trials is a finished one on the {space.name} axis")
    if fidelities(done) is not None:
      highest = max(trial.fidelity for trial in done)
      done = [trial for trial in done if trial.fidelity == highest]
    names = tuple(dict.fromkeys(name for trial in done for name in trial.scores))
    for trial in done:
      if missing := [name for name in names if name not in trial.scores]:
        raise ValueError(
          f"trial {trial.id} has no score on {missing}, as others have: evaluate it or leave it out"
        )
    table = [[trial.scores[name] for name in names] for trial in done]
    score = [[entry["score"] for entry in row] for row in table]
    stderr = [[entry.get("stderr") for entry in row] for row in table]
    mixtures = np.array([space.from_dict(trial.point) for trial in done])
    left = unfinished(asked, space)
    return cls(names, mixtures, np.array(score, float), np.array(stderr, float), *left)

  def __len__(self) -> int:
    return len(self.mixtures)

  def observations(self, objective: Objective) -> Observations:
    """What a policy sees of the runs under `objective`."""
    weights = objective.over(self.names)
    used = weights != 0
    stderr = part_stderr = None
    if self.stderr is not None and not np.isnan(self.stderr[:, used]).any():
      part_stderr = self.stderr[:, used] * np.abs(weights[used])
      stderr = np.linalg.norm(part_stderr, axis=1)
    return dataclasses.replace(
      observed(self.mixtures, self.scores, weights),
      stderr=stderr,
      part_stderr=part_stderr,
      pending=self.pending,
      infeasible=self.infeasible,
    )


def unfinished(
  trials: Sequence[Trial], space: Space
) -> tuple[Float[np.ndarray, "p d"], Float[np.ndarray, "i d"]]:
  """Mixtures of the trials that are pending (under way, stopped or failed), and infeasible ones."""
  points = [(trial.state, space.from_dict(trial.point)) for trial in trials if trial.state != DONE]
  pending = [point for state, point in points if state != INFEASIBLE]
  infeasible = [point for state, point in points if state == INFEASIBLE]
  return tuple(np.reshape(rows, (len(rows), space.dim)) for rows in (pending, infeasible))


def all_fidelities(trials: Sequence[Trial], space: Space, objective: Objective) -> Observations:
  """What a policy sees under `objective`: the finished trials of the highest fidelity, as
  `ScoreVectors.of`, then those of each lower one.

  A cheaper trial without a benchmark, or a standard error, that all of the highest have is left
  out. Where there is one fidelity, or none is known, none is stated. ValueError as there.
  """
  vectors = ScoreVectors.of(trials, space)
  runs = vectors.observations(objective)
  done = [trial for trial in trials if trial.axis == space.name and trial.state == DONE]
  *lower, highest = sorted(set(fidelities(done) or [0.0]))
  told = [dataclasses.replace(runs, fidelity=np.full(len(runs), highest))]
  for level in lower:
    some = [
      dataclasses.replace(trial, scores={name: trial.scores[name] for name in vectors.names})
      for trial in done
      if trial.fidelity == level and trial.scores.keys() >= set(vectors.names)
    ]
    if not some:
      continue
    cheap = ScoreVectors.of(some, space).observations(objective)
    if runs.stderr is None or cheap.stderr is not None:
      told.append(dataclasses.replace(cheap, fidelity=np.full(len(cheap), level)))
  if len(told) == 1:
    return runs
  both = Observations.concatenate(told)
  return dataclasses.replace(both, pending=runs.pending, infeasible=runs.infeasible)
