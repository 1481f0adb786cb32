"""Energon: a WebDataset whose `.nv-meta` folder says which tars make a split and what a row is.

Sample types are read as their fields are named in Energon's own classes. A sample loader is a
program of the data set's author, which is not run here; the rows are then known by their own
fields, or by those that the reading states.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from etils import epath

from mixjax.corpus import tasks
from mixjax.corpus.readers.reading import Reading
from mixjax.corpus.readers.tars import Tar

META = ".nv-meta"

# A sample type's fields that a row is made of, and the task that it implies.
SAMPLES: dict[str, tuple[tuple[str, ...], str]] = {
  "CaptioningSample": (("image", "caption"), tasks.CAPTION),
  "VQASample": (("image", "context", "answers"), tasks.VQA),
  "OCRSample": (("image", "text", "words_boxes"), tasks.OCR),
  "VQAOCRSample": (("image", "context", "answers"), ""),
  "MultiChoiceVQASample": (("image", "context", "choices", "correct_choice_idx"), tasks.VQA),
  "MultiMixQASample": (("image", "messages"), ""),
  "TextSample": (("text",), ""),
}
_CRUDE = ("CrudeWebdataset", "CrudeSample")


def parts(path: epath.Path, reading: Reading) -> Iterator[Tar]:
  """The tars of a split, in its order.

  Raises ValueError for a sample type that is no conversation, or one that nothing says how to read;
  FileNotFoundError for a file of `.nv-meta`, or a tar, that is not there.
  """
  meta = path / META
  split = _yaml(meta, "split.yaml", "split.json")
  kept = split.get("split_parts") or {}
  if reading.split not in kept:
    raise ValueError(f"{meta} has no split {reading.split!r}; it has {', '.join(sorted(kept))}")
  excluded = {name for entry in split.get("exclude") or [] for name in expand(entry)}
  fields, task = _sample(_yaml(meta, "dataset.yaml"), reading, path)
  for name in (name for entry in kept[reading.split] for name in expand(entry)):
    if name in excluded:
      continue
    if not (path / name).exists():
      raise FileNotFoundError(f"{meta} lists {name}, which is not in {path}")
    drop = frozenset(e.removeprefix(f"{name}/") for e in excluded if e.startswith(f"{name}/"))
    stem = name.removesuffix(".tar")
    yield Tar(str(path / name), stem, "", fields, bool(reading.fields), drop, task)


def _yaml(meta: epath.Path, *names: str) -> dict[str, Any]:
  for name in names:
    if (meta / name).exists():
      return yaml.safe_load((meta / name).read_text()) or {}
  raise FileNotFoundError(f"{meta} has no {' and no '.join(names)}: run `energon prepare`")


def _sample(
  dataset: Mapping[str, Any], reading: Reading, path: epath.Path
) -> tuple[dict[str, str], str]:
  """({field: where}, task); no fields where the reading or the files' extensions tell them."""
  if reading.fields:
    return {}, ""
  name = (dataset.get("sample_type") or dataset).get("__class__", "")
  if name in _CRUDE:
    raise ValueError(
      f"{path} is crude: only a program says what its rows are. State their fields, as in "
      "`fields: {image: jpg, prompt: json[question], answer: json[answer]}` (reading=FILE.yaml)"
    )
  # Older data sets name a loader that is called after the sample.
  name = re.sub("Webdataset$", "Sample", name)
  if name not in SAMPLES:
    raise ValueError(
      f"{path} holds {name or 'rows of no sample type'}; known: {', '.join(SAMPLES)}, or any that "
      "the reading states the fields of"
    )
  wanted, task = SAMPLES[name]
  given = dataset.get("field_map")
  if given is None:
    if name == "MultiMixQASample":
      return {}, task
    raise ValueError(
      f"{path} has a sample loader, which is a program and is not run: state the fields that it "
      f"makes (reading=FILE.yaml), such as `fields: {{image: jpg, ...}}`"
    )
  fields = {field: str(given[field]) for field in wanted if field in given}
  return fields, task


def expand(pattern: str) -> list[str]:
  """Braces as a shell expands them: `{000..010}` and `{a,b}`."""
  match = re.search(r"\{([^{}]*)\}", pattern)
  if not match:
    return [pattern]
  numbers = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
  if numbers:
    low, high = numbers.groups()
    width = len(low) if low.startswith("0") or len(low) == len(high) else 0
    options = [str(n).zfill(width) for n in range(int(low), int(high) + 1)]
  else:
    options = match[1].split(",")
  before, after = pattern[: match.start()], pattern[match.end() :]
  return [name for option in options for name in expand(before + option + after)]
