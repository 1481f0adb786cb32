"""The task of a row from the rows of the same corpus whose task is known."""

import dataclasses
import hashlib
import heapq
import re
from collections.abc import Iterable, Sequence

import numpy as np
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression

from mixjax.corpus import boxes, task_rules
from mixjax.corpus.example import Example, Turn

CLASSIFIER = "classifier"
CONFIDENT = 0.8  # below this probability the classifier abstains
ROWS = 20_000  # at most so many rows teach it
_FEWEST = 50  # of labelled rows, and of two tasks at least
_HELD_OUT = 5  # one row in so many is kept to measure it


@dataclasses.dataclass(frozen=True)
class Accuracy:
  """On labelled rows that the classifier has not seen.

  classifier: of those that it does not abstain from; rules: of all of them, as they are.
  """

  rows: int
  classifier: float
  abstains: float
  rules: float


@dataclasses.dataclass(frozen=True)
class Classifier:
  """Gives a task where it is confident, and leaves the rest to the rules."""

  model: LogisticRegression
  confident: float = CONFIDENT

  def __call__(self, turns: Sequence[Turn], has_images: bool) -> tuple[str, str]:
    """(task, "classifier"), or what `task_rules.label` says."""
    (probabilities,) = self.model.predict_proba(_features([turns]))
    best = int(probabilities.argmax())
    if probabilities[best] < self.confident:
      return task_rules.label(turns, has_images)
    return str(self.model.classes_[best]), CLASSIFIER


def sample(examples: Iterable[Example], rows: int = ROWS) -> list[Example]:
  """Labelled rows without their pictures: those with the smallest hash of their keys, so that the
  sample depends on the rows alone.
  """
  kept: list[tuple[int, str, int, Example]] = []
  for number, example in enumerate(examples):
    if example.label != "data":
      continue
    # Keys may repeat, as LLaVA's do: the number keeps examples from being compared.
    entry = (-_hash(example.key), example.key, -number, without_pictures(example))
    if len(kept) < rows:
      heapq.heappush(kept, entry)
    elif entry > kept[0]:
      heapq.heapreplace(kept, entry)
  kept.sort(key=lambda entry: (-entry[0], entry[1], -entry[2]))
  return [example for *_, example in kept]


def without_pictures(example: Example) -> Example:
  return dataclasses.replace(example, images=(b"",) * len(example.images))


def train(labelled: Sequence[Example], confident: float = CONFIDENT) -> tuple[Classifier, Accuracy]:
  """A logistic regression on hashed words of prompts and the shape of answers.

  Measured on one row in five, then trained on all.
  Raises ValueError where too few rows are labelled, or all alike.
  """
  names = sorted({example.task for example in labelled})
  if len(labelled) < _FEWEST or len(names) < 2:
    raise ValueError(
      f"{len(labelled)} rows have a task of their own ({', '.join(names) or 'none'}): a classifier "
      f"needs {_FEWEST}, of two tasks at least; use labels=rules"
    )
  held = np.array([_hash(example.key) % _HELD_OUT == 0 for example in labelled])
  known = np.array([example.task for example in labelled])
  features = _features([example.turns for example in labelled])
  if len(set(known[~held])) < 2 or not held.any():
    held = np.arange(len(labelled)) % _HELD_OUT == 0
  trial = _fitted(features[~held], known[~held])
  probabilities = trial.predict_proba(features[held])
  sure = probabilities.max(axis=1) >= confident
  said = trial.classes_[probabilities.argmax(axis=1)]
  unseen = [example for example, out in zip(labelled, held, strict=True) if out]
  by_rule = np.array([task_rules.label(e.turns, bool(e.images))[0] for e in unseen])
  accuracy = Accuracy(
    rows=int(held.sum()),
    classifier=float((said == known[held])[sure].mean()) if sure.any() else 0.0,
    abstains=float(1 - sure.mean()),
    rules=float((by_rule == known[held]).mean()),
  )
  return Classifier(_fitted(features, known), confident), accuracy


def _fitted(features, known) -> LogisticRegression:
  return LogisticRegression(C=10.0, max_iter=200).fit(features, known)


def _features(rows: Sequence[Sequence[Turn]]):
  """float[n, 2**16], sparse: words and pairs of words of prompts, and what answers look like."""
  vectorizer = HashingVectorizer(
    n_features=2**16, ngram_range=(1, 2), token_pattern=r"\S+", lowercase=True, norm="l2"
  )
  return vectorizer.transform(" ".join(_words(turns)) for turns in rows)


def _words(turns: Sequence[Turn]) -> list[str]:
  words = [f"turns={min(len(turns), 3)}"]
  for prompt, answer in turns[:8]:
    words += re.findall(r"\w+|\?", prompt.lower())[:60]
    length, found = len(answer.split()), boxes.find(answer)
    words += [
      f"length={length.bit_length()}",
      f"boxes={min(len(found), 3)}",
      f"per-box={min(length // max(len(found), 1), 6) if found else 'none'}",
      f"lines={min(answer.count(chr(10)), 3)}",
      f"stops={min(answer.count('.'), 3)}",
      f"digits={sum(c.isdigit() for c in answer) * 4 // max(len(answer), 1)}",
      f"upper={sum(c.isupper() for c in answer) * 4 // max(len(answer), 1)}",
      f"semicolons={min(answer.count(';'), 2)}",
      *(f"answer:{word}" for word in re.findall(r"[a-z]+", answer.lower())[:12]),
    ]
  return words


def _hash(key: str) -> int:
  data = key.encode("utf-8", "surrogatepass")
  return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest())
