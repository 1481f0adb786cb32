"""The other doors of a workdir: train on its recipe, score the checkpoint, rebuild its report."""

import json
import shutil

import pytest

from mixjax.evals.benchmarks import BENCHMARKS


@pytest.mark.slow
def test_a_recipe_trains_and_its_checkpoint_scores_the_same(finished, run_main, tmp_path):
  recipe = finished / "recipe.json"
  config = f"configs/train.py:atlas={finished / 'atlas'},mixture={recipe},samples=128,full"
  run_main(config, tmp_path / "run")
  trained = json.loads((tmp_path / "run" / "scores.json").read_text())
  assert (tmp_path / "run" / "checkpoints").exists()
  assert "projector" in (tmp_path / "run" / "parameters.txt").read_text()

  run = f"configs/evaluate.py:atlas={finished / 'atlas'},run={tmp_path / 'run'}"
  run_main(run, tmp_path / "scores")
  scored = json.loads((tmp_path / "scores" / "scores.json").read_text())
  assert set(scored["benchmark"]) == set(BENCHMARKS)
  for name, entry in scored["benchmark"].items():
    assert abs(entry["nll"] - trained["benchmark"][name]["nll"]) < 1e-4


@pytest.mark.slow
def test_killed_while_scoring_it_scores_the_trained_model(finished, run_main, tmp_path):
  """The last checkpoint is there and the result is not: no step is trained again."""
  recipe = finished / "recipe.json"
  config = f"configs/train.py:atlas={finished / 'atlas'},mixture={recipe},samples=128"
  run_main(config, tmp_path)
  log, scores = (tmp_path / "metrics.jsonl").read_text(), (tmp_path / "scores.json").read_bytes()
  (tmp_path / "result.json").unlink()
  run_main(config, tmp_path)
  assert (tmp_path / "metrics.jsonl").read_text() == log
  assert (tmp_path / "scores.json").read_bytes() == scores


@pytest.mark.slow
def test_a_curriculum_keeps_to_its_caps_and_a_restart_to_the_curriculum(
  finished, run_main, tmp_path
):
  manifest = json.loads((finished / "atlas" / "cells" / "manifest.json").read_text())
  rows = {cell: entry["rows"] for cell, entry in manifest["cells"].items() if entry["rows"]}
  least = min(rows, key=rows.get)
  rest = {cell: 0.5 / (len(rows) - 1) for cell in rows if cell != least}
  stages = [{"step": 0, "mixture": {least: 0.5} | rest}, {"step": 3, "mixture": "uniform"}]
  (tmp_path / "mixture.json").write_text(json.dumps({"stages": stages}))
  repetition = 20 / rows[least]
  config = (
    f"configs/train.py:atlas={finished / 'atlas'},mixture={tmp_path / 'mixture.json'},"
    f"samples=128,repetition={repetition},exhausted=redistribute"
  )
  done = run_main(config, tmp_path / "run")
  said = f"  {least} runs out at sample 40 (step 1) and gives its weight to the others"
  assert "3 stages:" in done.stdout and said in done.stdout
  result = json.loads((tmp_path / "run" / "result.json").read_text())
  assert [stage["start"] for stage in result["planned"]["stages"]] == [0, 40, 96]
  assert result["planned"]["run_out"] == {least: {"sample": 40, "step": 1}}
  assert 19 <= result["counts"][least]["realised"] <= 20

  log = (tmp_path / "run" / "metrics.jsonl").read_text()
  (tmp_path / "run" / "result.json").unlink()
  run_main(config, tmp_path / "run")  # as after a kill
  assert (tmp_path / "run" / "metrics.jsonl").read_text() == log
  again = json.loads((tmp_path / "run" / "result.json").read_text())
  assert {**again, "seconds": 0} == {**result, "seconds": 0}

  stages[1]["step"] = 2
  (tmp_path / "mixture.json").write_text(json.dumps({"stages": stages}))
  done = run_main(config, tmp_path / "run", check=False)
  assert done.returncode == 2 and "is of a run of other stages" in done.stderr
  done = run_main(config.replace("redistribute", "stop"), tmp_path / "new", check=False)
  assert done.returncode == 2 and f"{least!r} would give " in done.stderr
  assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_run_that_diverges_ends_with_one_clear_line(finished, run_main, tmp_path):
  config = f"configs/train.py:atlas={finished / 'atlas'},mixture=uniform,samples=128"
  done = run_main(config, tmp_path, "--config.budget.learning_rate=1e30", check=False)
  assert done.returncode == 2 and "Traceback" not in done.stderr
  assert "lower the learning rate" in done.stderr


def test_a_report_is_rebuilt_with_the_same_bytes(finished, run_main):
  before = (finished / "report.html").read_bytes()
  (finished / "report.html").unlink()
  run_main("configs/report.py", finished)
  assert (finished / "report.html").read_bytes() == before


def test_evaluating_a_run_without_checkpoints_says_so(finished, run_main, tmp_path):
  run = f"configs/evaluate.py:atlas={finished / 'atlas'},run={tmp_path}"
  done = run_main(run, tmp_path / "scores", check=False)
  assert done.returncode == 2 and "no checkpoint in" in done.stderr


@pytest.mark.slow
def test_images_that_cannot_be_read_go_to_the_ledger_and_nothing_else_changes(
  finished, run_main, tmp_path
):
  gallery = shutil.copytree(finished / "gallery", tmp_path / "gallery")
  missing, torn = sorted((gallery / "train").iterdir())[:2]
  missing.unlink()
  torn.write_bytes(torn.read_bytes()[:100])
  config = f"configs/atlas.py:corpus={gallery / 'train.json'},questions={gallery}"
  run_main(config, tmp_path / "run")
  ledger = (tmp_path / "run" / "atlas" / "ledger.jsonl").read_text().splitlines()
  named = {json.loads(line)["image"] for line in ledger}
  assert named == {f"train/{missing.name}", f"train/{torn.name}"}
  rows = json.loads((gallery / "train.json").read_text())
  lost = sum(row["image"] in named for row in rows)
  manifest = json.loads((tmp_path / "run" / "atlas" / "cells" / "manifest.json").read_text())
  assert sum(cell["rows"] for cell in manifest["cells"].values()) == len(rows) - lost
