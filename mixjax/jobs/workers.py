"""Processes of one thread each: one program whatever the machine, none outliving its parent."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping

# Read when a process starts.
ONE_THREAD = {
  "JAX_PLATFORMS": "cpu",
  "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
  "OMP_NUM_THREADS": "1",
}


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
  """What processes started within inherit beside the rest."""
  saved = {key: os.environ.get(key) for key in variables}
  os.environ |= variables
  try:
    yield
  finally:
    for key, value in saved.items():
      if value is None:
        os.environ.pop(key, None)
      else:
        os.environ[key] = value


@contextlib.contextmanager
def processes(count: int) -> Iterator[concurrent.futures.Executor | None]:
  """That many workers; None without any."""
  if not count:
    yield None
    return
  with environment(ONE_THREAD):
    executor = concurrent.futures.ProcessPoolExecutor(
      count, mp_context=multiprocessing.get_context("spawn"), initializer=obey_parent
    )
    try:
      yield executor
    finally:
      executor.shutdown(cancel_futures=True)


def obey_parent() -> None:
  """Runs once in each worker: Ctrl-C is the parent's to handle, and its end is the worker's."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()


def _follow(parent: int) -> None:
  """A parent may be killed without a word: no orphan goes on writing."""
  while os.getppid() == parent:
    time.sleep(0.2)
  os._exit(1)
