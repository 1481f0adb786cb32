"""Trials on this machine: one process pinned to each core, which beats every batched form on a CPU.

On 2 cores, two pinned processes train 1.25 times (1.21 to 1.38) the samples a second of one process
that trains the proxies in turn, and a batch of proxies 0.77 times (0.67 to 0.78):
tests/benchmarks/proxies_bench.py. The order of results never matters: a trial is a pure function.
"""

import concurrent.futures
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence

from mixjax.jobs.trial import Corpus, TrialSpec, World

_world: World | None = None

# Read when a process starts. XLA on one thread; and glibc keeps the memory of a step for the next
# one, which more than doubles the steps a second of a tiny model (it would hand it back to the
# kernel every time).
WORKER_ENVIRONMENT = {
  "JAX_PLATFORMS": "cpu",
  "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
  "OMP_NUM_THREADS": "1",
  "MALLOC_MMAP_MAX_": "0",
  "MALLOC_TRIM_THRESHOLD_": "100000000000",
  "MALLOC_ARENA_MAX": "1",
  "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}


def _start(corpus: Corpus, cores: "multiprocessing.Queue[int]", cache: str) -> None:
  """Runs once in each worker, before jax starts its threads."""
  global _world
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
  threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()
  core = cores.get()
  if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {core})
  import jax

  jax.config.update("jax_compilation_cache_dir", cache)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
  _world = World(corpus)


def _follow(parent: int) -> None:
  """Ends the worker when its parent is gone, killed perhaps: no orphan goes on writing."""
  while os.getppid() == parent:
    time.sleep(0.2)
  os._exit(1)


def _run(spec: TrialSpec) -> dict:
  return _world.run(spec)


class LocalPool:
  """Runs batches of trials; use as a context manager. `workers` defaults to the cores there are."""

  def __init__(self, corpus: Corpus, cache: str, workers: int | None = None):
    available = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    workers = workers or len(available)
    context = multiprocessing.get_context("spawn")
    cores = context.Queue()
    for i in range(workers):
      cores.put(available[i % len(available)])
    self._saved = {key: os.environ.get(key) for key in WORKER_ENVIRONMENT}
    os.environ |= WORKER_ENVIRONMENT
    self._executor = concurrent.futures.ProcessPoolExecutor(
      workers, mp_context=context, initializer=_start, initargs=(corpus, cores, cache)
    )

  def run(
    self, specs: Sequence[TrialSpec], on_done: Callable[[TrialSpec, dict], None] | None = None
  ) -> list[dict]:
    """Results in the order of `specs`; `on_done` is called as each finishes.

    A trial that fails stops the batch with its error, after the running ones have finished; those
    done stay done.
    """
    futures = {self._executor.submit(_run, spec): spec for spec in specs}
    try:
      for future in concurrent.futures.as_completed(futures):
        result = future.result()
        if on_done:
          on_done(futures[future], result)
    except BaseException:
      for future in futures:
        future.cancel()
      raise
    return [future.result() for future in futures]

  def __enter__(self) -> "LocalPool":
    return self

  def __exit__(self, *_) -> None:
    self._executor.shutdown(cancel_futures=True)
    for key, value in self._saved.items():
      if value is None:
        os.environ.pop(key, None)
      else:
        os.environ[key] = value
