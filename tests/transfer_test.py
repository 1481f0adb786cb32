import json

import pytest
from etils import epath

from configs.search import get_config
from mixjax.evals.benchmarks import BENCHMARKS
from mixjax.jobs import transfer
from mixjax.jobs.search_config import parse
from mixjax.progress import Reporter

CELLS = [f"c{i}/{task}" for i in range(2) for task in ("ocr", "vqa")]


def mixture(first: float) -> dict[str, float]:
  return dict(zip(CELLS, (first, 0.4, 0.3, 0.3 - first), strict=True))


class Recorder:
  """Stands where the pool of processes does: every run is noted and scores the same."""

  def __init__(self, metric=2.0):
    self.specs, self.metric = [], metric

  def run(self, specs, on_done):
    self.specs += specs
    results = []
    for spec in specs:
      folder = epath.Path(spec.folder)
      folder.mkdir(parents=True)
      (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "validation_nll": 1.0}) + "\n")
      entry = {"score": 1.0, "metric": self.metric, "metric_stderr": 0.1}
      scores = {s: dict.fromkeys(BENCHMARKS, entry) for s in ("validation", "benchmark")}
      results.append({"scores": scores, "parameters": 10, "counts": {}})
      on_done(spec, results[-1])
    return results


def found(random, regmix):
  recommended = {
    name: {"weights": weights, "mean": 1.0}
    for name, weights in {"random": random, "regmix": regmix, "mixatlas": mixture(0.1)}.items()
  }
  history = [{"purpose": "random", "trial": i, "score": float(i)} for i in range(3)]
  return {"axes": {"product": {"recommended": recommended, "history": history}}}


def run(tmp_path, random, regmix, pool=None, **changes):
  config = parse(get_config("tiny").to_dict() | changes)
  for trial in range(3):
    folder = tmp_path / "study" / "trials" / f"{trial:05d}"
    folder.mkdir(parents=True)
    (folder / "mixture.json").write_text(json.dumps({"mixture": mixture(0.05 * trial)}))
  pool = pool or Recorder()
  known = {"uniform": dict.fromkeys(CELLS, 0.25), "natural": mixture(0.2)}
  targets = transfer.run(
    config, epath.Path(tmp_path), pool, found(random, regmix), known, Reporter()
  )
  return pool.specs, targets


def test_a_mixture_that_two_methods_choose_is_trained_once(tmp_path):
  specs, targets = run(tmp_path, mixture(0.07), mixture(0.07))
  trained = [epath.Path(s.folder).name.rsplit("-", 1)[0] for s in specs]
  assert "target-random" in trained and "target-regmix" not in trained
  names = [r["name"] for r in targets["runs"] if r["group"] == "target"]
  assert names == ["uniform", "natural", "random", "regmix", "mixatlas"]


def test_different_mixtures_and_seeds_are_each_trained(tmp_path):
  specs, targets = run(tmp_path, mixture(0.07), mixture(0.08), target_seeds=3)
  assert len({s.folder for s in specs}) == len(specs)
  runs = [(r["name"], r["seed"]) for r in targets["runs"] if r["group"] == "target"]
  assert len(runs) == len(set(runs)) == 15
  # Blind is another run than sighted, though the mixture and the seed are the same.
  assert sum(s.blind for s in specs) == 2


def test_a_target_whose_scores_are_not_finite_is_named(tmp_path):
  with pytest.raises(FloatingPointError, match="target-uniform-1000 is not finite: lower"):
    run(tmp_path, mixture(0.07), mixture(0.07), Recorder(float("nan")))


def test_ranks_reuse_a_target_that_is_there(tmp_path):
  specs, targets = run(tmp_path, mixture(0.1), mixture(0.08), correlation_mixtures=3)
  ranked = [r for r in targets["runs"] if r["group"] == "rank"]
  assert [r["name"] for r in ranked] == ["rank-0", "rank-1", "rank-2"]
  # Trial 2 is the recipe's own mixture.
  assert sum("rank-" in s.folder for s in specs) == 2
