"""Policies and surrogates judged on recorded runs: a table stands in for training.

Searching, the table's mixtures are the pool and a policy's question is answered by looking the run
up. Fitting, a surrogate learns from some runs and predicts others. Numbers in, rows out, no files.
Rows state everything in the metric's own units; policies and surrogates see scores, higher better.

`AdmireMultiFidelity` is not among the policies. A row is the regret after each evaluation of the
target, every one at the same cost; a search over fidelities spends its budget on runs of different
costs, which no table states, has no regret until it runs the target, and buys cheap runs at the
mixtures of its choice, while those of a table are fixed and seldom on the target's mixtures. So a
table is replayed at its highest fidelity (`Table.at_target`).
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import threadpoolctl
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree
from scipy.stats import spearmanr

from mixjax.search.observations import SAME, Observations
from mixjax.search.policies import Policy
from mixjax.search.policies.admire import Admire
from mixjax.search.policies.best_of_random import BestOfRandom
from mixjax.search.policies.bimix import BiMix
from mixjax.search.policies.climb import Climb
from mixjax.search.policies.mixatlas import MixAtlas
from mixjax.search.policies.mixing_laws import MixingLaws
from mixjax.search.policies.modomodo import MoDoMoDo
from mixjax.search.policies.olmix import Olmix
from mixjax.search.policies.regmix import RegMix
from mixjax.search.predictors import SURROGATES
from mixjax.search.space import Space

# What a row is computed by, and how many are: `compute(function, {label: arguments})` gives the
# rows in the order of the labels. A caller may spread them over processes or keep them on disk.
Compute = Callable[[Callable[..., dict], Mapping[str, tuple]], list[dict]]


def in_turn(function: Callable[..., dict], tasks: Mapping[str, tuple]) -> list[dict]:
  """The simplest `Compute`: here, one after the other."""
  return [function(*arguments) for arguments in tasks.values()]


def design_size(space: Space, budget: int) -> int:
  """Random runs before the model takes over: a fifth of the budget, 8 if that leaves it half."""
  return min(2 * space.dim, max(budget // 5, min(8, budget // 2), 1))


# How each policy is set up for a pool and a budget. Chameleon, UniMax and natural proportions are
# not here: they need embeddings or row counts, which a table of runs does not hold.
POLICIES: dict[str, Callable[[Space, int], Policy]] = {
  "mixatlas": lambda space, budget: MixAtlas(space, design_size(space, budget)),
  # The paper leaves the size of the random design open; it differs from ours in what it recommends.
  "mixatlas-paper": lambda space, budget: MixAtlas(
    space, design_size(space, budget), recommend_by="observed"
  ),
  "regmix": lambda space, budget: RegMix(space),
  "regmix-top": lambda space, budget: RegMix(space, "top"),
  "climb": lambda space, budget: Climb(space, budget),
  "modomodo": lambda space, budget: MoDoMoDo(space),
  "olmix": lambda space, budget: Olmix(space),
  "mixing-laws": lambda space, budget: MixingLaws(space),
  "bimix": lambda space, budget: BiMix(space),
  "admire": lambda space, budget: Admire(space),
  "random": lambda space, budget: BestOfRandom(space),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Objective:
  """One metric of a table, or the mean of all, and the n runs that have it.

  `values` are in the metric's own units, lower is better if `minimize`; `metrics` are those they
  are the mean of, None for a single one. `test` marks the runs kept for judging, None where the
  table has no such split.
  """

  name: str
  minimize: bool
  domains: tuple[str, ...]
  runs: tuple[str, ...]
  mixtures: Float[np.ndarray, "n d"]
  values: Float[np.ndarray, " n"]
  test: Bool[np.ndarray, " n"] | None = None
  metrics: Float[np.ndarray, "n b"] | None = None

  def observations(self, runs: Sequence[int]) -> Observations:
    """What a policy or a surrogate sees of these runs."""
    parts = None if self.metrics is None else self.sign * self.metrics[runs] / self.metrics.shape[1]
    return Observations(self.mixtures[runs], self.sign * self.values[runs], parts=parts)

  @property
  def sign(self) -> int:
    """What turns values into scores, higher is better."""
    return -1 if self.minimize else 1

  @functools.cached_property
  def seen(self) -> Int[np.ndarray, " k"]:
    """The runs to search in or to fit on: all but the test split."""
    return np.arange(len(self.values)) if self.test is None else np.flatnonzero(~self.test)

  @functools.cached_property
  def replicates(self) -> tuple[tuple[int, ...], ...]:
    """The seen runs, those on the same mixture together; mixtures in the table's order."""
    mixtures = self.mixtures[self.seen]
    groups: dict[int, list[int]] = {}
    near = cKDTree(mixtures).query_ball_point(mixtures, SAME, p=np.inf)
    for i, alike in enumerate(near):
      leader = min((j for j in alike if j in groups), default=i)
      groups.setdefault(leader, []).append(int(self.seen[i]))
    return tuple(tuple(group) for group in groups.values())


def search_rows(
  objectives: Sequence[Objective],
  policies: Sequence[str],
  seeds: int,
  budget: int,
  batch: int = 1,
  compute: Compute = in_turn,
) -> tuple[list[dict], list[dict]]:
  """`search_row` of every policy and seed: averaged over objectives, and one by one."""
  tasks = {
    f"search {policy} {seed} {o.name}": (o, policy, seed, budget, batch)
    for policy in policies
    for seed in range(seeds)
    for o in objectives
  }
  rows = compute(search_row, tasks)
  if len(objectives) == 1:
    return rows, rows
  width = len(objectives)
  return [_average_search(rows[i : i + width]) for i in range(0, len(rows), width)], rows


def search_row(
  objective: Objective,
  policy: str,
  seed: int,
  budget: int,
  batch: int = 1,
  *,
  policies: Mapping[str, Callable[[Space, int], Policy]] = POLICIES,
) -> dict:
  """One of the `policies` searching the recorded mixtures with one seed.

  The pool holds every mixture once; running it draws one of its replicates, in an order fixed by
  the seed, and its true value is the mean of all. `regret`, after each evaluation, is how far the
  best mixture evaluated so far truly is from the pool's best; `found_at` the evaluations until that
  was 0, None if never. A budget above the number of mixtures ends with the last of them.
  `recommended` names the pool's run nearest to the recommended mixture, at `distance` (share of the
  samples that differ, 0 if it is in the pool), and its true regret.
  """
  began = time.perf_counter()
  groups = objective.replicates
  pool = objective.mixtures[[group[0] for group in groups]]
  truth = np.array([objective.values[list(group)].mean() for group in groups])
  regret = np.max(objective.sign * truth) - objective.sign * truth
  rng = np.random.default_rng([seed, 1])
  draws = [iter(rng.permutation(group).tolist()) for group in groups]
  space = Space.simplex("domain", objective.domains, pool=pool)
  pool, tree = space.pool, cKDTree(space.pool)

  budget = min(budget, len(pool))
  chosen: list[int] = []
  ran: list[int] = []
  with threadpoolctl.threadpool_limits(1):
    searcher = policies[policy](space, budget)
    while len(chosen) < budget:
      told = objective.observations(ran) if ran else Observations.none(space)
      asked = searcher.ask(told, min(batch, budget - len(chosen)), seed)
      for distance, place in zip(*tree.query(asked, p=np.inf), strict=True):
        run = next(draws[place], None) if distance <= SAME else None
        if run is None:
          raise ValueError(f"{policy} asked for a mixture that has no run left in the table")
        chosen.append(int(place))
        ran.append(run)
    advice = searcher.recommend(objective.observations(ran))

  away = np.abs(pool - advice.mixture).sum(axis=1) / 2
  nearest = int(np.argmin(away))
  so_far = np.minimum.accumulate(regret[chosen])
  return {
    "policy": policy,
    "seed": seed,
    "target": objective.name,
    "evaluations": budget,
    "regret": so_far.tolist(),
    "found_at": int(np.argmin(so_far)) + 1 if so_far[-1] == 0 else None,
    "recommended": {
      "run": objective.runs[groups[nearest][0]],
      "mixture": space.as_dict(advice.mixture),
      "regret": float(regret[nearest]),
      "distance": float(away[nearest]) if away[nearest] > SAME else 0.0,
    },
    "mean": None if advice.mean is None else float(objective.sign * advice.mean),
    "sd": None if advice.sd is None else float(advice.sd),
    "seconds": time.perf_counter() - began,
  }


def _average_search(rows: Sequence[dict]) -> dict:
  """One policy and seed over several targets. `found_at` is None unless all optima were found."""
  longest = max(row["evaluations"] for row in rows)
  # A search that has run its whole pool stays where it is.
  regret = [row["regret"] + row["regret"][-1:] * (longest - row["evaluations"]) for row in rows]
  return {
    "policy": rows[0]["policy"],
    "seed": rows[0]["seed"],
    "targets": len(rows),
    "evaluations": longest,
    "regret": np.mean(regret, axis=0).tolist(),
    "found": sum(row["found_at"] is not None for row in rows),
    "found_at": _mean(row["found_at"] for row in rows),
    "recommended": {
      key: _mean(row["recommended"][key] for row in rows) for key in ("regret", "distance")
    },
    "mean": _mean(row["mean"] for row in rows),
    "sd": _mean(row["sd"] for row in rows),
    "seconds": _mean(row["seconds"] for row in rows),
  }


def search_summary(rows: Sequence[dict]) -> list[dict]:
  """For each policy, over all its searches: what was found, and what was left at the budget."""
  summary = []
  for policy in dict.fromkeys(row["policy"] for row in rows):
    mine = [row for row in rows if row["policy"] == policy]
    found = np.array([np.inf if row["found_at"] is None else row["found_at"] for row in mine])
    middle, worst = np.median(found), found.max()
    summary.append({
      "policy": policy,
      "searches": len(mine),
      "found": int(np.isfinite(found).sum()),
      "found_at_median": float(middle) if np.isfinite(middle) else None,
      "found_at_worst": float(worst) if np.isfinite(worst) else None,
      "regret": _mean(row["regret"][-1] for row in mine),
      "recommended_regret": _mean(row["recommended"]["regret"] for row in mine),
      "seconds": _mean(row["seconds"] for row in mine),
    })  # fmt: skip
  return summary


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
    averaged[key] = _mean(values)
    several = len(values) > 1 and averaged[key] is not None
    averaged[f"{key}_sd"] = float(np.std(values, ddof=1)) if several else None
  return averaged | {
    "fits": len(rows),
    "seeds": len({row["seed"] for row in rows}),
    "constant": sum(row["constant"] for row in rows),
  }


def _mean(values) -> float | None:
  """The mean; None if one of them is not known."""
  values = list(values)
  return None if any(value is None for value in values) else float(np.mean(values))
