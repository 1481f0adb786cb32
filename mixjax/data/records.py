"""Records as tokens and tiles, read when a batch wants them, and what stands in for one that fails.

Lengths were measured before (`data.lengths`), and what was bad then is never asked for. A record
that fails all the same, for its picture was not decoded then or its disk is failing now, is
replaced in the same manner: in place, by the next of its own cell that is good and no longer.
"""

import json
import os
import pathlib
import threading
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, UInt8

from mixjax.corpus import pixels
from mixjax.corpus.example import Example
from mixjax.data import tiles as tiles_lib
from mixjax.data.bad_records import BadRecord
from mixjax.data.conversation import Conversation
from mixjax.data.lengths import IMAGE_TOKENS, SOURCE, TILES, TOKENS, MeasuredCells
from mixjax.models.anyres import Size

_FEW = 16  # records that may fail before their share counts

Pictures = list[UInt8[np.ndarray, "n s s 3"]]  # each picture's tiles


class Records:
  """The records of measured cells, by their places in the table of lengths; see `load`."""

  def __init__(self, measured: MeasuredCells, failures: str | os.PathLike, max_bad: float):
    """
    Args:
      measured: the cells and their lengths.
      failures: the file to add a line to for each record that fails.
      max_bad: the largest share of loaded records that may fail, from the 17th on.
    """
    self.failures = pathlib.Path(failures)
    self._measured, self._max_bad = measured, max_bad
    self._names = list(measured.rows)
    self._loaded = 0
    self._failed: set[int] = set()
    self._lock = threading.Lock()

  def __getstate__(self):
    return {name: value for name, value in vars(self).items() if name != "_lock"}

  def __setstate__(self, state):
    vars(self).update(state)
    self._lock = threading.Lock()

  def load(self, flat: Int[np.ndarray, " n"]) -> list[tuple[Conversation, Pictures] | None]:
    """The samples at some places of the table; None where nothing of the cell could stand in."""
    found = self._try(flat)
    for i, at in enumerate(flat):
      if isinstance(found[i], BadRecord):
        found[i] = self._stand_in(int(at), found[i])
    with self._lock:
      self._loaded += len(flat)
    return found

  def _try(
    self, flat: Sequence[int] | Int[np.ndarray, " n"]
  ) -> list[tuple[Conversation, Pictures] | BadRecord]:
    """Reads, cuts and tokenises; a BadRecord for each that fails."""
    found = []
    for at in flat:
      try:
        found.append(self._seen(int(at)))
      except BadRecord as error:
        found.append(error)
    seen = [i for i, one in enumerate(found) if not isinstance(one, BadRecord)]
    said = self._measured.encoder.encode_many(
      [found[i][0] for i in seen], [found[i][1] for i in seen]
    )
    for i, conversation in zip(seen, said, strict=True):
      example, _, shown = found[i]
      if isinstance(conversation, BadRecord):
        found[i] = conversation
        continue
      measured = int(self._measured.table[flat[i], TOKENS])
      if len(conversation.ids) > measured:
        raise ValueError(
          f"row {example.key!r} has {len(conversation.ids)} tokens and was measured as {measured}: "
          "the cells have changed; measure them again"
        )
      found[i] = conversation, shown[: len(conversation.sizes)]
    return found

  def _seen(self, at: int) -> tuple[Example, list[Size], Pictures]:
    """The record at a place of the table, with its pictures' sizes and tiles. Raises BadRecord."""
    (cell,) = self._measured.cell_of(np.array([at]))
    try:
      example = self._measured.cells[self._names[cell]][int(self._measured.table[at, SOURCE])]
    except ValueError as error:
      raise BadRecord(str(error)) from error
    try:
      images = [pixels.read(encoded, self._measured.limits) for encoded in example.images]
    except pixels.BadPicture as error:
      raise BadRecord(str(error)) from error
    shown = [tiles_lib.cut(image, self._measured.encoder.geometry) for image in images]
    return example, [pixels.size_of(image) for image in images], shown

  def _stand_in(self, at: int, reason: BadRecord) -> tuple[Conversation, Pictures] | None:
    """The next good record of the same cell, going round, that takes no more room."""
    table = self._measured.table
    (cell,) = self._measured.cell_of(np.array([at]))
    start, end = self._measured.starts[cell : cell + 2]
    others = np.concatenate([np.arange(at + 1, end), np.arange(start, at)])
    good = table[others, SOURCE] == others - start
    sizes = [TOKENS, IMAGE_TOKENS, TILES]
    fits = np.all(table[others][:, sizes] <= table[at, sizes], axis=1)
    found = by = None
    for other in others[good & fits]:
      (found,) = self._try([int(other)])
      if not isinstance(found, BadRecord):
        by = int(other - start)
        break
      found = None
    self._note(
      at,
      {
        "cell": self._names[cell],
        "row": int(at - start),
        "read": int(table[at, SOURCE]),
        "reason": str(reason),
        "replaced_by_row": by,
      },
    )
    return found

  def _note(self, at: int, line: dict):
    """Adds a line to the ledger, once a process. Raises ValueError if there are too many."""
    with self._lock:
      if at in self._failed:
        return
      self._failed.add(at)
      self.failures.parent.mkdir(parents=True, exist_ok=True)
      with open(self.failures, "a") as file:  # one write, so that lines of processes do not mix
        file.write(json.dumps(line) + "\n")
      if len(self._failed) > max(_FEW, self._max_bad * self._loaded):
        raise ValueError(
          f"{len(self._failed)} of {self._loaded} records failed when they were loaded, over a "
          f"share of {self._max_bad:g}; {self.failures} says why. Measure the cells again with "
          "decode=True, or raise max_bad"
        )
