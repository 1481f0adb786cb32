"""Scores a LLaVA-NeXT on questions about pictures, from pixels, on all chips of a mesh.

Every shape is fixed: questions are asked in batches from the longest to the shortest, each padded
to one of four lengths between a power of two and the next, with room for the tiles of the picture
in it that has most. So a program is compiled for a few lengths, whatever the questions.
"""

import concurrent.futures
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, UInt8

from mixjax.corpus import pixels
from mixjax.data import tiles as tiles_lib
from mixjax.data.encode import PAD
from mixjax.evals import metrics
from mixjax.evals.asked import Asked, Asker
from mixjax.evals.benchmarks import CHOICE, EXACT, Question
from mixjax.evals.evaluate import JUDGES, summary
from mixjax.evals.generate import generate, score_answers, see
from mixjax.models.llava_next import LlavaNext, Tiles

DECODED = {**JUDGES, EXACT: metrics.exact_match}


def room(tokens: int) -> int:
  """The next length that has a program: four to an octave, and 16 at least."""
  step = max(1 << (tokens - 1).bit_length() - 3, 4) if tokens > 16 else 16
  return -(-tokens // step) * step


class Examiner:
  """Asks a model, on the mesh that is set, `batch` questions at once (or as many more as divide).

  Answers stop at any of `ends`.
  """

  def __init__(self, model: LlavaNext, asker: Asker, ends: Sequence[int], batch: int):
    if batch < 1:
      raise ValueError(f"batch={batch}: give 1 or more")
    self.model, self.asker, self.ends = model, asker, tuple(ends)
    mesh = jax.sharding.get_mesh()
    self._groups = 1 if mesh.empty else mesh.shape["data"]
    self._places = None if mesh.empty else NamedSharding(mesh, PartitionSpec("data"))
    self.batch = -(-batch // self._groups) * self._groups

  def say(
    self, asked: Sequence[Asked], new_tokens: int, on_rows: Callable[[int], None]
  ) -> list[list[int]]:
    """The tokens of the greedy answer to each question, at most `new_tokens`, without the one that
    ends it."""

    def run(rows, ids, mask, tiles):
      return (generate(self.model, ids, mask, tiles, new_tokens, self.ends),)

    said = [found.tolist() for (found,) in self._each(asked, run, on_rows)]
    stops = [[at for at, token in enumerate(ids) if token in self.ends] for ids in said]
    return [ids[: stop[0]] if stop else ids for ids, stop in zip(said, stops, strict=True)]

  def score(
    self, asked: Sequence[Asked], answers: Sequence[Sequence[int]], on_rows: Callable[[int], None]
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How likely the model thinks each answer, of tokens.

    Returns nll float[n] (nats), tokens int[n], and whether greedy decoding says just that, bool[n].
    """
    length = room(max(map(len, answers)))

    def run(rows, ids, mask, tiles):
      given = np.array([[at < len(answers[row]) for at in range(length)] for row in rows])
      padded = np.zeros(given.shape, np.int32)
      padded[given] = [token for row in rows for token in answers[row]]
      placed = jax.device_put((padded, given), self._places)
      return score_answers(self.model, ids, mask, tiles, *placed)

    likelihood, tokens, greedy = zip(*self._each(asked, run, on_rows), strict=True)
    return -np.array(likelihood), np.array(tokens), np.array(greedy)

  def _each(
    self, asked: Sequence[Asked], run: Callable[..., tuple[Array, ...]], on_rows
  ) -> list[tuple[Any, ...]]:
    """What `run(rows, ids, mask, tiles)` finds for each question.

    While the devices compute a batch, the host cuts the pictures of the next.
    """
    found: list[Any] = [None] * len(asked)

    def collect(rows, arrays):
      for row, *values in zip(rows, *jax.device_get(arrays), strict=False):  # the rest is padding
        found[row] = tuple(values)
      on_rows(len(rows))

    order = np.argsort([-len(one.ids) for one in asked], kind="stable")
    graph, parameters = nnx.split(self.model)
    before = None
    with concurrent.futures.ThreadPoolExecutor() as pool:
      for start in range(0, len(asked), self.batch):
        rows = order[start : start + self.batch]
        padded = np.resize(rows, self.batch)
        arrays = jax.device_put(self._arrays([asked[row] for row in padded], pool), self._places)
        tiles = Tiles(see(graph, parameters, arrays["tiles"]), arrays["index"])
        after = rows, run(padded, arrays["ids"], arrays["mask"], tiles)
        if before:
          collect(*before)
        before = after
      collect(*before)
    return found

  def _arrays(self, asked: Sequence[Asked], pool) -> dict[str, np.ndarray]:
    """A batch: prompts padded on the left, and the tiles of each group of rows."""
    geometry = self.asker.geometry
    once = list(dict.fromkeys(one.picture for one in asked))
    cut = dict(zip(once, pool.map(self._cut, once), strict=True))
    length = room(max(len(one.ids) for one in asked))
    most = max(geometry.num_tiles(one.size) for one in asked)
    slots = most * len(asked) // self._groups
    shape = (self._groups, slots, geometry.tile, geometry.tile, 3)
    pad = self.asker.tokenizer.convert_tokens_to_ids(PAD)
    return {
      "ids": np.stack(
        [np.pad(one.ids, (length - len(one.ids), 0), constant_values=pad) for one in asked]
      ),
      "mask": np.stack([np.arange(length) >= length - len(one.ids) for one in asked]),
      "index": geometry.index([[one.size] for one in asked], length, self._groups),
      "tiles": tiles_lib.stack([[cut[one.picture]] for one in asked], shape),
    }

  def _cut(self, path: epath.Path) -> UInt8[np.ndarray, "n s s 3"]:
    return tiles_lib.cut(pixels.read(path.read_bytes()), self.asker.geometry)


@dataclasses.dataclass(frozen=True)
class Answered:
  """A question's result: the greedy answer or the likeliest choice, the true answer's NLL (nats a
  token), whether greedy decoding says just that, and the benchmark's own metric, in [0, 1].
  """

  id: str
  benchmark: str
  said: str
  nll: float
  exact: bool
  metric: float


def work(questions: Sequence[Question]) -> int:
  """How many rows `examine` passes through the model."""
  return sum(len(q.choices) if _chosen(q) else 2 for q in questions)


def examine(
  examiner: Examiner,
  questions: Sequence[Question],
  asked: Sequence[Asked],
  new_tokens: int,
  on_rows: Callable[[int], None] = lambda count: None,
) -> list[Answered]:
  """Each question's result: choices are judged by their likelihood, other answers are decoded.

  Those have `new_tokens` at most, or room for the longest true one of their benchmark. Raises
  FloatingPointError that names a question for which the model computes no number.
  """
  if new_tokens < 1:
    raise ValueError(f"new_tokens={new_tokens}: give 1 or more")
  candidates = [q.choices if _chosen(q) else (q.answer,) for q in questions]
  owners = np.repeat(np.arange(len(questions)), [len(texts) for texts in candidates])
  answers = examiner.asker.answers([text for texts in candidates for text in texts])
  nll, tokens, exact = examiner.score([asked[owner] for owner in owners], answers, on_rows)
  if not np.all(np.isfinite(nll)):
    wrong = questions[owners[int(np.argmin(np.isfinite(nll)))]].id
    raise FloatingPointError(
      f"an answer to {wrong} has no likelihood: look for NaN in the weights, or use dtype=float32"
    )
  by_benchmark: dict[str, list[int]] = {}
  for i, question in enumerate(questions):
    if not _chosen(question):
      by_benchmark.setdefault(question.benchmark, []).append(i)
  said: dict[int, str] = {}
  for decoded in by_benchmark.values():
    true = examiner.asker.answers([questions[i].answer for i in decoded])
    most = max(new_tokens, *map(len, true))
    spoken = examiner.say([asked[i] for i in decoded], most, on_rows)
    said |= zip(decoded, map(examiner.asker.decode, spoken), strict=True)
  results = []
  for i, question in enumerate(questions):
    here = np.flatnonzero(owners == i)
    each = nll[here] / tokens[here]
    at = candidates[i].index(question.answer)
    if _chosen(question):
      text = candidates[i][int(np.argmin(each))]
      metric = float(text == question.answer)
    else:
      text = said[i]
      metric = DECODED[question.metric](text, question.answer)
    results.append(
      Answered(
        question.id, question.benchmark, text, float(each[at]), bool(exact[here[at]]), metric
      )
    )
  return results


def scores(results: Sequence[Answered]) -> dict[str, dict[str, float]]:
  """benchmark -> {score, stderr, n, nll, exact, metric, metric_stderr}, as of `Suite.full`.

  But exact match is of what was said, whatever its case and blanks; `Suite`, and `exact` here, ask
  that greedy decoding give the true answer token for token.
  """
  found = {}
  for name in dict.fromkeys(one.benchmark for one in results):
    mine = [one for one in results if one.benchmark == name]
    nll, metric = (np.array([getattr(one, key) for one in mine]) for key in ("nll", "metric"))
    figures = summary(metric)
    found[name] = {
      **summary(np.exp(-nll)),
      "nll": float(nll.mean()),
      "exact": 100 * float(np.mean([one.exact for one in mine])),
      "metric": figures["score"],
      "metric_stderr": figures["stderr"],
    }
  return found


def _chosen(question: Question) -> bool:
  return question.metric == CHOICE
