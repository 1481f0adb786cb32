"""How long rows are, and which cannot be used: each is read, its pictures looked at, its text cut.

The one slow pass over a corpus; `data.lengths` keeps what it finds.
"""

import concurrent.futures
import contextlib
import functools
import itertools
import multiprocessing
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int

from mixjax.atlas.shards import Cells
from mixjax.corpus import pixels
from mixjax.corpus.pixels import PictureLimits
from mixjax.data.bad_records import BadRecord
from mixjax.data.conversation import ConversationEncoder

MEASURED = range(4)  # tokens, image tokens, tiles, tokens with a loss
_CHUNK = 128  # rows that a worker measures at a time

Span = tuple[str, int, int]  # the rows start ... stop - 1 of a cell
# Lengths of rows; notes on those bad or shortened.
Found = tuple[Int[np.ndarray, "n 4"], list[dict]]


def measure_spans(
  cells: Cells,
  encoder: ConversationEncoder,
  limits: PictureLimits,
  decode: bool,
  spans: Sequence[Span],
  workers: int = 0,
) -> Iterator[Found]:
  """What is found of each span, in order; its notes count rows from the span's first.

  `decode`: whether pictures are read to their ends. `workers`: processes to share the work.
  """
  chunks = [
    [(cell, first, min(first + _CHUNK, stop)) for first in range(start, stop, _CHUNK)]
    for cell, start, stop in spans
  ]
  work = list(itertools.chain.from_iterable(chunks))
  measure = functools.partial(measure_rows, cells, encoder, limits, decode)
  with contextlib.ExitStack() as stack:
    found = map(measure, work)
    if workers and work:
      context = multiprocessing.get_context("spawn")  # a fork would copy threads' locks
      pool = concurrent.futures.ProcessPoolExecutor(workers, context, _start, (measure,))
      found = stack.enter_context(pool).map(_work, work)
    for (_, start, _), parts in zip(spans, chunks, strict=True):
      lengths, notes = zip(*itertools.islice(found, len(parts)), strict=True)
      notes = [note | {"row": note["row"] - start} for note in itertools.chain.from_iterable(notes)]
      yield np.concatenate(lengths), notes


def _start(measure):
  """In a worker process: the cells and the tokenizer travel once."""
  global _work_of_process
  _work_of_process = measure


def _work(span):
  return _work_of_process(span)


def measure_rows(
  cells: Cells,
  encoder: ConversationEncoder,
  limits: PictureLimits,
  decode: bool,
  span: Span,
) -> Found:
  """Lengths of a span's rows, zeros for a record that cannot be used, and notes in order."""
  cell, start, stop = span
  lengths = np.zeros((stop - start, len(MEASURED)), np.int32)
  rows, examples, sizes, notes = [], [], [], []
  for row in range(start, stop):
    key = ""
    try:
      example = cells[cell][row]
      key = example.key
      size = [pixels.measure(image, limits, decode) for image in example.images]
    except ValueError as error:  # a BadPicture, or a record that is no Example
      notes.append({"row": row, "key": key, "bad": _reason(error)})
      continue
    rows.append(row)
    examples.append(example)
    sizes.append(size)
  for row, example, found in zip(rows, examples, encoder.encode_many(examples, sizes), strict=True):
    if isinstance(found, BadRecord):
      notes.append({"row": row, "key": example.key, "bad": str(found)})
      continue
    tiles = sum(map(encoder.geometry.num_tiles, found.sizes))
    image_tokens = sum(map(encoder.geometry.num_tokens, found.sizes))
    lengths[row - start] = len(found.ids), image_tokens, tiles, found.loss_mask.sum()
    dropped = len(example.turns) - found.turns
    if dropped or found.cut:
      kept = {"turns_dropped": dropped, "tokens_cut": found.cut}
      notes.append({"row": row, "key": example.key, "shortened": kept})
  return lengths, sorted(notes, key=lambda note: note["row"])


def _reason(error: ValueError) -> str:
  return "bad UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
