"""Surrogates judged on recorded runs: fitted to some, they predict others (`replay.py`)."""

import time
from collections.abc import Sequence

import numpy as np
import threadpoolctl
from jaxtyping import Int
from scipy.stats import spearmanr

from mixjax.search.predictors import SURROGATES
from mixjax.search.recorded import Compute, Objective, in_turn, mean_or_none
from mixjax.search.space import Space


def fit_sizes(objectives: Sequence[Objective], wanted: Sequence[int | str] = ()) -> tuple[int, ...]:
  """How many runs to fit on: those `wanted`, or 32, 64, 128, ... and "all".

  "all" is the whole train split or, without one, four fifths of the runs, so that some are left to
  judge on. ValueError where there are not so many runs that every objective has.
  """
  fewest = min(len(o.seen) for o in objectives)
  split = objectives[0].test is not None
  every = fewest if split else int(0.8 * fewest)
  most = fewest if split else fewest - 3
  if not wanted:
    doubled = (32 << i for i in range(32))
    return (*(n for n in doubled if n < every), every)
  sizes = tuple(sorted({every if n == "all" else int(n) for n in wanted}))
  if not 2 <= sizes[0] <= sizes[-1] <= most:
    raise ValueError(f"n is between 2 and {most} of {fewest} runs to fit on, not {list(wanted)}")
  return sizes


def fit_rows(
  objectives: Sequence[Objective],
  surrogates: Sequence[str],
  sizes: Sequence[int],
  seeds: int,
  compute: Compute = in_turn,
) -> tuple[list[dict], list[dict]]:
  """`fit_row` of every surrogate and size: means over objectives and seeds, and one by one.

  The whole train split is fitted once, whatever the number of seeds: it has no subsets.
  """
  whole = {n: all(o.test is not None and len(o.seen) == n for o in objectives) for n in sizes}
  tasks = {
    f"fit {name} {n} {seed} {o.name}": (o, name, n, seed)
    for name in surrogates
    for n in sizes
    for seed in range(1 if whole[n] else seeds)
    for o in objectives
  }
  rows = compute(fit_row, tasks)
  averaged = []
  for name in surrogates:
    for n in sizes:
      mine = [row for row in rows if (row["surrogate"], row["n"]) == (name, n)]
      averaged.append(_average_fit(mine) | {"targets": len(objectives)})
  return averaged, rows


def fit_row(objective: Objective, name: str, n: int, seed: int) -> dict:
  """One surrogate fitted on n runs and judged on the test split or, without one, on the rest.

  `mse` is in the metric's own units squared, `coverage95` the share of judged runs within 1.96 sd
  of the prediction (noise included), None where the surrogate states no sd. A constant prediction
  ranks nothing and counts as a `spearman` of 0. The first fit of a process includes compilation.
  """
  fitted_on, judged_on = subset(objective, n, seed)
  # Which mixtures there are is known before any is run; how they score is not.
  pool = objective.mixtures[[group[0] for group in objective.replicates]]
  space = Space.simplex("domain", objective.domains, pool=pool)
  runs = objective.observations(fitted_on)
  began = time.perf_counter()
  with threadpoolctl.threadpool_limits(1):
    mean, sd = SURROGATES[name](runs, space)(objective.mixtures[judged_on])
  seconds = time.perf_counter() - began
  truth = objective.sign * objective.values[judged_on]
  constant = bool(np.ptp(mean) <= 1e-12 * max(np.abs(mean).max(), 1e-300) or np.ptp(truth) == 0)
  return {
    "surrogate": name,
    "n": n,
    "seed": seed,
    "target": objective.name,
    "spearman": 0.0 if constant else float(spearmanr(mean, truth).statistic),
    "mse": float(np.mean((mean - truth) ** 2)),
    "coverage95": None if sd is None else float(np.mean(np.abs(mean - truth) <= 1.96 * sd)),
    "seconds": seconds,
    "constant": constant,
    "judged_on": len(judged_on),
  }


def subset(
  objective: Objective, n: int, seed: int
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " k"]]:
  """The runs to fit on and to judge on: nested in n, equal for all surrogates.

  Without a test split the order is random by mixture, so that the judged runs are on mixtures that
  were not fitted: replicates of a fitted one are left out. ValueError if fewer than 3 are left.
  """
  groups = objective.replicates
  order = [i for g in np.random.default_rng([seed, 2]).permutation(len(groups)) for i in groups[g]]
  fitted_on = np.sort(order[:n])
  if objective.test is not None:
    judged_on = np.flatnonzero(objective.test)
  else:
    known = set(fitted_on.tolist())
    new = [group for group in groups if known.isdisjoint(group)]
    judged_on = np.sort([i for group in new for i in group]).astype(int)
  if len(judged_on) < 3:
    raise ValueError(
      f"only {len(judged_on)} runs of {objective.name!r} are left to judge {n} fitted ones on: "
      "fit fewer"
    )
  return fitted_on, judged_on


def _average_fit(rows: Sequence[dict]) -> dict:
  """Means over targets and seeds, each with its sd over them."""
  averaged = {"surrogate": rows[0]["surrogate"], "n": rows[0]["n"]}
  for key in ("spearman", "mse", "coverage95", "seconds"):
    values = [row[key] for row in rows]
    averaged[key] = mean_or_none(values)
    several = len(values) > 1 and averaged[key] is not None
    averaged[f"{key}_sd"] = float(np.std(values, ddof=1)) if several else None
  return averaged | {
    "fits": len(rows),
    "seeds": len({row["seed"] for row in rows}),
    "constant": sum(row["constant"] for row in rows),
  }
