"""Scores on the finished tiny corpus: what they promise, and that blind means blind."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mixjax.evals import evaluate
from mixjax.evals.benchmarks import ANLS, BENCHMARKS, CHOICE, EXACT, RELAXED
from mixjax.jobs.atlas import STANDINS
from mixjax.jobs.trial import Corpus, World


@pytest.fixture(scope="module")
def world(finished):
  return World(Corpus(str(finished / "atlas"), str(STANDINS / "tokenizer")))


@pytest.fixture(scope="module")
def model(world):
  return world.start(str(STANDINS / "proxy"))


@pytest.fixture(scope="module")
def full(world, model):
  return world.suite("benchmark").full(*model)


def test_every_benchmark_has_scores_in_range_with_an_error(full):
  assert set(full) == set(BENCHMARKS)
  for entry in full.values():
    assert 0 <= entry["score"] <= 100 and 0 <= entry["metric"] <= 100
    assert entry["stderr"] >= 0 and entry["n"] > 1 and entry["nll"] > 0


def test_likelihood_is_that_of_the_answer(world, model):
  """The suite's NLL of a row equals one computed from full logits, token by token."""
  suite = world.suite("benchmark")
  llava = nnx.merge(*model)
  question = suite.questions[0]
  row = suite.encoder.encode(question.prompt, question.answer)
  features = np.asarray(suite.features[suite.image_rows[0]], np.float32)[None]
  ids, mask = jnp.asarray(row["ids"])[None], jnp.asarray(row["mask"])[None]
  logits = llava.logits(llava(ids, jnp.asarray(features), mask=mask))[0]
  log_p = jax.nn.log_softmax(logits)
  at = np.flatnonzero(row["loss_mask"])
  nll = -np.mean([log_p[t - 1, row["ids"][t]] for t in at])
  one = suite.subset(1)
  scored = one.likelihoods(*model)[question.benchmark]
  assert scored["nll"] == pytest.approx(float(nll), abs=1e-4)
  assert scored["score"] == pytest.approx(100 * np.exp(-float(nll)), abs=1e-2)


def test_blind_scores_do_not_depend_on_the_pictures(world, model):
  suite = world.suite("benchmark")
  shuffled = dataclasses.replace(suite, image_rows=suite.image_rows[::-1])
  assert suite.likelihoods(*model, blind=True) == shuffled.likelihoods(*model, blind=True)
  assert suite.likelihoods(*model) != shuffled.likelihoods(*model)


def test_benchmarks_of_ones_own_are_scored_by_the_metrics_that_they_name(world, model, full):
  """The gallery's counting and documents under other names: the same scores, and other metrics."""
  suite = world.suite("benchmark")
  names = {
    "counting": ("how-many", RELAXED), "documents": ("invoices", ANLS), "science": ("parts", EXACT),
  }  # fmt: skip
  kept = [i for i, q in enumerate(suite.questions) if q.benchmark in names]
  questions = tuple(
    dataclasses.replace(q, benchmark=names[q.benchmark][0], metric=names[q.benchmark][1])
    for q in (suite.questions[i] for i in kept)
  )
  own = dataclasses.replace(suite, questions=questions, image_rows=suite.image_rows[kept])
  scored = own.full(*model)
  assert list(scored) == ["how-many", "invoices", "parts"]
  for old, (new, _) in names.items():
    assert scored[new]["score"] == pytest.approx(full[old]["score"], abs=1e-4)
    assert scored[new]["n"] == full[old]["n"]
  assert scored["invoices"]["metric"] == pytest.approx(full["documents"]["metric"])
  assert scored["how-many"]["metric"] >= full["counting"]["metric"]  # 5% off is right as well
  assert scored["parts"]["metric"] == scored["parts"]["exact"] != full["science"]["metric"]


def test_as_much_is_decoded_as_the_longest_answer_has(world, model, monkeypatch):
  asked = []
  monkeypatch.setattr(
    evaluate, "generate", lambda *a: asked.append(a[4]) or jnp.zeros((len(a[1]), a[4]), int)
  )
  suite = world.suite("benchmark").subset(1)
  long = tuple(
    dataclasses.replace(q, answer="7" * 17, metric=ANLS) if q.benchmark == "charts" else q
    for q in suite.questions
  )
  dataclasses.replace(suite, questions=long).full(*model)
  assert sorted(asked) == [12, 12, 18]  # grounding, documents, and charts with a digit a token


def test_a_subset_keeps_the_first_of_each_benchmark(world):
  suite = world.suite("benchmark").subset(2)
  assert len(suite.questions) == 2 * len(BENCHMARKS) == len(suite.image_rows)


def test_the_prior_is_never_below_chance(world):
  prior = evaluate.answer_prior(world.suite("benchmark").questions)
  for name, benchmark in BENCHMARKS.items():
    assert prior[name] >= (25 if benchmark.metric == CHOICE else 0)
