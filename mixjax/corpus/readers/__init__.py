"""Corpora on disk as streams of `Example`: one door for every format that people have.

    for example in readers.read("llava_v1_5_mix665k.json", images="data"): ...

Rows come in the order of their files (sorted) and within each as they lie there, whatever the
number of workers.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

from etils import epath

from mixjax.corpus import task_rules
from mixjax.corpus.example import Example
from mixjax.corpus.parallel import ordered_stream
from mixjax.corpus.readers import energon, llava_json, parquet, tars, tfds_folder
from mixjax.corpus.readers.fault import BadRow, Fault
from mixjax.corpus.readers.reading import PLAIN, Reading
from mixjax.corpus.readers.row import Label, Row, example, pictures
from mixjax.corpus.readers.walk import under


class Part(Protocol):
  """A piece of a corpus that one process reads on its own."""

  name: str

  def rows(self) -> Iterator[Row | Fault]: ...


# Format -> what makes parts of a path.
FORMATS: dict[str, Callable[[epath.Path, Reading], Iterator[Part | Fault]]] = {
  "LLaVA json or jsonl": llava_json.blocks,
  "LLaVA-NeXT list (yaml)": llava_json.listed,
  "parquet": parquet.parts,
  "WebDataset tars": tars.parts,
  "Energon folder": energon.parts,
  "TFDS folder": tfds_folder.parts,
}

_FILES = {
  ".json": "LLaVA json or jsonl",
  ".jsonl": "LLaVA json or jsonl",
  ".yaml": "LLaVA-NeXT list (yaml)",
  ".yml": "LLaVA-NeXT list (yaml)",
  ".parquet": "parquet",
  ".tar": "WebDataset tars",
}


def detect(path: epath.PathLike) -> str:
  """The format of a corpus, one of FORMATS, told from its path.

  Raises FileNotFoundError where nothing is there; ValueError that says what was found and what is
  known.
  """
  path = epath.Path(path)
  if not path.exists():
    raise FileNotFoundError(f"no corpus at {path}: give the path of a file or a folder")
  if not path.is_dir():
    if path.suffix in (".yaml", ".yml"):
      list(llava_json.entries(path))  # what is wrong with the list is said before anything is read
    if path.suffix in _FILES:
      return _FILES[path.suffix]
    raise ValueError(f"{path} is a {path.suffix or 'file'}; {_known()}")
  if (path / energon.META).is_dir():
    return "Energon folder"
  if (path / "dataset_info.json").exists() and (path / "features.json").exists():
    return "TFDS folder"
  for suffix in (".parquet", ".tar"):
    if next(under(path, (suffix,)), None):
      return _FILES[suffix]
  found = sorted(p.name for p in path.iterdir())
  if "state.json" in found:
    raise ValueError(f"{path} was written by save_to_disk: write it by to_parquet instead")
  if rows := [name for name in found if epath.Path(name).suffix in _FILES]:
    raise ValueError(f"{path} holds {', '.join(rows[:9])}: give the path of one of them")
  raise ValueError(f"{path} holds {', '.join(found[:9]) or 'nothing'}; {_known()}")


def _known() -> str:
  return f"known formats: {', '.join(FORMATS)}"


def parts(path: epath.PathLike, reading: Reading = PLAIN) -> Iterator[Part | Fault]:
  """The pieces of a corpus, in order; a Fault for what cannot even be opened."""
  return FORMATS[detect(path)](epath.Path(path), reading)


def part_examples(
  part: Part, reading: Reading = PLAIN, label: Label = task_rules.label
) -> Iterator[Example | Fault]:
  """The examples of one piece; a Fault for each row that cannot be used."""
  for row in part.rows():
    if isinstance(row, Fault):
      yield row
      continue
    try:
      yield example(row, reading, label, pictures(row, reading))
    except BadRow as error:
      yield Fault(row.where, error.kind, error.detail)


def read(
  path: epath.PathLike,
  reading: Reading = PLAIN,
  label: Label = task_rules.label,
  on_fault: Callable[[Fault], None] | None = None,
  workers: int = 0,
) -> Iterator[Example]:
  """Every example of a corpus, whose format follows from its path.

  A picture that cannot be read has empty bytes; pictures are not decoded here.

  Args:
    reading: what the corpus cannot say about itself.
    label: gives the task of a row for which neither the row nor its source does.
    on_fault: called with each row that cannot be used. Without it the first one raises.
    workers: processes that read ahead; 0 reads in this one.

  Raises:
    FileNotFoundError: nothing is at the path.
    ValueError: the format is not known, or a row cannot be used: the error names it.
  """
  found = parts(path, reading)
  if workers:
    stream = ordered_stream(Reader(reading, label), found, workers)
  else:
    stream = (item for part in found for item in Reader(reading, label)(part))
  for item in stream:
    if isinstance(item, Example):
      yield item
    elif on_fault is None:
      raise ValueError(
        f"{path}: {item.where}: {item.kind}: {item.detail}. Lint lists all such rows "
        f"(configs/atlas.py:corpus={path},lint)"
      )
    else:
      on_fault(item)


class Reader:
  """The examples of a part, and its faults; a class, for processes to pass on."""

  def __init__(self, reading: Reading, label: Label):
    self._reading, self._label = reading, label

  def __call__(self, part: Part | Fault) -> Iterator[Example | Fault]:
    if isinstance(part, Fault):
      yield part
    else:
      yield from part_examples(part, self._reading, self._label)
