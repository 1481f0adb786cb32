"""Policies and surrogates judged on recorded runs: a table stands in for training.

Searching, the table's mixtures are the pool and a policy's question is answered by looking the run
up. Fitting, a surrogate learns from some runs and predicts others. Numbers in, rows out, no files.
Rows state everything in the metric's own units; policies and surrogates see scores, higher better.

`AdmireMultiFidelity` is not among the policies. A row is the regret after each evaluation of the
target, every one at the same cost; a search over fidelities spends its budget on runs of different
costs, which no table states, has no regret until it runs the target, and buys cheap runs at the
mixtures of its choice, while those of a table are fixed and seldom on the target's mixtures. So a
table is replayed at its highest fidelity (`Table.at_target`). Nor are its cheaper runs given away:
only some policies learn from them, which would then be ahead by runs that nobody has paid for.
"""

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import threadpoolctl
from scipy.spatial import cKDTree

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
from mixjax.search.recorded import Compute, Objective, in_turn, mean_or_none
from mixjax.search.replay_fit import fit_row, fit_rows, fit_sizes, subset
from mixjax.search.space import Space

__all__ = [
  "POLICIES",
  "SURROGATES",
  "Compute",
  "Objective",
  "design_size",
  "fit_row",
  "fit_rows",
  "fit_sizes",
  "in_turn",
  "search_row",
  "search_rows",
  "search_summary",
  "subset",
]


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
    "found_at": mean_or_none(row["found_at"] for row in rows),
    "recommended": {
      key: mean_or_none(row["recommended"][key] for row in rows) for key in ("regret", "distance")
    },
    "mean": mean_or_none(row["mean"] for row in rows),
    "sd": mean_or_none(row["sd"] for row in rows),
    "seconds": mean_or_none(row["seconds"] for row in rows),
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
      "regret": mean_or_none(row["regret"][-1] for row in mine),
      "recommended_regret": mean_or_none(row["recommended"]["regret"] for row in mine),
      "seconds": mean_or_none(row["seconds"] for row in mine),
    })  # fmt: skip
  return summary
