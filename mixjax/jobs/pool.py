"""Trials on this machine: one process pinned to each core, which beats every batched form on a CPU.

On 2 cores, two pinned processes train 1.25 times (1.21 to 1.38) the samples a second of one process
that trains the proxies in turn, and a batch of proxies 0.77 times (0.67 to 0.78):
tests/benchmarks/proxies_bench.py. The order of results never matters: a trial is a pure function.
"""

import concurrent.futures
import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence

from mixjax.jobs.trial import Corpus, TrialSpec, World
from mixjax.jobs.workers import ONE_THREAD, environment, obey_parent

_world: World | None = None

# glibc keeps the memory of a step for the next one, which more than doubles the steps a second of a
# tiny model (it would hand it back to the kernel every time).
KEEP_MEMORY = {
  "MALLOC_MMAP_MAX_": "0",
  "MALLOC_TRIM_THRESHOLD_": "100000000000",
  "MALLOC_ARENA_MAX": "1",
  "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}


def _start(corpus: Corpus, cores: "multiprocessing.Queue[int]", cache: str) -> None:
  """Runs once in each worker, before jax starts its threads."""
  global _world
  obey_parent()
  core = cores.get()
  if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {core})
  import jax

  jax.config.update("jax_compilation_cache_dir", cache)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
  _world = World(corpus)


def _run(spec: TrialSpec) -> dict:
  return _world.run(spec)


class LocalPool:
  """Runs batches of trials; `local_pool` opens one."""

  def __init__(self, executor: concurrent.futures.Executor):
    self._executor = executor

  def run(
    self,
    specs: Sequence[TrialSpec],
    on_done: Callable[[TrialSpec, dict], None] | None = None,
    on_diverged: Callable[[TrialSpec, FloatingPointError], None] | None = None,
  ) -> list[dict | None]:
    """Results in the order of `specs`; `on_done` is called as each finishes.

    A trial that fails stops the batch with its error, after the running ones have finished; those
    done stay done. With `on_diverged`, one whose loss is not finite only calls that and has the
    result None.
    """
    futures = {self._executor.submit(_run, spec): spec for spec in specs}
    results = {}
    try:
      for future in concurrent.futures.as_completed(futures):
        try:
          results[future] = future.result()
        except FloatingPointError as error:
          if on_diverged is None:
            raise
          on_diverged(futures[future], error)
          continue
        if on_done:
          on_done(futures[future], results[future])
    except BaseException:
      for future in futures:
        future.cancel()
      raise
    return [results.get(future) for future in futures]


@contextlib.contextmanager
def local_pool(corpus: Corpus, cache: str, workers: int | None = None) -> Iterator[LocalPool]:
  """A pool with that many workers; None is one for each core there is."""
  available = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
  workers = workers or len(available)
  context = multiprocessing.get_context("spawn")
  cores = context.Queue()
  for i in range(workers):
    cores.put(available[i % len(available)])
  with environment(ONE_THREAD | KEEP_MEMORY):
    executor = concurrent.futures.ProcessPoolExecutor(
      workers, mp_context=context, initializer=_start, initargs=(corpus, cores, cache)
    )
    try:
      yield LocalPool(executor)
    finally:
      executor.shutdown(cancel_futures=True)
