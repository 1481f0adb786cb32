"""The gallery's ten benchmarks: what each tests, how it is scored, and its questions on disk.

They mirror the paper's ten (section 4.1): visual understanding, documents, reasoning, counting.
None is a training cell: their sources are in no other split, and they show fonts, layouts,
composites and ranges that no training cell holds; breadth also asks what no training row asks.
"""

import dataclasses
import json

from etils import epath

CHOICE, EXACT, ANLS, IOU = "multiple choice", "exact match", "ANLS", "IoU accuracy"


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


def read(path: epath.PathLike) -> list[Question]:
  """The questions of a split. ValueError names an unknown benchmark or a bad list of choices."""
  questions = []
  for record in json.loads(epath.Path(path).read_text()):
    question = Question(**{**record, "choices": tuple(record["choices"])})
    benchmark = BENCHMARKS.get(question.benchmark)
    if benchmark is None:
      raise ValueError(f"{path}: {question.id} belongs to unknown benchmark {question.benchmark!r}")
    if benchmark.metric == CHOICE and question.answer not in question.choices:
      raise ValueError(f"{path}: {question.id} lacks its answer among its choices")
    questions.append(question)
  missing = BENCHMARKS.keys() - {q.benchmark for q in questions}
  if missing:
    raise ValueError(f"{path}: no questions for {', '.join(sorted(missing))}")
  return questions
