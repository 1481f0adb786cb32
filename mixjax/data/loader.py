"""Batches as a pure function of (weights, cells, seed, batch size, step).

The corpus is tokenised once into flat arrays, so that a batch is a handful of numpy gathers and a
proxy never waits for its data. The state of the stream is one integer, the step.
"""

import dataclasses
import functools
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence

import grain
import numpy as np
from jaxtyping import Bool, Float, Int

from mixjax.atlas.shards import Cells
from mixjax.corpus.example import IMAGE, Example, Turn
from mixjax.data.bad_records import none_good, replacements
from mixjax.data.encode import Encoder
from mixjax.data.sampler import Sampler
from mixjax.data.stages import Stages

FORMAT = 1
INDEX, LEDGER = "cells.json", "ledger.jsonl"
_ARRAYS = ("ids", "loss_mask", "mask", "image")
_NO_IMAGE = -1
_CHUNK = 1 << 16  # positions counted at a time


@dataclasses.dataclass(frozen=True)
class EncodedCells:
  """All rows of all cells as tokens, cell after cell, and their images' features.

  `rows` is {cell: number of rows}; cell i owns the flat rows starts[i] ... starts[i + 1] - 1.
  `image` holds a row's place in `features`, -1 for a row without an image. `report` holds, by cell,
  how many answers were truncated and how many bad records were replaced.
  """

  rows: dict[str, int]
  starts: Int[np.ndarray, " k_plus_1"]
  ids: Int[np.ndarray, "n t"]
  loss_mask: Bool[np.ndarray, "n t"]
  mask: Bool[np.ndarray, "n t"]
  image: Int[np.ndarray, " n"]
  features: Float[np.ndarray, "m p dv"]
  report: dict[str, dict[str, int]]

  @classmethod
  def load(
    cls, folder: str | os.PathLike, features: Float[np.ndarray, "m p dv"] | None = None
  ) -> "EncodedCells":
    """Opens what `encode_cells` wrote, memory-mapped; `features` replaces the ones it kept."""
    folder = pathlib.Path(folder)
    if not (folder / INDEX).exists():
      raise FileNotFoundError(f"{folder / INDEX} is missing: {folder} holds no encoded cells")
    index = json.loads((folder / INDEX).read_text())
    if index["format"] != FORMAT:
      raise ValueError(f"{folder} has format {index['format']}, this code reads format {FORMAT}")
    if features is None:
      features = np.load(folder / index["features"], mmap_mode="r")
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
    images = arrays["image"].max(initial=_NO_IMAGE) + 1
    if images > len(features):
      raise ValueError(f"{folder} needs the features of {images} images, not of {len(features)}")
    rows = {cell: entry["rows"] for cell, entry in index["cells"].items()}
    return cls(rows, _starts(rows), features=features, report=index["cells"], **arrays)

  @functools.cached_property
  def loss_tokens(self) -> Int[np.ndarray, " n"]:
    """Tokens of each flat row that a loss is taken on."""
    return self.loss_mask.sum(axis=1)


def _starts(rows: Mapping[str, int]) -> Int[np.ndarray, " k_plus_1"]:
  return np.concatenate([[0], np.cumsum(list(rows.values()), dtype=np.int64)])


def encode_cells(
  cells: Cells,
  encoder: Encoder,
  features: Float[np.ndarray, "m p dv"],
  image_index: Mapping[str, int],
  folder: str | os.PathLike,
  bad: Collection[str] | Callable[[Example], bool] = (),
) -> EncodedCells:
  """Tokenises every row and writes the arrays under `folder`, whole or not at all.

  A row's picture comes first, wherever its prompts have it. A bad record (its image is in `bad` or
  has no features, it has several images or an empty answer) is replaced in place by the next good
  record of its own cell, so that sizes and all other rows stay as they are; each replacement is a
  line of `folder/ledger.jsonl`.

  Where the encoder truncates, the rows are somebody's corpus: a record whose prompt alone is too
  long, or that holds a token of the frame, is bad as well, and a cell of bad records only gets no
  rows; in the ledger they are replaced by none.

  Args:
    cells: the rows.
    encoder: turns them into tokens.
    features: one array for all images. A memory-mapped .npy file is referred to, not copied.
    image_index: place in `features` by image key.
    folder: the folder to create.
    bad: keys of images that are not to be used, or a function that says so of a row.

  Raises:
    FileExistsError: the folder is already there.
    ValueError: no record is good; or the encoder does not truncate, and a cell has only bad
      records or a row cannot be encoded (named).
  """
  folder = pathlib.Path(folder)
  if folder.exists():
    raise FileExistsError(f"{folder} already exists; remove it, or encode the cells elsewhere")
  partial = folder.with_name(f".{folder.name}.partial")
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  is_bad = bad if callable(bad) else lambda example: example.image_key in bad
  total = sum(cells.rows.values())
  token = np.int16 if len(encoder.tokenizer) <= np.iinfo(np.int16).max else np.int32
  shapes = {
    "ids": (token, (total, encoder.length)),
    "loss_mask": (bool, (total, encoder.length)),
    "mask": (bool, (total, encoder.length)),
    "image": (np.int32, (total,)),
  }
  try:
    arrays = {
      name: np.lib.format.open_memmap(partial / f"{name}.npy", "w+", dtype, shape)
      for name, (dtype, shape) in shapes.items()
    }
    report = {}
    with open(partial / LEDGER, "w") as ledger:
      start = 0
      for cell in cells:
        examples, faults = [], []
        for example in cells[cell]:
          faults.append(_fault(example, image_index, is_bad))
          examples.append(dataclasses.replace(example, images=(b"",) * len(example.images)))
        encoded, problems = _encoded(examples, encoder)
        if not encoder.truncate and (mine := [i for i in problems if not faults[i]]):
          raise ValueError(problems[mine[0]])
        faults = {row: why for row, one in enumerate(faults) if (why := one or problems.get(row))}
        replaced = replacements(
          cell, len(examples), faults, lambda row, examples=tuple(examples): examples[row].key
        )
        for line in replaced.values():
          ledger.write(json.dumps(line) + "\n")
        if len(replaced) == len(examples):
          if examples and not encoder.truncate:
            raise ValueError(none_good(cell, replaced))
          report[cell] = {"rows": 0, "truncated": 0, "replaced": 0}
          continue
        source = np.arange(len(examples))
        source[list(replaced)] = [line["replaced_by_row"] for line in replaced.values()]
        here = slice(start, start + len(examples))
        start = here.stop
        for name in ("ids", "loss_mask", "mask"):
          arrays[name][here] = encoded[name][source]
        keys = [examples[row].image_key for row in source]
        arrays["image"][here] = [image_index[key] if key else _NO_IMAGE for key in keys]
        report[cell] = {
          "rows": len(examples),
          "truncated": int(encoded["truncated"][source].sum()),
          "replaced": len(replaced),
        }
    if total and not start:
      first = (partial / LEDGER).read_text().splitlines()[:3]
      raise ValueError(f"none of the {total} records can be used; the first: {', '.join(first)}")
    for array in arrays.values():
      array.flush()
    index = {
      "format": FORMAT,
      "cells_sha256": cells.manifest["sha256"],
      "features": _keep_features(features, partial, folder),
      "cells": report,
    }
    (partial / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    os.replace(partial, folder)
  except BaseException:
    shutil.rmtree(partial, ignore_errors=True)
    raise
  return EncodedCells.load(folder)


def _encoded(
  examples: Sequence[Example], encoder: Encoder
) -> tuple[dict[str, np.ndarray], dict[int, str]]:
  """What `Encoder.encode_many` makes of the rows, and why some cannot be encoded."""
  turns = [[Turn(t.prompt.replace(IMAGE, "").strip(), t.answer) for t in e.turns] for e in examples]
  problems: dict[int, str] = {}
  encoded = encoder.encode_many(
    [first.prompt for first, *_ in turns],
    [first.answer for first, *_ in turns],
    [bool(e.image_key) for e in examples],
    [e.key for e in examples],
    later=[later for _, *later in turns],
    problems=problems,
  )
  return encoded, problems


def _fault(
  example: Example, image_index: Mapping[str, int], is_bad: Callable[[Example], bool]
) -> str:
  """Why a record cannot be used, or ""."""
  if not all(turn.answer.strip() for turn in example.turns):
    return "empty answer"
  if len(example.images) > 1:
    return "several pictures"
  if is_bad(example):
    return "bad image"
  if example.image_key and example.image_key not in image_index:
    return "no features"
  return ""


def _keep_features(features, partial: pathlib.Path, folder: pathlib.Path) -> str:
  """Where the features are, relative to `folder`: the file they are mapped from, or a copy."""
  name = getattr(features, "filename", None)
  if name is not None and pathlib.Path(name).suffix == ".npy" and features.flags.c_contiguous:
    whole = np.load(name, mmap_mode="r")
    if (whole.shape, whole.dtype) == (features.shape, features.dtype):
      return os.path.relpath(name, folder)
  np.save(partial / "features.npy", features)
  return "features.npy"


class Loader:
  """The batches of one run; see `batch`."""

  def __init__(
    self,
    encoded: EncodedCells,
    weights: Mapping[str, float] | Stages,
    seed: int,
    batch_size: int,
    blind: bool = False,
  ):
    """weights: as `Sampler` takes them; `blind` zeroes the features."""
    if batch_size < 1:
      raise ValueError(f"batch_size is {batch_size}: it must be at least 1")
    self.encoded, self.batch_size, self.blind = encoded, batch_size, blind
    self.sampler = Sampler(weights, encoded.rows, seed)

  def batch(
    self, step: int, process_index: int = 0, process_count: int = 1
  ) -> dict[str, np.ndarray]:
    """Batch `step`, or one host's part of it: the parts in host order make up the batch.

    Returns ids int32[b, t], loss_mask bool[b, t], mask bool[b, t], features float32[b, p, dv] and
    cell int32[b] with b = batch_size / process_count. Raises ValueError if that is not whole.
    """
    size, rest = divmod(self.batch_size, process_count)
    if rest:
      raise ValueError(f"batch_size {self.batch_size} is no multiple of {process_count} processes")
    cell, row = self.sampler.rows(int(step) * self.batch_size + process_index * size, size)
    at = self.encoded.starts[cell] + row
    image = self.encoded.image[at]
    shape = (size, *self.encoded.features.shape[1:])
    features = np.zeros(shape, np.float32)
    if not self.blind:
      seen = image != _NO_IMAGE
      features[seen] = self.encoded.features[image[seen]]
    return {
      "ids": self.encoded.ids[at].astype(np.int32),
      "loss_mask": np.array(self.encoded.loss_mask[at]),
      "mask": np.array(self.encoded.mask[at]),
      "features": features,
      "cell": cell,
    }

  def dataset(
    self, steps: int, start: int = 0, process_index: int = 0, process_count: int = 1
  ) -> grain.IterDataset:
    """The batches start ... start + steps - 1 in order, one or two of them prepared ahead."""
    batch = functools.partial(self.batch, process_index=process_index, process_count=process_count)
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    return grain.MapDataset.range(start, start + steps).map(batch).to_iter_dataset(options)

  def counts(self, steps: int) -> dict[str, dict[str, float]]:
    """What the first `steps` batches hold of each cell.

    By cell: `requested` (weight x samples, a real number), `realised` samples, `epochs` (realised
    samples per row) and `loss_tokens`, over all hosts.
    """
    samples = steps * self.batch_size
    tokens = np.zeros(len(self.encoded.rows), np.int64)
    for start in range(0, samples, _CHUNK):
      cell, row = self.sampler.rows(start, min(_CHUNK, samples - start))
      np.add.at(tokens, cell, self.encoded.loss_tokens[self.encoded.starts[cell] + row])
    realised, requested = self.sampler.counts(samples), self.sampler.quotas(samples)
    return {
      cell: {
        "requested": float(requested[i]),
        "realised": int(realised[i]),
        "epochs": int(realised[i]) / max(self.encoded.rows[cell], 1),
        "loss_tokens": int(tokens[i]),
      }
      for i, cell in enumerate(self.encoded.rows)
    }
