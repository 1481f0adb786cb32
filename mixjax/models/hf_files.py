"""The safetensors files of a folder: mapped rather than read; and written, whole or not at all.

The format is eight bytes with the length of a JSON header, the header with the type, shape and
place of every array, and the arrays (https://huggingface.co/docs/safetensors). A mapped array costs
nothing until it is looked at, and then only its pages, which the system may take back.
"""

import collections
import contextlib
import json
import math
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TYPES = {
  "F64": "float64",
  "F32": "float32",
  "F16": "float16",
  "BF16": "bfloat16",
  "I64": "int64",
  "I32": "int32",
  "I16": "int16",
  "I8": "int8",
  "U8": "uint8",
  "BOOL": "bool",
}
Arrays = dict[str, np.ndarray | None]  # None: it should be there and cannot be read


class Tensor(NamedTuple):
  """An array to be written, fetched when its turn comes."""

  key: str
  shape: tuple[int, ...]
  fetch: Callable[[], np.ndarray]


def contents(folder: str | os.PathLike) -> tuple[Arrays, list[str]]:
  """Every array of a folder by its key, mapped, and everything that is wrong with the files.

  None stands for an array that the index puts in a file that is missing or cannot be read.
  """
  folder = pathlib.Path(folder)
  single, index = folder / SINGLE, folder / INDEX
  if single.exists() and index.exists():
    return {}, [f"both {SINGLE} and {INDEX} are there: remove the one that is out of date"]
  if single.exists():
    arrays, problem = mapped(single)
    return arrays, [problem] if problem else []
  if not index.exists():
    other = sorted(path.name for path in folder.glob("*.bin"))
    hint = f"; {', '.join(other)} must be saved as safetensors first" if other else ""
    return {}, [f"missing file: {SINGLE} (or {INDEX} and the files that it names){hint}"]
  try:
    promised = json.loads(index.read_text())["weight_map"]
    names = sorted(set(promised.values()))
    strange = [name for name in names if pathlib.Path(name).name != name]
  except (ValueError, KeyError, TypeError, AttributeError):
    return {}, [f"{INDEX} is not JSON with a weight_map from keys to names of files"]
  if strange or not names:
    return {}, [f"{INDEX} names no files of its folder: {', '.join(strange) or 'it is empty'}"]
  return gathered(folder, promised, names)


def gathered(
  folder: pathlib.Path, promised: dict[str, str], names: list[str]
) -> tuple[Arrays, list[str]]:
  """`contents` of the files that an index names, held against what the index promises."""
  found, homes, lost, problems = {}, collections.defaultdict(list), set(), []
  for name in names:
    arrays, problem = {}, ""
    if (folder / name).exists():
      arrays, problem = mapped(folder / name)
    else:
      count = sum(home == name for home in promised.values())
      problem = f"missing file: {name}, with {count} arrays by the index"
    if problem:
      problems.append(problem)
    if problem and not arrays:
      lost.add(name)
    found |= arrays
    for key in arrays:
      homes[key].append(name)
  for key, (home, *more) in sorted(homes.items()):
    if more:
      problems.append(f"in two files: {key} is in {home} and in {', '.join(more)}")
    elif key not in promised:
      problems.append(f"not in the index: {key} of {home}")
    elif home != promised[key]:
      problems.append(f"in another file: {key} is in {home}, the index says {promised[key]}")
  for key in sorted(promised.keys() - found.keys()):
    found[key] = None
    if promised[key] not in lost:
      problems.append(f"not in its file: {key} is not in {promised[key]}, as the index says")
  return found, problems


def mapped(path: pathlib.Path) -> tuple[Arrays, str]:
  """The arrays of one file and what is wrong with it, if anything.

  Of a file with a good header and too few bytes the shapes are still told, by arrays of zeros.
  """
  size = path.stat().st_size
  with path.open("rb") as file:
    first = file.read(8)
    length = int.from_bytes(first, "little")
    if first == b"version ":
      return {}, f"{path.name} is a Git LFS pointer, not the file: run `git lfs pull`"
    if size < 8 or 8 + length > size:
      return {}, f"{path.name} is cut short or no safetensors file: {size} bytes end in its header"
    header = file.read(length)
  try:
    entries = json.loads(header)
    entries.pop("__metadata__", None)
    places = {key: place(**entry) for key, entry in entries.items()}
  except (ValueError, TypeError, AttributeError, KeyError) as error:
    return {}, f"{path.name} is no safetensors file: its header is damaged ({error})"
  if not places:
    return {}, f"{path.name} has no arrays"
  start = 8 + length
  expected = start + max(end for *_, end in places.values())
  if size < expected:
    empty = {k: np.broadcast_to(np.zeros((), t), s) for k, (t, s, *_) in places.items()}
    return empty, f"{path.name} is cut short: {size} bytes of {expected}"
  whole = np.memmap(path, np.uint8, "r")
  arrays = {
    key: np.ndarray(shape, kind, buffer=whole, offset=start + begin)
    for key, (kind, shape, begin, _) in places.items()
  }
  return arrays, f"{path.name} goes on past its last array" if size > expected else ""


def place(
  dtype: str, shape: list[int], data_offsets: list[int]
) -> tuple[jnp.dtype, tuple[int, ...], int, int]:
  """(type, shape, first byte, end) of an entry of a header; ValueError if they do not fit."""
  if dtype not in TYPES:
    raise ValueError(f"type {dtype} is not one of {', '.join(TYPES)}")
  kind, (begin, end) = jnp.dtype(TYPES[dtype]), data_offsets
  if begin < 0 or min(shape, default=0) < 0 or end - begin != math.prod(shape) * kind.itemsize:
    raise ValueError(f"bytes {begin} to {end} do not hold {dtype} {shape}")
  return kind, tuple(shape), begin, end


def write(
  folder: pathlib.Path, tensors: Iterable[Tensor], dtype: str, max_shard_size: int, writes: bool
) -> None:
  """Writes the arrays into as few files of at most `max_shard_size` bytes as their order allows.

  One array is in memory at a time; an array that is larger has a file of its own. Several files
  have an index. Without `writes`, the arrays are fetched only: every process of a pod must take
  part in fetching, and one writes.
  """
  shards, room = [[]], max_shard_size
  for tensor in tensors:
    size = math.prod(tensor.shape) * jnp.dtype(dtype).itemsize
    if shards[-1] and size > room:
      shards.append([])
      room = max_shard_size
    shards[-1].append(tensor)
    room -= size
  names = [SINGLE]
  if len(shards) > 1:
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
  for name, shard in zip(names, shards, strict=True):
    with (folder / name).open("wb") if writes else contextlib.nullcontext() as file:
      write_file(file, shard, dtype)
  if writes and len(shards) > 1:
    sizes = (math.prod(tensor.shape) for shard in shards for tensor in shard)
    index = {
      "metadata": {"total_size": sum(sizes) * jnp.dtype(dtype).itemsize},
      "weight_map": {t.key: name for name, shard in zip(names, shards, strict=True) for t in shard},
    }
    write_json(folder / INDEX, index)


def write_file(file: BinaryIO | None, tensors: list[Tensor], dtype: str) -> None:
  """One safetensors file of arrays of one type; with no file, the arrays are only fetched."""
  code = next(code for code, name in TYPES.items() if name == dtype)
  entries, begin = {"__metadata__": {"format": "pt"}}, 0
  for key, shape, _ in tensors:
    end = begin + math.prod(shape) * jnp.dtype(dtype).itemsize
    entries[key] = {"dtype": code, "shape": shape, "data_offsets": [begin, end]}
    begin = end
  header = json.dumps(entries).encode()
  header += b" " * (-len(header) % 8)  # the arrays begin at a multiple of eight
  if file is not None:
    file.write(len(header).to_bytes(8, "little") + header)
  for tensor in tensors:
    value = tensor.fetch()
    if file is not None:
      file.write(np.ascontiguousarray(value, jnp.dtype(dtype)).reshape(-1).view(np.uint8).data)


def write_json(path: pathlib.Path, value: Any) -> None:
  path.write_text(json.dumps(value, indent=2) + "\n")


@contextlib.contextmanager
def replacing(folder: str | os.PathLike, writes: bool = True) -> Iterator[pathlib.Path]:
  """A new folder whose files, once all are written, take the place of a folder's weights.

  Other files of the folder stay unless they have the same name. What names the weights goes first
  and comes last: whoever is stopped between the two leaves a folder that no reader takes for whole.
  """
  folder = pathlib.Path(folder)
  part = folder / ".part"
  if not writes:
    yield part
    return
  shutil.rmtree(part, ignore_errors=True)
  part.mkdir(parents=True)
  try:
    yield part
    old = [folder / INDEX, folder / SINGLE, *folder.glob("model-?????-of-?????.safetensors")]
    for path in old:
      path.unlink(missing_ok=True)
    entries = {INDEX, SINGLE}
    for path in sorted(part.iterdir(), key=lambda path: path.name in entries):
      path.rename(folder / path.name)
  finally:
    shutil.rmtree(part, ignore_errors=True)
