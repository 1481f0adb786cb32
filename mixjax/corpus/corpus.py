"""A corpus as a job is told of it: where it is, how to read it, and who labels it."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator

from etils import epath

from mixjax.corpus import readers, task_classifier, task_rules
from mixjax.corpus.example import Example
from mixjax.corpus.readers import energon, llava_json
from mixjax.corpus.readers.reading import PLAIN, Reading
from mixjax.corpus.readers.walk import under

_READ_WHOLE = (".json", ".jsonl", ".yaml", ".yml")
RULES, CLASSIFIER = LABELS = ("rules", "classifier")


@dataclasses.dataclass(frozen=True)
class Corpus:
  """path: whatever the readers know. labels: who gives a task to rows without one; a classifier
  learns from the rows that have one, in a reading of its own.
  """

  path: epath.Path
  reading: Reading = PLAIN
  labels: str = RULES
  workers: int = 0

  def __post_init__(self):
    if self.labels not in LABELS:
      raise ValueError(f"labels={self.labels!r}; known: {', '.join(LABELS)}")

  def examples(self, on_fault: Callable[[readers.Fault], None] | None = None) -> Iterator[Example]:
    """Every row, in order. See readers.read."""
    return readers.read(self.path, self.reading, self.label, on_fault, self.workers)

  @property
  def label(self) -> readers.Label:
    """Gives the task of a row for which neither the row nor its source does."""
    return self._labeller[0]

  @property
  def accuracy(self) -> task_classifier.Accuracy | None:
    """Of the classifier on labelled rows that it has not seen; None for rules."""
    return self._labeller[1]

  @functools.cached_property
  def _labeller(self) -> tuple[readers.Label, task_classifier.Accuracy | None]:
    if self.labels == RULES:
      return task_rules.label, None
    rows = readers.read(self.path, self.reading, on_fault=lambda fault: None, workers=self.workers)
    return task_classifier.train(task_classifier.sample(rows))

  def sha256(self) -> str:
    """Tells whether a corpus has changed: by the content of json and YAML, and by the names and
    sizes of the other files of a folder, which may be too large to be read for this. Pictures that
    a json names are not looked at. Raises as `readers.detect`.
    """
    readers.detect(self.path)
    digest = hashlib.sha256(repr(self.reading if self.reading != PLAIN else "").encode())
    digest.update(self.labels.encode() if self.labels != RULES else b"")
    for path in self._files():
      if path.suffix not in _READ_WHOLE:
        digest.update(f"{path.relative_to(self.path.parent)} {path.stat().length}\n".encode())
        continue
      with path.open("rb") as file:
        while chunk := file.read(1 << 20):
          digest.update(chunk)
    return digest.hexdigest()

  def _files(self) -> Iterator[epath.Path]:
    if self.path.is_dir():
      yield from under(self.path, ("",))
      if (self.path / energon.META).is_dir():
        yield from under(self.path / energon.META, (".yaml", ".json"))
      return
    yield self.path
    if self.path.suffix in (".yaml", ".yml"):
      yield from (file for file, _ in llava_json.entries(self.path))
