"""What a corpus cannot say about itself: where its images lie, what its fields and sources mean."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import yaml
from etils import epath

from mixjax.corpus.tasks import TASKS

# What a stated field may stand for.
FIELDS = ("key", "image", "prompt", "answer", "conversations", "caption", "task", "source")

_ACCESS = re.compile(r"^([^\[\]]+)((?:\[[^\[\]]+\])*)$")


@dataclasses.dataclass(frozen=True)
class Reading:
  """How a corpus is to be read.

  split: of a corpus that has several (parquet, Energon, TFDS).
  images: the folder that image paths are relative to; empty for that of the file itself.
  fields: what the row's fields are, as {"prompt": "json[question]", "image": "jpg", ...}, for rows
    that say it in no way that is known. A tar's files are known by their extensions.
  tasks: {source: task}, for rows that name a source (`source`, `data_source`, a parquet's folder).
  """

  split: str = "train"
  images: str = ""
  fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
  tasks: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    unknown = sorted(set(self.fields) - set(FIELDS))
    if unknown:
      raise ValueError(f"fields of {unknown}: a row has {', '.join(FIELDS)}")
    for source, task in self.tasks.items():
      if task not in TASKS:
        raise ValueError(f"source {source!r} is given the task {task!r}; known: {', '.join(TASKS)}")


PLAIN = Reading()


def load(path: epath.PathLike, **changes: Any) -> Reading:
  """A Reading from a YAML file with its fields, or the default one for an empty path.

  Raises ValueError naming what the file holds that a Reading does not.
  """
  if not path:
    return Reading(**changes)
  content = yaml.safe_load(epath.Path(path).read_text())
  known = [field.name for field in dataclasses.fields(Reading)]
  if not isinstance(content, dict) or set(content) - set(known):
    found = sorted(content) if isinstance(content, dict) else type(content).__name__
    raise ValueError(f"{path} holds {found}; a reading is a mapping of {', '.join(known)}")
  return Reading(**(content | changes))


def look_up(record: Mapping[str, Any], where: str) -> Any:
  """What `name[key][index]` names in a record, Energon's way of writing it; of several with commas
  between them, the first that is there. None where nothing is.
  """
  for option in where.split(","):
    match = _ACCESS.match(option.strip())
    if not match:
      raise ValueError(f"field {where!r} is not written as name[key][index]")
    value = record.get(match[1])
    for step in re.findall(r"\[([^\[\]]+)\]", match[2]):
      if isinstance(value, Mapping):
        value = value.get(step)
      elif isinstance(value, list) and step.isdigit() and int(step) < len(value):
        value = value[int(step)]
      else:
        value = None
    if value is not None:
      return value
  return None
