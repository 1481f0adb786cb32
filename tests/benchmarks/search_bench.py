"""MixAtlas, its peers and other libraries' searches, on recorded tables and on known functions.

  python tests/benchmarks/search_bench.py --table DIR --objectives 3 --seeds 20
  python tests/benchmarks/search_bench.py --functions --dims 5 10 15 50 --seeds 20

Needs requirements-bench.txt. Each finished search is a line of --out; the same command again goes
on from them, and with --report it only tells what is there. Prints, for each problem and policy,
evaluations until the pool's best was found, regret after the budget and seconds a suggestion;
--curves writes every curve as CSV, --plot draws them. Regret is a share of what a typical mixture
leaves: 0 is the pool's best, 1 its median. Means are over seeds with 95% intervals of Student's t.
For one seed, a mixture has the same noise under every policy, and MixAtlas and the other libraries
have the same first runs.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent import futures

import numpy as np

# The repository, where mixjax is not installed.
sys.path.append(str(pathlib.Path(__file__).parents[2]))

from rivals import RIVALS
from search_standings import draw_curves, show, standings, write_curves
from simplex_functions import FUNCTIONS, recorded

from mixjax.jobs import replay as job
from mixjax.jobs.workers import processes
from mixjax.progress import Reporter
from mixjax.search import replay, tables
from mixjax.search.policies import Policy

POLICIES = {**replay.POLICIES, **RIVALS}


@dataclasses.dataclass(frozen=True, eq=False)
class Recorded:
  """One metric of a recorded table."""

  group: str
  name: str
  table: replay.Objective

  def objective(self, seed: int) -> replay.Objective:
    return self.table


@dataclasses.dataclass(frozen=True, eq=False)
class Known:
  """A function whose maximum is known; each seed has its own pool and noise."""

  function: str
  dim: int
  noise: float

  @property
  def group(self) -> str:
    return f"functions of {self.dim} weights"

  @property
  def name(self) -> str:
    return f"{self.function} d={self.dim} noise={self.noise:g}"

  def objective(self, seed: int) -> replay.Objective:
    return recorded(FUNCTIONS[self.function](self.dim), self.noise, seed)


@dataclasses.dataclass(frozen=True)
class Task:
  """One search: a row of the output, whose label says everything it depends on."""

  problem: Recorded | Known
  policy: str
  seed: int
  budget: int
  batch: int

  @property
  def label(self) -> str:
    p = self.problem
    return f"{p.group} / {p.name} / {self.policy} {self.seed} {self.budget} {self.batch}"


class Timed:
  """A policy that notes how long each suggestion of its model took, not those of the first runs."""

  def __init__(self, policy: Policy, design: int, seconds: list[float]):
    self._policy, self._design, self._seconds = policy, design, seconds

  def ask(self, observations, count, key):
    began = time.perf_counter()
    answer = self._policy.ask(observations, count, key)
    if len(observations) >= self._design:
      self._seconds.append(round(time.perf_counter() - began, 4))
    return answer

  def recommend(self, observations):
    return self._policy.recommend(observations)


def search(task: Task) -> dict:
  """The search of one task, as a row that JSON can hold."""
  objective = task.problem.objective(task.seed)
  seconds: list[float] = []

  def timed(space, budget):
    policy = POLICIES[task.policy](space, budget)
    return Timed(policy, replay.design_size(space, budget), seconds)

  try:
    row = replay.search_row(
      objective, task.policy, task.seed, task.budget, task.batch, policies={task.policy: timed}
    )
  except Exception as error:
    error.add_note(task.label)
    raise
  row["recommended"].pop("mixture")
  about = {"label": task.label, "group": task.problem.group, "problem": task.problem.name}
  return about | row | {"typical": typical_regret(objective), "ask_seconds": seconds}


def typical_regret(objective: replay.Objective) -> float:
  """How far the pool's median mixture is from its best, in the metric's own units."""
  means = [objective.values[list(group)].mean() for group in objective.replicates]
  truth = objective.sign * np.array(means)
  return float(truth.max() - np.median(truth))


def table_problems(folder: str, objectives: str) -> list[Recorded]:
  """The named metrics, or as many as a number says: the mean of all and some spread evenly."""
  table = tables.read(folder)
  if objectives.isdigit():
    places = np.linspace(0, len(table.metrics) - 1, int(objectives) - 1).round().astype(int)
    names = ["mean", *np.array(list(table.metrics))[places].tolist()]
  else:
    names = objectives.split(",")
  reporter = Reporter()
  try:
    group = f"{pathlib.Path(folder).resolve().name} {table.sha256[:8]}"
    return [
      Recorded(group, name, job.gather(job.ReplayConfig(folder, name), table, reporter)[0])
      for name in dict.fromkeys(names)
    ]
  finally:
    reporter.close()


def read_rows(path: pathlib.Path) -> dict[str, dict]:
  """The finished searches by label; a line that a kill cut short is not one."""
  rows = {}
  for line in path.read_text().splitlines() if path.exists() else ():
    try:
      row = json.loads(line)
    except json.JSONDecodeError:
      continue
    rows[row["label"]] = row
  return rows


def run(tasks: Sequence[Task], path: pathlib.Path, workers: int) -> list[dict]:
  """The rows of `tasks`: those in the file, and the others, each appended when it is finished."""
  done = read_rows(path)
  left = {task.label: task for task in tasks if task.label not in done}
  print(f"{len(tasks) - len(left)} of {len(tasks)} searches are in {path}", flush=True)
  path.parent.mkdir(parents=True, exist_ok=True)
  cut_short = path.exists() and path.stat().st_size and not path.read_text().endswith("\n")
  with path.open("a") as file, processes(workers) as executor:
    file.write("\n" if cut_short else "")
    began = time.perf_counter()
    for count, row in enumerate(_finished(left.values(), executor), 1):
      done[row["label"]] = row
      file.write(json.dumps(row, allow_nan=False) + "\n")
      file.flush()
      hours = (time.perf_counter() - began) / count * (len(left) - count) / 3600
      if count % 20 == 0 or count == len(left):
        print(f"{count} of {len(left)}, {hours:.1f} hours to go", file=sys.stderr, flush=True)
  return [done[task.label] for task in tasks]


def _finished(tasks: Iterable[Task], executor: futures.Executor | None) -> Iterator[dict]:
  if executor is None:
    yield from map(search, tasks)
  else:
    running = [executor.submit(search, task) for task in tasks]
    yield from (future.result() for future in futures.as_completed(running))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--table", help="a folder of recorded runs")
  parser.add_argument("--objectives", default="3", help="a number of metrics, or their names")
  parser.add_argument("--functions", nargs="*", choices=FUNCTIONS, help="none named: all")
  parser.add_argument("--dims", nargs="+", type=int, default=[5, 10, 15, 50])
  parser.add_argument("--noise", nargs="+", type=float, default=[0.0, 0.3])
  parser.add_argument("--policies", nargs="+", default=list(POLICIES), choices=POLICIES)
  parser.add_argument("--seeds", type=int, default=20)
  parser.add_argument("--budget", type=int, default=60)
  parser.add_argument("--batch", type=int, default=1)
  parser.add_argument("--workers", type=int, default=2, help="0: in this process")
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/search_bench.jsonl"))
  parser.add_argument("--curves", type=pathlib.Path)
  parser.add_argument("--plot", type=pathlib.Path, help="a picture: .png, .svg, .pdf")
  parser.add_argument("--report", action="store_true", help="search no more, print what is there")
  parser.add_argument("--each", action="store_true", help="also a table for every problem")
  args = parser.parse_args()
  problems = table_problems(args.table, args.objectives) if args.table else []
  if args.functions is not None:
    names = args.functions or list(FUNCTIONS)
    problems += [Known(f, d, noise) for d in args.dims for f in names for noise in args.noise]
  if not problems:
    parser.error("nothing to search: give --table DIR, --functions or both")
  # Seed by seed, so that a bench that is stopped has compared all policies on what it did.
  tasks = [
    Task(problem, policy, seed, args.budget, args.batch)
    for seed in range(args.seeds)
    for problem in problems
    for policy in args.policies
  ]
  if args.report:
    done = read_rows(args.out)
    rows = [done[task.label] for task in tasks if task.label in done]
  else:
    rows = run(tasks, args.out, args.workers)
  groups: dict[str, list[dict]] = {}
  for row in rows:
    groups.setdefault(row["group"], []).append(row)
  if args.plot:
    draw_curves(args.plot, groups, least=1e-3)
  if args.each:
    for row in rows:
      groups.setdefault(f"{row['group']}: {row['problem']}", []).append(row)
  for group, mine in groups.items():
    show(group, standings(mine))
  if args.curves:
    write_curves(args.curves, groups)


if __name__ == "__main__":
  main()
