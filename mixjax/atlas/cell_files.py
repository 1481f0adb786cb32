"""The files of cells' records, of which there may be more than a process may have open."""

import array
import functools
import os
import pathlib
import resource
import tempfile
from collections.abc import Callable

from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

_LENGTH = 8  # bytes that say how long a record is


def most_open(part: float) -> int:
  """As many files as that part of what the system lets this process open; at least one."""
  soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
  return max(int(part * (soft if soft != resource.RLIM_INFINITY else 1 << 20)), 1)


class RecordFiles:
  """ArrayRecord files being written, of which any number of records may come in any order.

  The first files are written as records come. For all others they wait in one file more, where each
  says how long it is, until `close` writes file after file.
  """

  def __init__(self, waiting_in: pathlib.Path, most: int | None = None):
    """`waiting_in`: a folder; `most`: files open at a time, by default a quarter of the limit."""
    self._folder, self._most = waiting_in, most_open(1 / 4) if most is None else most
    self._open: dict[pathlib.Path, ArrayRecordWriter] = {}
    self._places: dict[pathlib.Path, array.array] = {}  # where a file's records wait
    self._waiting = None

  def write(self, path: pathlib.Path, record: bytes):
    """The next record of a file."""
    if path not in self._open and len(self._open) < self._most:
      self._open[path] = _writer(path)
    if path in self._open:
      self._open[path].write(record)
      return
    if self._waiting is None:
      self._waiting = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115  closed below
    self._places.setdefault(path, array.array("q")).append(self._waiting.tell())
    self._waiting.write(len(record).to_bytes(_LENGTH))
    self._waiting.write(record)

  def close(self):
    """Ends all files, with the records that wait."""
    for writer in self._open.values():
      writer.close()
    for path, places in self._places.items():
      writer = _writer(path)
      for place in places:
        self._waiting.seek(place)
        writer.write(self._waiting.read(int.from_bytes(self._waiting.read(_LENGTH))))
      writer.close()
    self.abandon()

  def abandon(self):
    """Lets go of all files, for a folder that is about to be removed."""
    for writer in self._open.values():
      if writer.is_open():
        writer.close()
    if self._waiting is not None:
      self._waiting.close()


def _writer(path: pathlib.Path) -> ArrayRecordWriter:
  # A group of one record is what makes random access cheap.
  return ArrayRecordWriter(os.fspath(path), "group_size:1")


class OpenFiles:
  """Files that are read, the ones used last of which stay open; every process opens its own."""

  def __init__(self):
    # By reference, so one cache an instance: files of one name may be others later.
    # And a file a source: one of several files holds each of them open.
    self.source: Callable[[str], ArrayRecordDataSource]
    self.source = functools.lru_cache(max(most_open(1 / 2), 16))(ArrayRecordDataSource)

  def __reduce__(self):
    return OpenFiles, ()
