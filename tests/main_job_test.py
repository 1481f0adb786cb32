"""The main job as a user runs it: tiny budgets, real parts, real kills."""

import json
import random
import signal
import time

import pytest

from mixjax.evals.benchmarks import BENCHMARKS
from mixjax.jobs.mixtures import named_mixture
from mixjax.recipes import recipe as recipe_lib


def snapshot(folder):
  return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*.json")}


def test_it_leaves_a_recipe_a_study_and_a_report(finished):
  recipe = recipe_lib.load(finished / "recipe.json")
  assert sum(recipe["weights"].values()) == pytest.approx(1)
  manifest = json.loads((finished / "atlas" / "cells" / "manifest.json").read_text())
  assert set(recipe["weights"]) == set(manifest["cells"])
  empty = [cell for cell, entry in manifest["cells"].items() if not entry["rows"]]
  assert all(recipe["weights"][cell] == 0 for cell in empty)
  assert recipe["objective"]["sd"] > 0
  trials = sorted((finished / "study" / "trials").iterdir())
  for trial in trials:
    scores = json.loads((trial / "scores.json").read_text())
    assert set(scores) == set(BENCHMARKS)
  html = (finished / "report.html").read_text()
  assert 'http-equiv="refresh"' not in html and all(name in html for name in BENCHMARKS)


def test_every_contender_is_trained_on_the_target_with_the_same_seeds(finished):
  runs = json.loads((finished / "targets.json").read_text())["runs"]
  seeds = {r["name"]: r["seed"] for r in runs if r["group"] == "target"}
  assert set(seeds) >= {"uniform", "natural", "random", "regmix", "mixatlas", "matched"}
  assert len(set(seeds.values())) == 1
  parameters = {r["group"]: r["parameters"] for r in runs}
  assert parameters["target"] >= 4 * parameters["proxy"]
  for r in runs:
    for cell in r["counts"].values():
      assert abs(cell["realised"] - cell["requested"]) < 1


@pytest.mark.slow
def test_a_second_run_trains_nothing(finished, run_main):
  before = snapshot(finished / "study") | snapshot(finished / "targets")
  report = (finished / "report.html").read_bytes()
  run_main("configs/search.py:tiny", finished)
  assert snapshot(finished / "study") | snapshot(finished / "targets") == before
  assert (finished / "report.html").read_bytes() == report


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_recipe(finished, run_main, tmp_path):
  """Bit for bit what the undisturbed run found: recipe, scores of every trial, targets.

  Each kill waits for its stage, so that a slow machine cannot spend them all on the gallery.
  """
  chance = random.Random(0)
  stages = (
    ("atlas/embedded.json", 1),
    ("study/trials/*/scores.json", chance.randint(2, 8)),
    ("targets/target-*/checkpoints/manifest-*.json", chance.randint(1, 4)),
  )
  for pattern, count in stages:
    process = run_main("configs/search.py:tiny", tmp_path, wait=False)
    while len(list(tmp_path.glob(pattern))) < count:
      assert process.poll() is None, f"it ended before {count} of {pattern}"
      time.sleep(0.01)
    time.sleep(0.5 * chance.random())
    assert process.poll() is None, f"it ended before it was killed at {pattern}"
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.5)  # the workers end with their parent
  assert not (tmp_path / "targets.json").exists()
  run_main("configs/search.py:tiny", tmp_path)
  assert (tmp_path / "recipe.json").read_bytes() == (finished / "recipe.json").read_bytes()
  for name in ("mixture.json", "scores.json"):
    here = sorted(tmp_path.glob(f"study/trials/*/{name}"))
    there = sorted(finished.glob(f"study/trials/*/{name}"))
    assert [p.read_bytes() for p in here] == [p.read_bytes() for p in there]

  def scores(folder):
    runs = json.loads((folder / "targets.json").read_text())["runs"]
    return {(r["group"], r["name"], r["seed"]): (r["scores"], r["curve"]) for r in runs}

  assert scores(tmp_path) == scores(finished)


@pytest.mark.slow
def test_a_corpus_of_ones_own_with_benchmarks_of_ones_own(finished, run_main, tmp_path):
  """The gallery's rows and three of its benchmarks under other names: everything follows them."""
  gallery, folder = finished / "gallery", tmp_path / "questions"
  names = {"counting": "how many", "documents": "invoices", "science": "parts"}
  metrics = {"counting": "relaxed accuracy", "documents": "ANLS", "science": "multiple choice"}
  folder.mkdir()
  for split in ("validation", "benchmark"):
    (folder / split).symlink_to(gallery / split)
    asked = json.loads((gallery / f"{split}.json").read_text())
    asked = [
      q | {"benchmark": names[q["benchmark"]], "metric": metrics[q["benchmark"]]}
      for q in asked
      if q["benchmark"] in names
    ]
    (folder / f"{split}.json").write_text(json.dumps(asked[::-1]))
  config = f"configs/search.py:tiny,corpus={gallery / 'train.json'},questions={folder}"
  workdir = tmp_path / "run"
  run_main(config, workdir)
  wanted = sorted(names.values())
  assert json.loads((workdir / "search.json").read_text())["benchmarks"] == wanted
  for run in json.loads((workdir / "targets.json").read_text())["runs"]:
    assert all(list(scores) == wanted for scores in run["scores"].values())
  html = (workdir / "report.html").read_text()
  assert all(text in html for text in (*wanted, *metrics.values()))
  assert "What the benchmarks stand for" not in html and ">relations<" not in html
  scored = f"configs/evaluate.py:atlas={workdir / 'atlas'}"
  run_main(scored, tmp_path / "scores")
  assert list(json.loads((tmp_path / "scores" / "scores.json").read_text())["benchmark"]) == wanted


def test_another_config_in_the_same_workdir_is_refused(finished, run_main):
  done = run_main("configs/search.py:tiny,seed=1", finished, check=False)
  assert done.returncode == 2
  assert "seed: 0 there, 1 asked for" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
  ("config", "message"),
  [
    ("configs/search.py:tinny", "unknown config argument 'tinny'"),
    ("configs/atlas.py:corpus=/none.json,questions=/none", "no corpus at /none.json"),
    ("configs/train.py:atlas=/none", "no cells in /none"),
  ],
)
def test_bad_input_ends_with_one_clear_line(run_main, tmp_path, config, message):
  done = run_main(config, tmp_path / "w", check=False)
  assert done.returncode != 0 and message in done.stderr


def test_a_bad_mixture_is_named(finished, run_main, tmp_path):
  manifest = json.loads((finished / "atlas" / "cells" / "manifest.json").read_text())
  rows = {cell: entry["rows"] for cell, entry in manifest["cells"].items()}
  first, second = [cell for cell, count in rows.items() if count][:2]
  path = tmp_path / "mixture.json"
  for text, message in (("charts: 1", "is no JSON"), ("[1.0]", "no JSON object of")):
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
      named_mixture(str(path), rows)
  bad = {
    "no-such/vqa": {"no-such/vqa": 1.0},
    "sum": {first: 0.7},
    "negative": {first: -0.5, second: 1.5},
    "nan": {first: float("nan"), second: 1.0},
  }
  for message, weights in bad.items():
    path.write_text(json.dumps(weights))
    with pytest.raises(ValueError, match=f"(?i){message}"):
      named_mixture(str(path), rows)
  config = f"configs/train.py:atlas={finished / 'atlas'},mixture={path},samples=64"
  done = run_main(config, tmp_path / "w", check=False)
  assert done.returncode == 2 and "nan" in done.stderr.lower()
  assert "Traceback" not in done.stderr
