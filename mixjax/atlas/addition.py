"""One source's rows on their way into a folder of cells, whoever writes them.

Everything is laid down beside the folder and becomes it, or a part of it, in the end:

    with adding("cells", "train", concepts, source="web") as addition:
      ...  # write records to addition.file(cell, 0) and say so in addition.written
    addition.manifest
"""

import contextlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence

import tensorflow_datasets as tfds

from mixjax.atlas import manifest as manifests
from mixjax.atlas.manifest import FORMAT, MANIFEST, digest, sha256
from mixjax.corpus.tasks import TASKS

VERSION = "1.0.0"
# Without the number of shards: it grows, and files keep their names.
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}"


def dataset_name(concept: str, taken: Iterable[str] = ()) -> str:
  """A valid TFDS name for a concept that none of `taken` has yet: "3d-maps" becomes "c_3d_maps"."""
  name = re.sub(r"[^a-z0-9_]", "_", concept.lower())
  name = name if name[:1].isalpha() else f"c_{name}"
  taken, candidate, suffix = set(taken), name, 2
  while candidate in taken:
    candidate, suffix = f"{name}_{suffix}", suffix + 1
  return candidate


class Addition:
  """`partial` is where to write. `written` is to get, of each cell with rows, an entry for each of
  its new files in their order: {"rows", "num_bytes"}, and {"prompt_tokens", "answer_tokens"} as
  {"sum", "max"} where tokens were counted. `hashes` may get the SHA-256 of files that are known.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    split: str,
    features: tfds.features.FeaturesDict,
    concepts: Sequence[str],
    source: str,
  ):
    self.folder, self.partial = folder, manifests.adding(folder)
    self.written: dict[str, list[dict]] = {}
    self.hashes: dict[pathlib.Path, str] = {}
    self.manifest: dict = {}
    self._features, self._source = features, source
    self._old = _opened(folder, split, source)
    self._names: dict[str, str] = {}
    # Names are given to known concepts first, so that they do not depend on the rows' order.
    for concept in (*(cell.split("/")[0] for cell in self._old["cells"]), *concepts):
      self._name(concept)
    shutil.rmtree(self.partial, ignore_errors=True)
    self.partial.mkdir(parents=True)

  def file(self, cell: str, number: int) -> pathlib.Path:
    """Where the new file `number` of a cell belongs; its folder is made."""
    place, name = self._place(cell), self._name(cell.split("/")[0])
    # TFDS calls the data set of a concept's task after the concept.
    index = len(self._before(cell)) + number
    place.mkdir(parents=True, exist_ok=True)
    return place / f"{name}-{self._old['split']}.array_record-{index:05d}"

  def publish(self) -> None:
    """Writes metadata and manifest, and moves everything to where it belongs."""
    self.manifest = self._manifest()
    (self.partial / MANIFEST).write_text(json.dumps(self.manifest, indent=2) + "\n")
    if self.folder.exists():
      manifests.publish(self.folder)
    else:
      os.replace(self.partial, self.folder)

  def _name(self, concept: str) -> str:
    if concept not in self._names:
      self._names[concept] = dataset_name(concept, self._names.values())
    return self._names[concept]

  def _place(self, cell: str) -> pathlib.Path:
    concept, task = cell.split("/")
    return self.partial / self._name(concept) / task / VERSION

  def _before(self, cell: str) -> Sequence[Mapping]:
    """The manifest's entries of the shards that the cell has already."""
    return self._old["cells"].get(cell, {}).get("shards", ())

  def _shards(self, cell: str) -> list[dict]:
    """Entries of all the cell's shards: whose rows they are, how many, and in which file."""
    new = [
      {"source": self._source, "rows": entry["rows"], "file": self.file(cell, n).name} | entry
      for n, entry in enumerate(self.written[cell])
    ]
    return [*self._before(cell), *new]

  def _manifest(self) -> dict:
    """Lists all of concepts x tasks, empty cells included."""
    for cell in self.written:
      self._name(cell.split("/")[0])
    cells = {}
    for concept, name in self._names.items():
      for task in TASKS:
        cell = f"{concept}/{task}"
        cells[cell] = self._old["cells"].get(cell, {"rows": 0, "folder": None, "files": {}})
        if cell not in self.written:
          continue
        shards = self._shards(cell)
        self._write_metadata(cell, shards)
        files = {
          path.relative_to(self.partial).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": self.hashes.get(path) or sha256(path),
          }
          for path in sorted(self._place(cell).iterdir())
        }
        cells[cell] = _entry(shards) | {
          "folder": f"{name}/{task}",
          "files": dict(sorted((cells[cell]["files"] | files).items())),
          "shards": shards,
        }
    rows = sum(entry["rows"] for written in self.written.values() for entry in written)
    manifest = {
      "format": FORMAT,
      "split": self._old["split"],
      "rows": sum(cell["rows"] for cell in cells.values()),
      "sources": [*self._old["sources"], {"source": self._source, "rows": rows}],
      "cells": cells,
    }
    return manifest | {"sha256": digest(manifest)}

  def _write_metadata(self, cell: str, shards: Sequence[Mapping]) -> None:
    """What TFDS reads before it reads any row."""
    place = self._place(cell)
    template = tfds.core.ShardedFileTemplate(data_dir=place, template=_TEMPLATE)
    split = tfds.core.SplitInfo(
      name=self._old["split"],
      filename_template=template,
      shard_lengths=[shard["rows"] for shard in shards],
      num_bytes=sum(shard["num_bytes"] for shard in shards),
    )
    tfds.folder_dataset.write_metadata(
      data_dir=os.fspath(place),
      features=self._features,
      split_infos=[split],
      filename_template=template,
      check_data=False,
    )


@contextlib.contextmanager
def adding(
  folder: str | os.PathLike,
  split: str,
  features: tfds.features.FeaturesDict,
  concepts: Sequence[str] = (),
  source: str = "",
) -> Iterator[Addition]:
  """An addition that is published at the end, and leaves no trace if that is not reached.

  Raises as `shards.write_cells` does of folders, sources and splits.
  """
  addition = Addition(pathlib.Path(folder), split, features, concepts, source)
  try:
    yield addition
    addition.publish()
  except BaseException:
    if addition.folder.exists():
      manifests.settle(addition.folder)
    shutil.rmtree(addition.partial, ignore_errors=True)
    raise


def _opened(folder: pathlib.Path, split: str, source: str) -> dict:
  """The manifest of what is there; an empty one where nothing is."""
  if not folder.exists():
    return {"cells": {}, "sources": [], "split": split}
  if not source:
    raise FileExistsError(
      f"{folder} already exists; remove it, write the cells elsewhere, or name the source to add"
    )
  old = manifests.settle(folder)
  if any(one["source"] == source for one in old["sources"]):
    raise FileExistsError(f"{folder} already holds the source {source!r}: give it another name")
  if old["split"] != split:
    raise ValueError(f"{folder} has the split {old['split']!r}; {split!r} cannot be added to it")
  return old


def _entry(shards: Sequence[Mapping]) -> dict:
  """A cell's rows, and its mean and maximum lengths where all of its shards counted tokens."""
  rows = sum(shard["rows"] for shard in shards)
  entry = {"rows": rows}
  for name in ("prompt_tokens", "answer_tokens"):
    if all(name in shard for shard in shards):
      total = sum(shard[name]["sum"] for shard in shards)
      longest = max(shard[name]["max"] for shard in shards)
      entry[name] = {"mean": round(total / rows, 3), "max": longest}
  return entry
