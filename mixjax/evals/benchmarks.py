"""Benchmarks: questions under a name, all scored by one metric; and the gallery's ten.

A questions file is a JSON list of

    {"id": ..., "benchmark": ..., "image": ..., "prompt": ..., "answer": ...,
     "metric": ..., "choices": [...], "domain": ...}

Its benchmarks are the names that occur in it. `metric` is one of METRICS, the same throughout a
benchmark; the gallery's names have theirs without saying. `choices` are for multiple choice;
`domain` says where a picture comes from, where anybody cares.

The gallery's ten mirror the paper's ten (section 4.1): visual understanding, documents, reasoning,
counting. None is a training cell: their sources are in no other split, and they show fonts,
layouts, composites and ranges that no training cell holds; breadth also asks what no training row
asks.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from etils import epath

from mixjax.corpus import tasks

CHOICE, EXACT, ANLS, IOU = "multiple choice", "exact match", "ANLS", "IoU accuracy"
RELAXED = "relaxed accuracy"
METRICS = (EXACT, CHOICE, ANLS, RELAXED, IOU)

SPLITS = ("validation", "benchmark")
AVERAGE = "average"  # what tables call the mean over benchmarks, which none may be called

_NEEDED = ("id", "benchmark", "image", "prompt", "answer")
_OPTIONAL = ("metric", "choices", "domain")


@dataclasses.dataclass(frozen=True)
class Benchmark:
  """`kin` names the paper's benchmarks that it stands for."""

  name: str
  group: str
  metric: str
  kin: str


BENCHMARKS = {
  b.name: b
  for b in (
    Benchmark("relations", "visual understanding", CHOICE, "GQA"),
    Benchmark("scenes", "visual understanding", CHOICE, "MM-Vet"),
    Benchmark("grounding", "visual understanding", IOU, "RefCOCO, beyond the paper's ten"),
    Benchmark("documents", "documents", ANLS, "DocVQA"),
    Benchmark("charts", "documents", EXACT, "ChartQA"),
    Benchmark("screens", "documents", EXACT, "TextVQA"),
    Benchmark("science", "reasoning", CHOICE, "AI2D, ScienceQA"),
    Benchmark("maths", "reasoning", EXACT, "MathVista"),
    Benchmark("counting", "counting", EXACT, "the counting part of MMBench"),
    Benchmark("breadth", "visual understanding", CHOICE, "MMBench, MMMU"),
  )
}
GALLERY = {name: benchmark.metric for name, benchmark in BENCHMARKS.items()}


@dataclasses.dataclass(frozen=True)
class Question:
  """One item; `choices` is empty unless the benchmark is multiple choice."""

  id: str
  benchmark: str
  image: str  # path relative to the questions' folder
  prompt: str
  answer: str
  choices: tuple[str, ...]
  domain: str
  metric: str


def read(path: epath.PathLike) -> list[Question]:
  """The questions of a split. ValueError names what is wrong, in which question, and the remedy."""
  path = epath.Path(path)
  if not path.exists():
    raise FileNotFoundError(f"no questions at {path}: a JSON list of {_fields()}")
  try:
    records = json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(f"{path} is no JSON: {error}") from error
  if not isinstance(records, list) or not records:
    raise ValueError(f"{path} holds no questions: it is a JSON list of {_fields()}")
  questions = []
  for number, record in enumerate(records):
    try:
      questions.append(_question(record))
    except ValueError as error:
      named = record.get("id") if isinstance(record, dict) else None
      raise ValueError(f"{path}: question {number if named is None else named}: {error}") from error
  first: dict[str, Question] = {}
  for question in questions:
    other = first.setdefault(question.benchmark, question)
    if other.metric != question.metric:
      raise ValueError(
        f"{path}: benchmark {question.benchmark!r} has two metrics, {other.metric!r} in question "
        f"{other.id} and {question.metric!r} in {question.id}: give them the same, or two names"
      )
  return questions


def read_splits(folder: epath.PathLike) -> dict[str, list[Question]]:
  """The questions of both splits of a folder, which ask for the same benchmarks.

  Raises ValueError and FileNotFoundError as `read` does, for a benchmark that only one split has or
  that they score differently, and for a picture that is not there.
  """
  folder = epath.Path(folder)
  asked = {split: read(folder / f"{split}.json") for split in SPLITS}
  search, final = (metrics_of(questions) for questions in asked.values())
  for name in search | final:
    here, there = search.get(name), final.get(name)
    if here is None or there is None:
      lacking = SPLITS[0] if here is None else SPLITS[1]
      raise ValueError(
        f"{folder}: {lacking}.json has no question of benchmark {name!r}, which the other split "
        "has: the search looks at the first, the last table at the second, so ask in both"
      )
    if here != there:
      raise ValueError(
        f"{folder}: benchmark {name!r} is scored by {here!r} in {SPLITS[0]}.json and by {there!r} "
        f"in {SPLITS[1]}.json: give them the same metric"
      )
  for split, questions in asked.items():
    for image, question in {q.image: q for q in questions}.items():
      if not (folder / image).is_file():
        raise ValueError(
          f"{folder / split}.json: question {question.id} asks about {image}, which is not in "
          f"{folder}: paths are relative to that folder"
        )
  return asked


def metrics_of(questions: Sequence[Question]) -> dict[str, str]:
  """Benchmark -> metric, in the order in which scores are kept: the gallery's, then others by name,
  so that it is the same for both splits.
  """
  found = {q.benchmark: q.metric for q in questions}
  known = [name for name in BENCHMARKS if name in found]
  return {name: found[name] for name in (*known, *sorted(found.keys() - BENCHMARKS.keys()))}


def _fields() -> str:
  needed, optional = ", ".join(_NEEDED), ", ".join(_OPTIONAL)
  return f"{{{needed}}}, and where wanted {{{optional}}}"


def _question(record: Any) -> Question:
  """ValueError says what the record lacks; whose it is, the caller says."""
  if not isinstance(record, dict):
    raise ValueError(f"it is {record!r}, not an object of {_fields()}")
  if missing := [name for name in _NEEDED if name not in record]:
    raise ValueError(f"it lacks {', '.join(missing)}")
  if unknown := record.keys() - {*_NEEDED, *_OPTIONAL}:
    raise ValueError(f"{', '.join(sorted(unknown))} means nothing: a question is {_fields()}")
  choices = record.get("choices") or []
  if not isinstance(choices, list):
    raise ValueError(f"choices is {choices!r}, not a list of texts")
  texts = {"domain": "", "metric": ""} | record | {"id": str(record["id"])}
  texts.pop("choices", None)
  for name, value in [*texts.items(), *(("choices", choice) for choice in choices)]:
    if not isinstance(value, str):
      raise ValueError(f"{name} holds {value!r}, which is no text: put it in quotes")
  texts["metric"] = _metric(texts["benchmark"], texts["metric"])
  question = Question(choices=tuple(choices), **texts)
  if question.metric == CHOICE and question.answer not in question.choices:
    what = f"has {list(question.choices)}" if question.choices else "gives none"
    raise ValueError(
      f"it is multiple choice, its answer is {question.answer!r} and it {what}: give choices, the "
      "answer among them"
    )
  if question.metric == IOU and not tasks.read_boxes(question.answer):
    raise ValueError(
      f"its answer {question.answer!r} holds no box: for {IOU} write <ymin><xmin><ymax><xmax>, "
      f"each from <0> to <{tasks.BINS - 1}>, as cells do"
    )
  return question


def _metric(benchmark: str, stated: str) -> str:
  if not benchmark or benchmark == AVERAGE:
    raise ValueError(f"its benchmark is called {benchmark!r}: give it another name")
  if stated and stated not in METRICS:
    raise ValueError(f"its metric is {stated!r}: it is one of {', '.join(METRICS)}")
  if not stated and benchmark not in BENCHMARKS:
    raise ValueError(
      f"its benchmark {benchmark!r} is none of the gallery's and it has no metric: give one of "
      f"{', '.join(METRICS)}"
    )
  return stated or BENCHMARKS[benchmark].metric
