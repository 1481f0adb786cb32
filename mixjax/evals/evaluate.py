"""Scores a model on the benchmarks: a cheap smooth score for the search, the full metrics for the
end.

The search's score of a benchmark is its *answer likelihood*: 100 x the mean over questions of
exp(-NLL per answer token). It needs one forward pass, no judge and no decoding, lies in [0, 100],
and is far less noisy than accuracy (research on proxies: loss ranks transfer, accuracies hardly
do).
"""

import collections
import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, PyTree

from mixjax.data.encode import Encoder
from mixjax.evals import metrics
from mixjax.evals.benchmarks import ANLS, CHOICE, IOU, RELAXED, Question, metrics_of
from mixjax.evals.generate import answer_scores, generate

Params = PyTree[Float[Array, "..."]]
BATCH = 128  # rows a forward pass: one compiled shape whatever the number of questions
LEAST_NEW = 12  # tokens that are decoded, more where a benchmark has longer answers

# What a metric makes of a decoded answer; the other two need no decoding.
JUDGES = {
  ANLS: metrics.anls, RELAXED: metrics.relaxed_accuracy, IOU: metrics.grounding,
}  # fmt: skip


def summary(values: np.ndarray) -> dict[str, float]:
  """Mean of per-question values in [0, 1] with its standard error, both x 100."""
  n = len(values)
  spread = float(np.std(values, ddof=1)) if n > 1 else 0.0
  return {"score": 100 * float(np.mean(values)), "stderr": 100 * spread / n**0.5, "n": n}


@dataclasses.dataclass(frozen=True)
class Suite:
  """Encoded questions and the features of their images: everything a score needs but the model.

  features: float[n_images, p, dv]; image_rows: int[n_questions].
  """

  questions: tuple[Question, ...]
  encoder: Encoder
  features: Float[np.ndarray, "n p dv"]
  image_rows: Int[np.ndarray, " q"]

  @property
  def loss_from(self) -> int:
    return self.encoder.image_tokens + 1

  def subset(self, per_benchmark: int) -> "Suite":
    """The first `per_benchmark` questions of each benchmark: a cheaper suite for learning
    curves.
    """
    seen: dict[str, int] = {}
    keep = []
    for i, q in enumerate(self.questions):
      seen[q.benchmark] = seen.get(q.benchmark, 0) + 1
      if seen[q.benchmark] <= per_benchmark:
        keep.append(i)
    return dataclasses.replace(
      self, questions=tuple(self.questions[i] for i in keep), image_rows=self.image_rows[keep]
    )

  @functools.cached_property
  def benchmarks(self) -> dict[str, str]:
    """Benchmark -> how it is scored; scores have the same order."""
    return metrics_of(self.questions)

  @functools.cached_property
  def _encoded(self) -> dict[str, np.ndarray]:
    return encoded(self.encoder, self.questions, [q.answer for q in self.questions])

  def _answer_scores(self, graphdef, params, encoded, image_rows, blind: bool):
    """Batched `answer_scores` as numpy: nll float[q], tokens int[q], exact bool[q]."""
    parts = []
    for at in range(0, len(image_rows), BATCH):
      rows = np.resize(np.arange(at, min(at + BATCH, len(image_rows))), BATCH)
      features = self.features[image_rows[rows]].astype(np.float32)
      batch = {k: v[rows] for k, v in encoded.items()}
      batch["features"] = np.zeros_like(features) if blind else features
      parts.append(jax.device_get(answer_scores(graphdef, params, batch, self.loss_from)))
    return [np.concatenate(column)[: len(image_rows)] for column in zip(*parts, strict=True)]

  def likelihoods(
    self, graphdef: nnx.GraphDef, params: Params, blind: bool = False
  ) -> dict[str, dict[str, float]]:
    """benchmark -> {score, stderr, n, nll, exact}: answer likelihood, NLL (nats a token), EM."""
    return self._likelihoods(graphdef, params, blind)[0]

  def _likelihoods(self, graphdef, params, blind: bool):
    """`likelihoods`, and which questions greedy decoding answers exactly, as float[q]."""
    nll, tokens, exact = self._answer_scores(
      graphdef, params, self._encoded, self.image_rows, blind
    )
    per_token = nll / tokens
    result = {}
    for name in self.benchmarks:
      at = self._rows(name)
      result[name] = {
        **summary(np.exp(-per_token[at])),
        "nll": float(per_token[at].mean()),
        "exact": 100 * float(exact[at].mean()),
      }
    return result, exact.astype(float)

  def full(
    self, graphdef: nnx.GraphDef, params: Params, blind: bool = False
  ) -> dict[str, dict[str, float]]:
    """`likelihoods` plus each benchmark's own metric as {metric, metric_stderr} on 0-100."""
    result, exact_match = self._likelihoods(graphdef, params, blind)
    for name, metric in self.benchmarks.items():
      at = self._rows(name)
      if metric == CHOICE:
        values = self._choose(graphdef, params, at, blind)
      elif judge := JUDGES.get(metric):
        said = self._generate(graphdef, params, at, blind)
        values = np.array(
          [judge(s, self.questions[i].answer) for s, i in zip(said, at, strict=True)]
        )
      else:
        values = exact_match[at]
      figures = summary(values)
      result[name] |= {"metric": figures["score"], "metric_stderr": figures["stderr"]}
    return result

  def _rows(self, benchmark: str) -> np.ndarray:
    return np.array([i for i, q in enumerate(self.questions) if q.benchmark == benchmark])

  def _choose(self, graphdef, params, at, blind) -> np.ndarray:
    """1 where the answer is the likeliest choice, by NLL a token."""
    owners = np.array([i for i in at for _ in self.questions[i].choices])
    offered = [choice for i in at for choice in self.questions[i].choices]
    pairs = encoded(self.encoder, [self.questions[i] for i in owners], offered)
    nll, tokens, _ = self._answer_scores(graphdef, params, pairs, self.image_rows[owners], blind)
    per_token = nll / tokens
    values = []
    for i in at:
      choices = self.questions[i].choices
      mine = per_token[owners == i]
      values.append(float(choices[int(np.argmin(mine))] == self.questions[i].answer))
    return np.array(values)

  def _generate(self, graphdef, params, at, blind) -> list[str]:
    longest = max(self.encoder.count(self.questions[i].answer) for i in at)
    new_tokens = max(LEAST_NEW, longest + 1)
    model = nnx.merge(graphdef, params)
    prompts = [self.encoder.prompt(self.questions[i].prompt) for i in at]
    said = []
    for start in range(0, len(at), BATCH):
      rows = np.resize(np.arange(start, min(start + BATCH, len(at))), BATCH)
      features = self.features[self.image_rows[at[rows]]].astype(np.float32)
      ids = jnp.asarray(np.stack([prompts[r]["ids"] for r in rows]))
      mask = jnp.asarray(np.stack([prompts[r]["mask"] for r in rows]))
      seen = np.zeros_like(features) if blind else features
      out = generate(model, ids, mask, jnp.asarray(seen), new_tokens, self.encoder.end_id)
      said += self.encoder.decode(np.asarray(out))
    return said[: len(at)]


def encoded(
  encoder: Encoder, questions: Sequence[Question], answers: Sequence[str]
) -> dict[str, np.ndarray]:
  """Arrays of each question with one of `answers`. ValueError names a question that is too long."""
  prompts, keys = [q.prompt for q in questions], [q.id for q in questions]
  arrays = encoder.encode_many(prompts, answers, [True] * len(answers), keys)
  arrays.pop("truncated")
  return arrays


def check_fits(encoder: Encoder, questions: Sequence[Question]) -> None:
  """Raises ValueError for a question that, with its answer or a choice, is too long."""
  whole = dataclasses.replace(encoder, truncate=False)
  said = [(q, text) for q in questions for text in dict.fromkeys((q.answer, *q.choices))]
  encoded(whole, *zip(*said, strict=True))


def answer_prior(questions: Sequence[Question]) -> dict[str, float]:
  """Exact match, on 0-100, of the best constant guess to each prompt of a benchmark.

  It has seen the benchmark's own answers, so it bounds what a guesser can do who knows the prompt
  but not the picture; for multiple choice it is at least one over the number of choices.
  """
  result = {}
  for name in metrics_of(questions):
    mine = [q for q in questions if q.benchmark == name]
    by_prompt: dict[str, collections.Counter] = {}
    for q in mine:
      by_prompt.setdefault(q.prompt, collections.Counter())[q.answer] += 1
    commonest = sum(max(said.values()) for said in by_prompt.values()) / len(mine)
    by_chance = np.mean([1 / len(q.choices) if q.choices else 0.0 for q in mine])
    result[name] = 100 * max(commonest, float(by_chance))
  return result
