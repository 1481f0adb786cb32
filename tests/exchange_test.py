import csv
import dataclasses
import json
import sys

import numpy as np
import pytest

from mixjax.search import exchange, tables
from mixjax.search.observations import matches
from mixjax.search.policies.mixatlas import MixAtlas
from mixjax.search.space import Space, candidates
from mixjax.search.study import Study, observe
from mixjax.search.trial import DONE, FAILED, INFEASIBLE, QUEUED, RUNNING, Trial

CELLS = tuple(f"c{i}/ocr" for i in range(12))
SPACE = Space.simplex("joint", CELLS)
SPACE = SPACE.with_pool(candidates(SPACE, 60, 0))
TASKS = Space.task_axis(("maps", "charts"), ("caption", "ocr", "vqa"))


def scores_of(point, stderr=None):
  error = {} if stderr is None else {"stderr": stderr}
  return {"ocr": {"score": point[0] / 3 - point[1] ** 2} | error, "vqa": {"score": -1 / 7} | error}


def add(study, point, space=SPACE, scores=None, **fields):
  trial = Trial(None, "seed", space.name, space.cells(point), space.as_dict(point), 0)
  trial = study.attach(dataclasses.replace(trial, **fields))
  return study.tell(trial, scores or scores_of(point))


@pytest.fixture
def study(tmp_path):
  """Twelve finished runs, and one in each other state."""
  study = Study(tmp_path / "study", {"proxy": "tiny"})
  for point in SPACE.pool[:12]:
    add(study, point)
  for row, state in enumerate((QUEUED, RUNNING, FAILED, INFEASIBLE), 12):
    point = SPACE.pool[row]
    weights = SPACE.as_dict(point)
    trial = study.attach(Trial(None, "mixatlas", "joint", weights, weights, 0))
    study.mark(trial.id, state, "diverged" if state == INFEASIBLE else "")
  return study


def rows(path):
  with open(path) as file:
    return list(csv.reader(file))


def test_an_olmix_table_holds_the_finished_runs_to_the_last_bit(study, tmp_path):
  left_out = exchange.export_olmix(study, tmp_path / "table")
  assert left_out == {12: "queued", 13: "running", 14: "failed", 15: "infeasible: diverged"}
  ratios, metrics = (rows(tmp_path / "table" / f"{n}.csv") for n in ("ratios", "metrics"))
  assert ratios[0] == ["run", "name", "index", *CELLS]
  assert metrics[0] == ["run", "name", "index", "ocr", "vqa"]
  assert len(ratios) == len(metrics) == 13
  for trial, weights, values in zip(study.trials(), ratios[1:], metrics[1:], strict=False):
    assert weights[:3] == values[:3] == [f"{trial.id:05d}", "seed", str(trial.id)]
    assert [float(w) for w in weights[3:]] == list(trial.point.values())
    assert [float(v) for v in values[3:]] == [e["score"] for e in trial.scores.values()]
  table = tables.read(tmp_path / "table")
  assert table.domains == CELLS and not table.losses and table.fidelity is None
  seen = observe(study.trials(), SPACE, exchange.objective(study, "ocr"))
  np.testing.assert_array_equal(table.mixtures, seen.mixtures)
  np.testing.assert_array_equal(table.metrics["ocr"], seen.scores)


@pytest.mark.parametrize("layout", ["olmix", "regmix"])
def test_a_suggestion_survives_export_import_and_reading_again(study, tmp_path, layout):
  export = {"olmix": exchange.export_olmix, "regmix": exchange.export_regmix}[layout]

  def suggest(study):
    finished = [trial for trial in study.trials() if trial.state == DONE]
    runs = observe(finished, SPACE, exchange.objective(study))
    return runs, MixAtlas(SPACE, seeds=4).ask(runs, 2, 0)

  before, asked = suggest(study)
  for trip in range(2):  # the first may not drift, nor the second
    export(study, tmp_path / f"table{trip}")
    table = tables.read(tmp_path / f"table{trip}")
    study = exchange.import_table(table, tmp_path / f"imported{trip}", SPACE)
    assert study.config["minimize"] is (layout == "regmix")
    for again in (study, Study(study.path)):
      after, suggestion = suggest(again)
      np.testing.assert_array_equal(after.mixtures, before.mixtures)
      np.testing.assert_array_equal(after.scores, before.scores)
      np.testing.assert_array_equal(suggestion, asked)
  assert not matches(asked, before.mixtures).any()


def test_no_bit_of_any_mixture_is_lost(tmp_path):
  """A quarter of such points miss a sum of 1 by a bit and would move if divided by it once more."""
  space = Space.simplex("joint", [f"cell{i}" for i in range(17)])
  study = Study(tmp_path / "study", {})
  for point in np.concatenate([candidates(space, 40, 1), candidates(space, 40, 2, (0.02,))]):
    add(study, point, space)
  value = exchange.objective(study)
  seen = observe(study.trials(), space, value)
  exchange.export_olmix(study, tmp_path / "table")
  table = tables.read(tmp_path / "table")
  imported = exchange.import_table(table, tmp_path / "imported", space)
  again = observe(imported.trials(), space, value)
  np.testing.assert_array_equal(again.mixtures, seen.mixtures)
  plain = np.array(
    [space.from_dict(dict(zip(table.domains, m, strict=True))) for m in seen.mixtures]
  )
  assert (plain != seen.mixtures).any()  # without care it would have been lost


def test_a_table_of_losses_comes_in_once_and_goes_out_as_it_was(tmp_path):
  folder = tmp_path / "regmix"
  folder.mkdir()
  (folder / "train_mixture_1m.csv").write_text("index,web,code\n7,0.25,0.75\n9,0.1,0.9\n3,1,0\n")
  (folder / "train_pile_loss_1m.csv").write_text("index,x,y\n9,2.5,\n7,0.1,0.3\n3,,\n")
  table = tables.read(folder)
  study = exchange.import_table(table, tmp_path / "study")
  assert study.config["minimize"] is True
  first, second, third = study.trials()
  assert first.scores == {"x": {"score": 0.1}, "y": {"score": 0.3}} and first.axis == "domain"
  assert first.point == first.mixture == {"web": 0.25, "code": 0.75}
  assert second.scores == {"x": {"score": 2.5}}
  assert third.state == FAILED and "no value" in third.detail
  value = exchange.objective(study)
  assert value(first.scores) == (-0.2, None)
  assert exchange.objective(study, "x")(second.scores) == (-2.5, None)
  with pytest.raises(ValueError, match=r"\['y'\]"):
    value(second.scores)
  with pytest.raises(ValueError, match="no trial has a score of 'z': choose mean or one of"):
    exchange.objective(study, "z")

  before = {p: p.read_text() for p in (tmp_path / "study").rglob("*.json")}
  exchange.import_table(table, tmp_path / "study")
  assert before == {p: p.read_text() for p in (tmp_path / "study").rglob("*.json")}
  with pytest.raises(ValueError, match="minimize: True -> False"):
    exchange.import_table(table, tmp_path / "study", minimize=False)

  left_out = exchange.export_regmix(study, tmp_path / "again")
  assert left_out == {2: "failed: the table has no value of any metric"}
  again = tables.read(tmp_path / "again")
  assert again.losses and again.runs == ("7", "9") and again.domains == table.domains
  np.testing.assert_array_equal(again.mixtures, table.mixtures[:2])
  for name in ("x", "y"):
    np.testing.assert_array_equal(again.metrics[name], table.metrics[name][:2])


def test_scores_leave_as_losses_where_losses_are_expected(study, tmp_path):
  exchange.export_regmix(study, tmp_path / "table")
  table = tables.read(tmp_path / "table")
  assert table.losses
  np.testing.assert_array_equal(table.metrics["vqa"], np.full(12, 1 / 7))


def test_standard_errors_make_that_of_the_mean(tmp_path):
  study = Study(tmp_path / "study", {})
  trial = add(study, SPACE.pool[0], scores=scores_of(SPACE.pool[0], 0.3))
  mean, error = exchange.objective(study)(trial.scores)
  assert mean == pytest.approx((trial.scores["ocr"]["score"] - 1 / 7) / 2)
  assert error == pytest.approx(0.3 / np.sqrt(2))
  assert exchange.objective(study, "ocr")(trial.scores) == (trial.scores["ocr"]["score"], 0.3)


def test_an_axis_goes_out_by_its_coordinates_and_all_runs_by_their_cells(tmp_path):
  study = Study(tmp_path / "study", {})
  points = candidates(TASKS, 4, 0)
  for point in points:
    add(study, point, TASKS)
  product = Space.product(("maps", "charts"), ("caption", "ocr", "vqa"))
  add(study, candidates(product, 3, 0)[2], product)
  exchange.export_olmix(study, tmp_path / "tasks", axis="task")
  table = tables.read(tmp_path / "tasks")
  assert table.domains == TASKS.names and len(table) == 4
  imported = exchange.import_table(table, tmp_path / "imported", TASKS)
  value = exchange.objective(study)
  seen, again = (observe(s.trials(), TASKS, value) for s in (study, imported))
  np.testing.assert_array_equal(again.mixtures, seen.mixtures)
  assert imported.get(1).mixture == pytest.approx(study.get(1).mixture, abs=1e-15)
  exchange.export_olmix(study, tmp_path / "cells")
  table = tables.read(tmp_path / "cells")
  assert table.domains == TASKS.cell_names and len(table) == 5
  with pytest.raises(ValueError, match=r"trial 4: .* 'product' sum to .* export the cells"):
    exchange.export_olmix(study, tmp_path / "none", axis="product")
  with pytest.raises(ValueError, match="no finished trial on the axis 'concept'"):
    exchange.export_olmix(study, tmp_path / "none", axis="concept")
  with pytest.raises(ValueError, match=r"\['caption', .*'charts/caption'"):
    exchange.import_table(table, tmp_path / "other", TASKS)


def test_fidelities_splits_and_replicates_stay_apart(tmp_path):
  folder = tmp_path / "regmix"
  folder.mkdir()
  for split in ("train", "test"):
    for size, loss in (("1m", 3.0), ("60m", 2.0)):
      rows = "index,a,b\n1,0.5,0.5\n2,0.5,0.5\n"
      (folder / f"{split}_mixture_{size}.csv").write_text(rows)
      (folder / f"{split}_loss_{size}.csv").write_text(f"index,y\n1,{loss}\n2,{loss + 1}\n")
  table = tables.read(folder)
  study = exchange.import_table(table, tmp_path / "study")
  trials = study.trials()
  assert len(trials) == 8 and all(trial.state == DONE for trial in trials)
  assert trials[0].purpose == "imported:train:1" and trials[-1].purpose == "imported:test:2"
  assert [trial.fidelity for trial in trials[:4]] == [1e6, 1e6, 60e6, 60e6]
  exchange.export_olmix(study, tmp_path / "again")
  again = tables.read(tmp_path / "again")
  np.testing.assert_array_equal(again.fidelity, table.fidelity)
  np.testing.assert_array_equal(again.metrics["y"], table.metrics["y"])
  assert again.runs == tuple(f"{i:05d}" for i in range(8))  # "train:1" names two runs


def test_what_cannot_be_a_table_is_said(study, tmp_path):
  (study.path / "trials/00003/scores.json").write_text("{")
  left_out = exchange.export_olmix(study, tmp_path / "table")
  assert "00003/scores.json is torn" in left_out[3] and len(left_out) == 5
  (study.path / "trials/00014/mixture.json").write_text("")
  assert "00014/mixture.json" in exchange.export_olmix(study, tmp_path / "table")[14]
  add(study, SPACE.pool[40], scores={"index": {"score": 1.0}})
  with pytest.raises(ValueError, match=r"\['index'\] cannot be columns of metrics.csv"):
    exchange.export_olmix(study, tmp_path / "table")
  with pytest.raises(ValueError, match="no finished trial to export"):
    exchange.export_olmix(Study(tmp_path / "empty", {}), tmp_path / "table")


def test_optuna_shows_every_trial(study, tmp_path):
  optuna = pytest.importorskip("optuna")
  url = f"sqlite:///{tmp_path}/optuna.db"
  study.mark(14, FAILED, "host lost")
  study.report(13, 100, study.get(0).scores)
  exchange.export_optuna(study, url, "mix", exchange.objective(study))
  shown = optuna.load_study(study_name="mix", storage=url)
  state = optuna.trial.TrialState
  assert shown.direction == optuna.study.StudyDirection.MAXIMIZE
  assert [t.state for t in shown.trials] == [
    *[state.COMPLETE] * 12, state.WAITING, state.RUNNING, state.FAIL, state.PRUNED
  ]  # fmt: skip
  for trial, copy in zip(study.trials(), shown.trials, strict=True):
    assert copy.params == trial.mixture and copy.user_attrs["trial"] == trial.id
    assert copy.user_attrs["state"] == trial.state and copy.user_attrs["seed"] == 0
    if trial.state == DONE:
      assert copy.value == exchange.objective(study)(trial.scores)[0]
      assert copy.user_attrs["ocr score"] == trial.scores["ocr"]["score"]
  assert shown.trials[14].user_attrs["detail"] == "host lost"
  assert shown.trials[13].intermediate_values == {100: shown.trials[0].value}
  assert shown.best_trial.value == max(t.value for t in shown.trials[:12])
  assert json.loads(json.dumps(shown.user_attrs))["mixjax"]["config"] == study.config
  with pytest.raises(ValueError, match=r"study 'mix': choose another name.*delete_study"):
    exchange.export_optuna(study, url, "mix", exchange.objective(study))


def test_optuna_takes_one_axis_by_its_coordinates(tmp_path):
  optuna = pytest.importorskip("optuna")
  study = Study(tmp_path / "study", {"minimize": True})
  points = candidates(TASKS, 3, 0)
  for point in points:
    add(study, point, TASKS, fidelity=64.0, scores=scores_of(point, 0.1))
  add(study, SPACE.pool[0])
  storage = optuna.storages.InMemoryStorage()
  shown = exchange.export_optuna(study, storage, "t", exchange.objective(study, "ocr"), axis="task")
  assert [t.params for t in shown.trials] == [TASKS.as_dict(point) for point in points]
  assert [t.value for t in shown.trials] == [-scores_of(p)["ocr"]["score"] for p in points]
  assert shown.trials[0].user_attrs["stderr"] == 0.1
  assert shown.trials[0].user_attrs["fidelity"] == 64.0


def test_without_optuna_it_is_said_how_to_get_it(study, monkeypatch):
  monkeypatch.setitem(sys.modules, "optuna", None)
  with pytest.raises(ImportError, match="pip install optuna=="):
    exchange.export_optuna(study, "sqlite://", "mix", exchange.objective(study))
