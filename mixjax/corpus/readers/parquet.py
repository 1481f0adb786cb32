"""Parquet with the pictures' bytes in it, as Hugging Face keeps LLaVA-OneVision, FineVision and the
Cauldron. A part is a row group.
"""

import dataclasses
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from mixjax.corpus.readers.fault import BAD_UTF8, MALFORMED, Fault
from mixjax.corpus.readers.reading import Reading
from mixjax.corpus.readers.row import Row, seen_from
from mixjax.corpus.readers.walk import under

_ROWS = 64  # held at once: rows hold whole pictures


@dataclasses.dataclass(frozen=True)
class RowGroup:
  """Row group `index` of a file, whose first row is the file's row `first`."""

  path: str
  index: int
  first: int
  stem: str  # the file's name within the corpus
  source: str
  folder: str
  within: str  # see Row

  @property
  def name(self) -> str:
    return f"{self.stem}, rows from {self.first}"

  def rows(self) -> Iterator[Row | Fault]:
    """The rows; a Fault for one whose text is not UTF-8, or for all from a damaged page on."""
    row = self.first
    try:
      with epath.Path(self.path).open("rb") as file, pq.ParquetFile(file) as table:
        for batch in table.iter_batches(_ROWS, row_groups=[self.index]):
          for i in range(batch.num_rows):
            where = f"{self.stem}, row {row}"
            try:
              fields = batch.slice(i, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
              yield Fault(where, BAD_UTF8, str(error))
            else:
              fields = {name: value for name, value in fields.items() if value is not None}
              folder = epath.Path(self.folder)
              key = f"{self.stem}:{row}"
              yield Row(where, key, fields, folder, self.source, within=self.within)
            row += 1
    except (OSError, pa.ArrowException) as error:
      yield Fault(f"{self.stem}, from row {row}", MALFORMED, str(error))


def files(path: epath.Path, split: str) -> list[epath.Path]:
  """The parquet files of a split, sorted: `<split>-*.parquet`, files in a folder of its name, or
  all of them where no name speaks of splits.

  Raises ValueError listing the splits where the wanted one is not there.
  """
  if not path.is_dir():
    return [path]
  found = list(under(path, (".parquet",)))
  splits: dict[str, list[epath.Path]] = {}
  for file in found:
    name = file.name.split("-")[0].removesuffix(".parquet")
    if name.isdigit():
      name = file.parent.name  # as in Hugging Face's own conversions: ai2d/train/0000.parquet
    splits.setdefault(name, []).append(file)
  if split in splits:
    return splits[split]
  if splits.keys() & {"train", "validation", "val", "test"}:
    raise ValueError(f"{path} has no split {split!r}; it has {', '.join(sorted(splits))}")
  return found


def parts(path: epath.Path, reading: Reading) -> Iterator[RowGroup | Fault]:
  """The row groups of a file, or of all files under a folder."""
  root = path if path.is_dir() else path.parent
  for file in files(path, reading.split):
    stem = str(file.relative_to(root))
    # A file of a subset lies in its folder: that is the source of rows that name none.
    folders = [p for p in file.relative_to(root).parent.parts if p not in ("data", reading.split)]
    try:
      with file.open("rb") as opened, pq.ParquetFile(opened) as table:
        sizes = [table.metadata.row_group(i).num_rows for i in range(table.num_row_groups)]
    except (OSError, pa.ArrowException) as error:
      yield Fault(stem, MALFORMED, f"not a parquet file: {error}")
      continue
    first = 0
    for i, size in enumerate(sizes):
      images = reading.images or str(file.parent)
      within = "" if reading.images else seen_from(root, file.parent)
      yield RowGroup(str(file), i, first, stem, "/".join(folders), images, within)
      first += size
