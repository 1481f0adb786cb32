"""Corpora on disk as streams of `Example`."""

import json
from collections.abc import Iterator

from etils import epath

from mixjax.corpus import tasks
from mixjax.corpus.example import Example


def llava(path: epath.PathLike) -> Iterator[Example]:
  """Rows of a LLaVA json; image paths are relative to its folder.

  Single-turn rows; `task` is a field of the row, or follows from its instruction (anything that is
  not one of the four synthesised instructions is VQA). An image that cannot be read is yielded as
  empty bytes: the atlas enters it in its ledger. Raises ValueError naming a malformed row.
  """
  path = epath.Path(path)
  if not path.exists():
    raise FileNotFoundError(f"no corpus at {path}: give the path of a LLaVA json")
  task_of = {prompt: task for task, prompt in tasks.PROMPTS.items()}
  image_cache: tuple[str, bytes] = ("", b"")
  for i, row in enumerate(json.loads(path.read_text())):
    try:
      human, gpt = row["conversations"][:2]
      prompt = human["value"].replace("<image>", "").strip()
      key, name, answer = str(row["id"]), row["image"], gpt["value"]
    except (KeyError, ValueError, TypeError) as error:
      raise ValueError(f"{path}: row {i} is not a LLaVA row with an image ({error!r})") from error
    task = row.get("task") or task_of.get(prompt, tasks.VQA)
    if task not in tasks.TASKS:
      raise ValueError(
        f"{path}: row {i} ({key}) has task {task!r}; known: {', '.join(tasks.TASKS)}"
      )
    if image_cache[0] != name:  # rows of one image follow one another
      image_cache = (name, _read(path.parent / name))
    yield Example.single(key, name, image_cache[1], task, prompt, answer, row.get("domain", ""))


def _read(path: epath.Path) -> bytes:
  try:
    return path.read_bytes()
  except OSError:
    return b""
