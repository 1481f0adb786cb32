"""A structured surrogate against a flat one on 10 x 5 cells, on synthetic scores.

  python tests/benchmarks/structured_bench.py [--runs 16 32 64 128] [--seeds 4] [--noise 0.1]

Truths: concepts and tasks add up; cells help cells of a similar concept and a similar task; five
single cells are all that counts. All saturate. Judged on 500 fresh mixtures: Spearman, squared
error in variances of the truth, how many truths lie within 1.96 sd, log marginal likelihood and
evidence of the runs, all means over seeds. `chosen` is the likelier of the two by evidence.
"""

import argparse
import dataclasses
import pathlib
import sys
import time
from collections.abc import Callable

import numpy as np
from scipy.stats import spearmanr

# The repository, where mixjax is not installed.
sys.path.append(str(pathlib.Path(__file__).parents[2]))

from mixjax.search import structured, surrogate
from mixjax.search.observations import Observations
from mixjax.search.space import Space, candidates

CONCEPTS, TASKS = 10, 5
SPACE = Space.simplex("joint", [f"c{i}/t{j}" for i in range(CONCEPTS) for j in range(TASKS)])

# Scores `float[m]` of mixtures `float[m, 50]`.
Truth = Callable[[np.ndarray], np.ndarray]


def saturating(data, enough):
  return 1 - np.exp(-data / enough)


def additive(rng: np.random.Generator) -> Truth:
  by_concept, by_task = rng.dirichlet(np.full(CONCEPTS, 0.5)), rng.dirichlet(np.ones(TASKS))
  share = rng.uniform(0.35, 0.65)

  def score(mixtures):
    grid = mixtures.reshape(-1, CONCEPTS, TASKS)
    concepts = saturating(grid.sum(axis=2), 1 / CONCEPTS) @ by_concept
    return share * concepts + (1 - share) * saturating(grid.sum(axis=1), 1 / TASKS) @ by_task

  return score


def transfer(rng: np.random.Generator) -> Truth:
  """Six benchmarks, each at a cell; concepts and tasks lie in a plane, near ones help."""

  def similarity(count):
    places = rng.normal(size=(count, 2))
    return np.exp(-np.sum((places[:, None] - places) ** 2, axis=2) / (2 * 0.8**2))

  concepts = similarity(CONCEPTS)
  tasks = similarity(TASKS)
  help_at = concepts[rng.integers(CONCEPTS, size=6)][:, :, None]
  help_at = (help_at * tasks[rng.integers(TASKS, size=6)][:, None]).reshape(6, -1)
  importance = rng.dirichlet(np.ones(6))
  return lambda mixtures: saturating(mixtures @ help_at.T, help_at.mean(axis=1)) @ importance


def few_cells(rng: np.random.Generator) -> Truth:
  cells, importance = rng.permutation(CONCEPTS * TASKS)[:5], rng.dirichlet(np.full(5, 3.0))
  return lambda mixtures: saturating(mixtures[:, cells], 0.02) @ importance


@dataclasses.dataclass(frozen=True)
class Row:
  spearman: float
  error: float
  coverage: float
  log_marginal: float
  evidence: float
  seconds: float


def judge(fit, runs: Observations, judged: np.ndarray, truth: np.ndarray) -> Row:
  began = time.perf_counter()
  fitted = fit(runs, SPACE)
  seconds = time.perf_counter() - began
  mean, sd = fitted.predict(judged)
  return Row(
    float(spearmanr(mean, truth)[0]),
    float(np.mean((mean - truth) ** 2) / truth.var()),
    float(np.mean(np.abs(mean - truth) <= 1.96 * sd)),
    fitted.log_marginal,
    fitted.evidence,
    seconds,
  )


def compare(truth: Callable, count: int, seed: int, noise: float) -> dict[str, Row]:
  """The same runs to both; `noise` is in sds of the truth."""
  score = truth(np.random.default_rng([seed, 0]))
  judged = candidates(SPACE, 500, [seed, 1])
  rng = np.random.default_rng([seed, 2])
  mixtures = rng.permutation(candidates(SPACE, 1000, [seed, 3]))[:count]
  expected = score(judged)
  scores = score(mixtures) + noise * expected.std() * rng.normal(size=count)
  runs = Observations(mixtures, scores)
  rows = {
    name: judge(fit, runs, judged, expected)
    for name, fit in (("flat", surrogate.fit), ("structured", structured.fit))
  }
  return rows | {"chosen": max(rows.values(), key=lambda row: row.evidence)}


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--runs", type=int, nargs="+", default=[16, 32, 64, 128])
  parser.add_argument("--seeds", type=int, default=4)
  parser.add_argument("--noise", type=float, default=0.1)
  flags = parser.parse_args()
  fields = [field.name for field in dataclasses.fields(Row)]
  print(f"{'truth':<10}{'runs':>5} {'surrogate':<11}" + "".join(f"{f:>13}" for f in fields))
  for truth in (additive, transfer, few_cells):
    for count in flags.runs:
      found = [compare(truth, count, seed, flags.noise) for seed in range(flags.seeds)]
      for name in found[0]:
        means = np.mean([dataclasses.astuple(rows[name]) for rows in found], axis=0)
        numbers = "".join(f"{mean:13.3f}" for mean in means)
        print(f"{truth.__name__:<10}{count:>5} {name:<11}{numbers}", flush=True)


if __name__ == "__main__":
  main()
