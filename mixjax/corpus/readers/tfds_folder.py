"""A TFDS builder's folder, in ArrayRecord or TFRecord, read without TensorFlow.

A part is a shard.
"""

import dataclasses
import os
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from mixjax.corpus.readers.fault import BAD_UTF8, MALFORMED, Fault
from mixjax.corpus.readers.reading import Reading
from mixjax.corpus.readers.row import Row

ARRAY_RECORD, TFRECORD = "array_record", "tfrecord"
_AT_ONCE = 16  # records


@dataclasses.dataclass(frozen=True)
class Shard:
  """One file of a split."""

  path: str
  builder: str
  format: str
  folder: str

  @property
  def name(self) -> str:
    return os.path.basename(self.path)

  def rows(self) -> Iterator[Row | Fault]:
    """The rows; a Fault for one that cannot be parsed, or for all from a broken end on."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import example_parser

    features = tfds.builder_from_directory(self.builder).info.features
    # Without the features' own decoding: pictures stay encoded.
    parser = example_parser.ExampleParserNp(features.get_serialized_info())
    records = _array_records if self.format == ARRAY_RECORD else tf_records
    row = 0
    try:
      for row, record in enumerate(records(self.path)):
        where = f"{self.name}, row {row}"
        try:
          fields = _plain(parser.parse_example(record), features)
        except UnicodeDecodeError as error:
          yield Fault(where, BAD_UTF8, str(error))
        except (ValueError, KeyError, AttributeError) as error:
          yield Fault(where, MALFORMED, str(error))
        else:
          yield Row(where, f"{self.name}:{row}", fields, epath.Path(self.folder))
    except (OSError, ValueError, RuntimeError) as error:
      yield Fault(f"{self.name}, after row {row}", MALFORMED, str(error))


def parts(path: epath.Path, reading: Reading) -> Iterator[Shard]:
  """The shards of a split.

  Raises ValueError naming the splits where the wanted one is not there, or a file format that is
  neither ArrayRecord nor TFRecord.
  """
  import tensorflow_datasets as tfds

  info = tfds.builder_from_directory(os.fspath(path)).info
  if reading.split not in info.splits:
    raise ValueError(
      f"{path} has no split {reading.split!r}; it has {', '.join(sorted(info.splits)) or 'none'}"
    )
  format_ = info.file_format.value if info.file_format else TFRECORD
  if format_ not in (ARRAY_RECORD, TFRECORD):
    raise ValueError(f"{path} is stored as {format_}; read are {ARRAY_RECORD} and {TFRECORD}")
  for file in info.splits[reading.split].filepaths:
    yield Shard(os.fspath(file), os.fspath(path), format_, reading.images or os.fspath(path))


def _array_records(path: str) -> Iterator[bytes]:
  from array_record.python.array_record_module import ArrayRecordReader

  reader = ArrayRecordReader(path)
  try:
    total = reader.num_records()
    for first in range(0, total, _AT_ONCE):
      yield from reader.read(range(first, min(first + _AT_ONCE, total)))
  finally:
    reader.close()


def tf_records(path: str) -> Iterator[bytes]:
  """The records of a TFRecord file: length, its checksum, content, its checksum. The checksums are
  not checked; a file that ends within a record raises ValueError.
  """
  with epath.Path(path).open("rb") as file:
    while header := file.read(12):
      length = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else 0
      body = file.read(length + 4)
      if len(header) < 12 or len(body) < length + 4:
        raise ValueError("the file ends within a record")
      yield body[:-4]


def _plain(value: Any, feature: Any) -> Any:
  """Arrays as lists, and bytes as text except where they are a picture."""
  from tensorflow_datasets.core import features as tfds_features

  if isinstance(value, Mapping):
    inner = feature.feature if isinstance(feature, tfds_features.Sequence) else feature
    return {name: _plain(item, inner[name]) for name, item in value.items()}
  if isinstance(feature, tfds_features.Sequence):
    feature = feature.feature
  if isinstance(value, np.ndarray | list):
    return [_plain(item, feature) for item in value]
  if isinstance(value, bytes) and not isinstance(feature, tfds_features.Image):
    return value.decode()
  return value.item() if isinstance(value, np.generic) else value
