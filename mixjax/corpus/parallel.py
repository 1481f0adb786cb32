"""Work on the parts of a corpus in processes, with results in the parts' order."""

import concurrent.futures
import itertools
import multiprocessing
import queue
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_CHUNK, _CHUNKS = 32, 4  # items sent at once, and chunks that a worker may be ahead
_POLL = 2.0  # seconds between looks at whether a silent worker lives


def ordered_map(
  function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[Result]:
  """function(item) of each item, in order; no more items are taken than there is work for.

  With 0 workers all is done in this process; otherwise `function` and results are pickled.
  """
  if workers < 1:
    yield from map(function, items)
    return
  # Spawned, not forked: threads of JAX or Arrow do not survive a fork.
  context = multiprocessing.get_context("spawn")
  rest = iter(items)
  with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
    waiting = [pool.submit(function, item) for item in itertools.islice(rest, 2 * workers)]
    try:
      while waiting:
        yield waiting.pop(0).result()
        waiting += [pool.submit(function, item) for item in itertools.islice(rest, 1)]
    finally:
      for future in waiting:
        future.cancel()


def ordered_stream(
  function: Callable[[Item], Iterable[Result]], items: Iterable[Item], workers: int
) -> Iterator[Result]:
  """All of function(item) for each item, in order, read ahead by `workers` processes.

  Worker w does items w, w + workers, ...; each is at most a few chunks ahead of what was taken.
  An exception of a worker is raised here; RuntimeError where a worker dies.
  """
  context = multiprocessing.get_context("spawn")
  items = list(items)
  workers = min(workers, len(items))
  queues = [context.Queue(_CHUNKS) for _ in range(workers)]
  processes: list[multiprocessing.Process] = []
  try:
    for w, out in enumerate(queues):
      arguments = (function, items[w::workers], out)
      process = context.Process(target=_work, args=arguments, daemon=True)
      process.start()
      processes.append(process)
    for i in range(len(items)):
      while (chunk := _take(queues[i % workers], processes[i % workers])) is not None:
        yield from chunk
  finally:
    for process in processes:
      process.terminate()
    for process in processes:
      process.join()


def _work(function: Callable, items: list, out: Any) -> None:
  try:
    for item in items:
      results = iter(function(item))
      while chunk := list(itertools.islice(results, _CHUNK)):
        out.put(chunk)
      out.put(None)
  except Exception as error:
    out.put(error)


def _take(source: Any, process: multiprocessing.Process) -> list | None:
  while True:
    try:
      chunk = source.get(timeout=_POLL)
    except queue.Empty:
      if not process.is_alive() and source.empty():
        raise RuntimeError(f"a reading process ended with code {process.exitcode}") from None
      continue
    if isinstance(chunk, Exception):
      raise chunk
    return chunk
