"""How long a suggestion takes: 60 runs, 15 weights, a pool of 2000; and beside BoTorch's.

  python tests/benchmarks/suggestion_bench.py
  python tests/benchmarks/suggestion_bench.py --runs 50 200 1000 [--dim 50]

The first prints seconds of the first call (with compilation) and the median and range of those
after it. The second needs requirements-bench.txt and suggests batches of eight, fit included, with
MixAtlas and with BoTorch, over the same pool and anywhere on the simplex. Each has a process of its
own with one thread, for one number of runs, so its peak memory is its own; they take turns, never
two at once, each time on other runs. Seconds are of the clock; `cpu` tells what they would be on a
machine with nothing else to do. Batches are judged by expected improvement over the best
posterior mean at the runs, in sds of the scores, under each library's model: every optimiser is at
home under its own acquisition and model, so read both columns.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import multiprocessing
import os
import pathlib
import statistics
import sys
import time

import numpy as np
from jaxtyping import Float

# The repository, where mixjax is not installed.
sys.path.append(str(pathlib.Path(__file__).parents[2]))

from mixjax.jobs.workers import ONE_THREAD

# Modules that bring in jax or torch are imported where they are used: a process whose memory is
# measured loads only its own.
POOL, BATCH = 2000, 8
OURS = "mixjax"


@dataclasses.dataclass(frozen=True, eq=False)
class Question:
  """What every contender is asked: runs, and the candidates that were not run."""

  mixtures: Float[np.ndarray, "n d"]
  scores: Float[np.ndarray, " n"]
  pool: Float[np.ndarray, "m d"]
  seed: int


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
  """`mib` is the peak memory of the process so far, `loaded_mib` what it was before its first."""

  batch: Float[np.ndarray, "b d"]
  fit_seconds: float
  choose_seconds: float
  cpu_seconds: float
  loaded_mib: float
  mib: float

  @property
  def seconds(self) -> float:
    return self.fit_seconds + self.choose_seconds


def question(dim: int, runs: int, seed: int) -> Question:
  """Noisy runs of a function with interactions."""
  from simplex_functions import interacting

  from mixjax.search.space import Space, candidates

  space = Space.simplex("domain", [f"w{i}" for i in range(dim)])
  mixtures = candidates(space, runs, [seed, 1])[1:]  # the first is in every pool
  extra = np.random.default_rng([seed, 2]).dirichlet(np.ones(dim), 1)
  mixtures = np.concatenate([mixtures, extra])
  truth = interacting(dim).value(mixtures)
  noise = 0.1 * truth.std() * np.random.default_rng([seed, 3]).normal(size=runs)
  return Question(mixtures, truth + noise, candidates(space, POOL, 0), seed)


def _space(asked: Question):
  from mixjax.search.space import Space

  return Space.simplex("domain", [f"w{i}" for i in range(asked.pool.shape[1])], pool=asked.pool)


def _ours(asked: Question):
  from mixjax.search import surrogate
  from mixjax.search.observations import Observations

  return surrogate.fit(Observations(asked.mixtures, asked.scores), _space(asked))


def suggest_mixjax(asked: Question) -> tuple[float, np.ndarray]:
  """When the fit was done, and the batch."""
  from mixjax.search.acquire import choose_batch

  fitted = _ours(asked)
  then = time.perf_counter()
  return then, asked.pool[choose_batch(fitted, asked.pool, BATCH)]


def suggest_anywhere(asked: Question) -> tuple[float, np.ndarray]:
  """`suggest_mixjax` by gradients on the whole simplex, of log EI as BoTorch's is."""
  from mixjax.search.maximize import maximize

  fitted = _ours(asked)
  then = time.perf_counter()
  return then, maximize([fitted], BATCH, acquisition="log_ei")


def suggest_botorch(asked: Question, discrete: bool) -> tuple[float, np.ndarray]:
  """`SingleTaskGP` and qLogEI: over the pool, or over the simplex as an equality constraint."""
  import botorch_parts
  from botorch.utils.sampling import manual_seed

  with manual_seed(asked.seed):
    model = botorch_parts.stock_model(asked.mixtures, asked.scores)
    then = time.perf_counter()
    none = asked.mixtures[:0]
    acquisition = botorch_parts.log_improvement(model, asked.scores, none, BATCH, asked.seed)
    if not discrete:
      return then, botorch_parts.choose_continuous(acquisition, asked.pool.shape[1], BATCH)
    return then, asked.pool[botorch_parts.choose_discrete(acquisition, asked.pool, BATCH)]


CONTENDERS = {
  OURS: suggest_mixjax,
  "mixjax simplex": suggest_anywhere,
  "botorch pool": functools.partial(suggest_botorch, discrete=True),
  "botorch simplex": functools.partial(suggest_botorch, discrete=False),
}


def load(name: str) -> float:
  """MiB of a process that holds what a contender imports."""
  if name == OURS:
    import mixjax.search.acquire
    import mixjax.search.surrogate  # noqa: F401
  else:
    import botorch_parts  # noqa: F401
  return _peak_mib()


def suggest(name: str, asked: Question, loaded: float) -> Answer:
  began, worked = time.perf_counter(), time.process_time()
  fitted, batch = CONTENDERS[name](asked)
  ended, worked = time.perf_counter(), time.process_time() - worked
  return Answer(batch, fitted - began, ended - fitted, worked, loaded, _peak_mib())


def _peak_mib() -> float:
  """Of this program alone: `ru_maxrss` would start from that of the process it was started by."""
  (line,) = (s for s in pathlib.Path("/proc/self/status").read_text().split("\n") if "VmHWM" in s)
  return int(line.split()[1]) / 1024


def judge_mixjax(asked: Question, batches: dict[str, np.ndarray]) -> dict[str, float]:
  fitted = _ours(asked)
  best = fitted.predict(asked.mixtures)[0].max()
  spread = asked.scores.std()
  return {n: expected_improvement(*fitted.joint(b), best) / spread for n, b in batches.items()}


def judge_botorch(asked: Question, batches: dict[str, np.ndarray]) -> dict[str, float]:
  import botorch_parts

  model = botorch_parts.stock_model(asked.mixtures, asked.scores)
  best = botorch_parts.marginals(model, asked.mixtures)[0].max()
  spread = asked.scores.std()
  return {
    name: expected_improvement(*botorch_parts.posterior(model, batch), best) / spread
    for name, batch in batches.items()
  }


JUDGES = {"mixjax": judge_mixjax, "botorch": judge_botorch}


def expected_improvement(
  mean: Float[np.ndarray, " b"], covariance: Float[np.ndarray, "b b"], best: float
) -> float:
  """What the best of the batch gains over `best`, from 2^15 draws that are the same for all."""
  normal = np.random.default_rng(0).standard_normal((1 << 15, len(mean)))
  values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
  draws = mean + (normal * np.sqrt(np.maximum(values, 0))) @ vectors.T
  return float(np.maximum(draws.max(axis=1) - best, 0).mean())


def _process() -> concurrent.futures.ProcessPoolExecutor:
  return concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


def compare(dim: int, runs: int, repeats: int, names: list[str]) -> dict[str, list[Answer]]:
  """`repeats` answers each, after one that is not counted; prints them judged."""
  processes = {name: _process() for name in names}
  judges = {name: _process() for name in JUDGES}
  answers: dict[str, list[Answer]] = {name: [] for name in names}
  scores: dict[str, dict[str, list[float]]] = {j: {n: [] for n in names} for j in judges}
  try:
    loaded = {name: process.submit(load, name).result() for name, process in processes.items()}
    first = question(dim, runs, 0)
    firsts = {n: p.submit(suggest, n, first, loaded[n]).result() for n, p in processes.items()}
    for repeat in range(1, repeats + 1):
      asked = question(dim, runs, repeat)
      for i in range(len(names)):
        name = names[(i + repeat) % len(names)]
        answer = processes[name].submit(suggest, name, asked, loaded[name]).result()
        answers[name].append(answer)
        said = f"{runs} runs, repeat {repeat}, {name}: {answer.seconds:.2f} s"
        print(f"{said}, cpu {answer.cpu_seconds:.2f} s", file=sys.stderr, flush=True)
      batches = {name: answers[name][-1].batch for name in names}
      for judge, process in judges.items():
        for name, value in process.submit(JUDGES[judge], asked, batches).result().items():
          scores[judge][name].append(value)
  finally:
    for process in (*processes.values(), *judges.values()):
      process.shutdown(cancel_futures=True)

  print(f"\n{runs} runs, {dim} weights, batches of {BATCH}, {repeats} repeats: median (range)")
  print(
    f"  {'':16}{'first s':>9}{'seconds':>26}{'of them fit':>13}{'cpu':>8}{'times mixjax':>24}"
    f"{'peak MiB':>10}{'loaded':>8}" + "".join(f"{'EI by ' + j:>28}" for j in JUDGES)
  )
  for name, mine in answers.items():
    seconds = [answer.seconds for answer in mine]
    fit = statistics.median(answer.fit_seconds for answer in mine)
    cpu = statistics.median(answer.cpu_seconds for answer in mine)
    base = [answer.seconds for answer in answers[OURS]]
    ratio = _spread([s / b for s, b in zip(seconds, base, strict=True)])
    judged = "".join(f"{_spread(scores[judge][name]):>28}" for judge in JUDGES)
    print(
      f"  {name:16}{firsts[name].seconds:9.2f}{_spread(seconds):>26}{fit:13.3f}{cpu:8.2f}"
      f"{ratio:>24}{mine[-1].mib:10.0f}{mine[-1].loaded_mib:8.0f}{judged}",
      flush=True,
    )
  return answers


def _spread(values: list[float]) -> str:
  return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def alone() -> None:
  """The suggestion a user of the product space waits for."""
  from mixjax.search.observations import Observations
  from mixjax.search.policies.mixatlas import MixAtlas
  from mixjax.search.space import Space, candidates

  concepts, tasks = [f"concept{i}" for i in range(10)], list("abcde")
  space = Space.product(concepts, tasks)
  space = space.with_pool(candidates(space, 2000, 0))
  mixtures = candidates(space, 60, 1)
  scores = np.random.default_rng(0).normal(size=60) - np.sum((mixtures - 0.1) ** 2, axis=1)
  policy = MixAtlas(space)
  for count in (1, 8):
    seconds = []
    for _ in range(6):
      began = time.perf_counter()
      policy.ask(Observations(mixtures, scores), count, 0)
      seconds.append(time.perf_counter() - began)
    rest = sorted(seconds[1:])
    print(
      f"{count} mixtures: first {seconds[0]:.2f} s, then {rest[2]:.3f} s "
      f"({rest[0]:.3f} to {rest[-1]:.3f})"
    )


def beside(dim: int, sizes: list[int], repeats: int, names: list[str]) -> None:
  os.environ |= ONE_THREAD  # for the processes, which read it when they start
  names = [OURS, *(name for name in names if name != OURS)]
  found = {runs: compare(dim, runs, repeats, names) for runs in sizes}
  print(f"\ngrowth of the median seconds, beside those of {sizes[0]} runs")
  for name in names:
    medians = [statistics.median(a.seconds for a in found[runs][name]) for runs in sizes]
    grown = "".join(f"{n:>8}: {m / medians[0]:6.2f}" for n, m in zip(sizes, medians, strict=True))
    print(f"  {name:16}{grown}")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--runs", nargs="+", type=int, help="compare with BoTorch at these sizes")
  parser.add_argument("--dim", type=int, default=50)
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
  args = parser.parse_args()
  if args.runs:
    beside(args.dim, args.runs, args.repeats, args.only)
  else:
    alone()


if __name__ == "__main__":
  main()
