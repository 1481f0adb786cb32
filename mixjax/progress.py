"""What is happening, live: a rich display on a terminal, one parseable line otherwise."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

LINE_SECONDS = 5.0  # at most one line a stage this often, unless something new was said


class Reporter:
  """Stages of a job with counts; `say` is for results. Nothing in it affects any number."""

  def __init__(self, stream=None):
    self._stream = stream or sys.stdout
    self._live = self._stream.isatty()
    self._began = time.time()
    self._stage, self._total, self._done, self._last = "", 0, 0, 0.0
    self._console = Console(file=self._stream, highlight=False) if self._live else None
    self._progress: Progress | None = None

  def stage(self, name: str, total: int = 0, done: int = 0) -> None:
    """Begins a stage of `total` items, `done` of which an earlier run has finished."""
    self._stage, self._total, self._done, self._last = name, total, done, 0.0
    if not self._live:
      self._line()
      return
    self.close()
    self._progress = Progress(
      TextColumn("[bold]{task.description:24}"),
      BarColumn(32),
      MofNCompleteColumn(),
      TimeElapsedColumn(),
      TextColumn("[dim]{task.fields[note]}"),
      console=self._console,
    )
    self._progress.start()
    self._task = self._progress.add_task(name, total=total or None, completed=done, note="")

  def advance(self, count: int = 1, note: str = "") -> None:
    """`count` more items of the stage are done."""
    self._done += count
    if self._live:
      self._progress.update(self._task, completed=self._done, note=note)
    elif time.time() - self._last > LINE_SECONDS or self._done == self._total:
      self._line(note)

  def say(self, text: str) -> None:
    """A result worth reading."""
    if self._live:
      self._console.print(text)
    else:
      print(text, file=self._stream, flush=True)

  def close(self) -> None:
    """Ends the live display; safe to call twice."""
    if self._progress:
      self._progress.stop()
      self._progress = None

  def _line(self, note: str = "") -> None:
    self._last = time.time()
    parts = [f"t={self._last - self._began:.0f}s", f"stage={self._stage.replace(' ', '_')}"]
    if self._total:
      parts.append(f"done={self._done}/{self._total}")
    if note:
      parts.append(note)
    print(*parts, file=self._stream, flush=True)
