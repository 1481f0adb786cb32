"""One trial: train a model on a mixture, score it, leave everything in the trial's folder.

A trial is a pure function of its `TrialSpec` and of the corpus: any process may run it, and running
it again gives the same bits. `result.json` is written last and whole: its presence means done.
"""

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import nnx

from mixjax.data import encode
from mixjax.data.loader import EncodedCells, Loader
from mixjax.data.stages import Stages
from mixjax.evals import benchmarks
from mixjax.evals.evaluate import Suite
from mixjax.models import hf
from mixjax.training import train as train_lib
from mixjax.training.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class Budget:
  """What a run may spend: `samples` seen in batches of `batch_size`, from checkpoint `model`."""

  model: str  # a folder with a LLaVA checkpoint
  samples: int
  batch_size: int
  learning_rate: float
  save_every: int = 0  # steps between checkpoints
  curve_points: int = 0  # points of the validation curve
  weight_decay: float = 0.0

  @property
  def steps(self) -> int:
    return self.samples // self.batch_size


@dataclasses.dataclass(frozen=True)
class TrialSpec:
  """`weights` is the mixture by cell, or stages of such; `full` adds the benchmarks' metrics and a
  blind pass.
  """

  folder: str
  weights: dict[str, float] | Stages
  seed: int
  budget: Budget
  full: bool = False
  blind: bool = False  # trained and scored with features zeroed


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Where the encoded cells and the questions are."""

  atlas: str
  tokenizer: str


class World:
  """What the trials of one process share: encoded cells, suites, starting checkpoints."""

  def __init__(self, corpus: Corpus):
    self._atlas = epath.Path(corpus.atlas)
    self._tokenizer = encode.load_tokenizer(corpus.tokenizer)

  @functools.cached_property
  def encoder(self) -> encode.Encoder:
    image_tokens, length = self.cells.features.shape[1], self.cells.ids.shape[1]
    return encode.Encoder(self._tokenizer, image_tokens, length - image_tokens)

  @functools.cached_property
  def cells(self) -> EncodedCells:
    return EncodedCells.load(self._atlas / "encoded")

  @functools.cache  # noqa: B019  a world lives as long as its process
  def suite(self, split: str) -> Suite:
    """The questions of `validation` or `benchmark`, with their images' features."""
    folder = self._atlas / "questions"
    questions = benchmarks.read(folder / f"{split}.json")
    features = np.load(folder / f"{split}_features.npy", mmap_mode="r")
    images = json.loads((folder / f"{split}_images.json").read_text())
    row = {name: i for i, name in enumerate(images)}
    rows = np.array([row[q.image] for q in questions])
    return Suite(tuple(questions), self.encoder, features, rows)

  @functools.cache  # noqa: B019
  def start(self, model: str):
    """(graphdef, params) of a checkpoint without its vision tower, whose features are cached."""
    return nnx.split(hf.load_llava(model, tower=False, unroll=True))

  def run(
    self,
    spec: TrialSpec,
    on_step: Callable[[int, float], None] | None = None,
    about: Mapping[str, Any] | None = None,
  ) -> dict:
    """Trains and scores; returns what `result.json` holds, `about` too. A finished trial is only
    read.
    """
    folder = epath.Path(spec.folder)
    result_path = folder / "result.json"
    if result_path.exists():
      return json.loads(result_path.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    began = time.time()
    graphdef, params = self.start(spec.budget.model)
    loader = Loader(self.cells, spec.weights, spec.seed, spec.budget.batch_size, blind=spec.blind)
    validation = self.suite("validation")
    curve_suite = validation.subset(40)
    steps, points = spec.budget.steps, spec.budget.curve_points

    def on_curve(step, params):
      scores = curve_suite.likelihoods(graphdef, params, spec.blind)
      return {
        "validation_nll": float(np.mean([s["nll"] for s in scores.values()])),
        "validation_score": float(np.mean([s["score"] for s in scores.values()])),
      }

    every = max(1, steps // points) if points else 0
    config = train_lib.TrainConfig(
      steps=steps,
      optimizer=OptimizerConfig(spec.budget.learning_rate, weight_decay=spec.budget.weight_decay),
      log_every=every or 16,
      save_every=spec.budget.save_every,
      curve_every=every,
    )
    params = train_lib.train(
      graphdef, params, loader, config, folder, validation.loss_from, on_curve, on_step
    )
    trained = time.time()
    scores = {"validation": validation.likelihoods(graphdef, params, spec.blind)}
    if spec.full:
      benchmark = self.suite("benchmark")
      scores["benchmark"] = benchmark.full(graphdef, params, spec.blind)
      scores["benchmark_blind"] = benchmark.full(graphdef, params, blind=True)
    result = {
      "scores": scores,
      "counts": loader.counts(steps),
      "parameters": sum(p.size for p in jax.tree.leaves(params)),
      "seconds": {"train": trained - began, "score": time.time() - trained},
    } | dict(about or {})
    partial = folder / "result.json.partial"
    partial.write_text(json.dumps(result, indent=1))
    partial.replace(result_path)
    return result
