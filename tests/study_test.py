"""The folder of trials: what is written down, found again, and refused."""

import dataclasses
import json

import numpy as np
import pytest
from some_trials import CONFIG, SCORES, SPACE, make_trial

from mixjax.search import study as study_lib
from mixjax.search.study import Study, observe
from mixjax.search.trial import DONE, FAILED, INFEASIBLE, QUEUED, RUNNING, STOPPED


@pytest.fixture
def study(tmp_path):
  return Study(tmp_path / "study", CONFIG)


def test_a_trial_goes_through_its_states_and_reads_back(study):
  trial = study.attach(make_trial())
  assert trial == make_trial(id=0) and trial.state == QUEUED
  study.mark(0, RUNNING, "worker 3")
  assert study.get(0).state == RUNNING and study.get(0).detail == "worker 3"
  study.mark(0, FAILED, "out of memory")
  done = study.tell(trial, SCORES)
  assert done == dataclasses.replace(trial, state=DONE, scores=SCORES)
  assert Study(study.path).trials() == [done]
  study.mark(0, RUNNING)  # a straggler's word does not undo a result
  assert study.get(0) == done


def test_it_is_a_folder_that_anyone_can_read(study):
  study.attach(make_trial(row=5))
  study.tell(study.attach(make_trial(row=7)), SCORES)
  folder = study.path / "trials" / "00001"
  assert sorted(p.name for p in folder.iterdir()) == ["mixture.json", "scores.json", "status.json"]
  asked = json.loads((folder / "mixture.json").read_text())
  assert asked["mixture"] == SPACE.cells(SPACE.pool[7]) and asked["command"].startswith("python -m")
  assert json.loads((folder / "status.json").read_text())["state"] == "done"
  assert json.loads((folder / "scores.json").read_text()) == SCORES
  assert json.loads((study.path / "study.json").read_text())["format"] == study_lib.FORMAT


def test_the_same_trial_is_found_not_added(study):
  first = study.attach(make_trial())
  study.tell(first, SCORES)
  again = study.attach(make_trial(command="python elsewhere.py"))
  assert again.id == first.id and again.state == DONE and again.scores == SCORES
  assert study.attach(make_trial(id=0)).state == DONE
  others = [
    make_trial(row=4),
    make_trial(seed=2),
    make_trial(purpose="replicate"),
    make_trial(fidelity=200.0),
    make_trial(axis="product"),
  ]
  assert [study.attach(other).id for other in others] == [1, 2, 3, 4, 5]
  with pytest.raises(ValueError, match="trial 0 is another one already: seed differ"):
    study.attach(make_trial(id=0, seed=9))
  assert study.attach(make_trial(id=70, seed=70)).id == 70
  assert study.attach(make_trial(seed=80)).id == 6


def test_the_same_scores_twice_change_nothing_and_others_are_refused(study):
  trial = study.attach(make_trial())
  study.tell(trial, SCORES)
  before = (study.path / "trials/00000/scores.json").stat()
  assert study.tell(trial.id, SCORES).scores == SCORES
  assert (study.path / "trials/00000/scores.json").stat() == before
  with pytest.raises(ValueError, match="other scores"):
    study.tell(trial, {"ocr": {"score": 0.6}})


@pytest.mark.parametrize(
  "scores",
  [
    {},
    {"ocr": {}},
    {"ocr": {"score": np.nan}},
    {"ocr": {"score": None}},
    {"ocr": 0.5},
    {"ocr": {"score": 0.5, "stderr": np.inf}},
    {"ocr": {"score": "0.5"}},
  ],
)
def test_scores_that_are_no_numbers_are_refused(study, scores):
  trial = study.attach(make_trial())
  with pytest.raises(ValueError, match=r"trial 0: .*infeasible"):
    study.tell(trial, scores)
  assert study.get(0).state == QUEUED


def test_numpy_numbers_are_written(study):
  scores = {"ocr": {"score": np.float32(0.5), "n": np.int64(3), "each": np.arange(2)}}
  assert study.tell(study.attach(make_trial()), scores).scores == {
    "ocr": {"score": 0.5, "n": 3, "each": [0, 1]}
  }


def test_mixtures_and_states_are_checked(study):
  with pytest.raises(ValueError, match="sums to"):
    study.attach(make_trial(mixture={"maps/ocr": 0.4}))
  with pytest.raises(ValueError, match="not finite"):
    study.attach(make_trial(mixture={"maps/ocr": float("nan"), "maps/vqa": 1.0}))
  study.attach(make_trial())
  for state in ("finished", DONE):
    with pytest.raises(ValueError, match=state):
      study.mark(0, state)
  with pytest.raises(KeyError, match="no trial 5"):
    study.tell(5, SCORES)


def test_another_config_is_refused_with_the_difference(study):
  Study(study.path, {"tasks": ["caption", "ocr"], "proxy": {"lr": 0.1, "steps": 100}})
  changed = {"proxy": {"steps": 200, "lr": 0.1, "depth": 2}}
  with pytest.raises(ValueError) as error:
    Study(study.path, changed)
  assert "proxy.steps: 100 -> 200" in str(error.value)
  assert "proxy.depth: (absent) -> 2" in str(error.value)
  assert "tasks: ['caption', 'ocr'] -> (absent)" in str(error.value)
  assert "lr" not in str(error.value)


def test_a_mistyped_path_starts_nothing_and_a_newer_format_is_not_guessed_at(tmp_path, study):
  with pytest.raises(FileNotFoundError, match="no study at"):
    Study(tmp_path / "sutdy")
  assert not (tmp_path / "sutdy").exists()
  about = study.path / "study.json"
  about.write_text(about.read_text().replace('"format": 1', '"format": 2'))
  with pytest.raises(ValueError, match="format 2"):
    Study(study.path)
  about.write_text("{")
  with pytest.raises(ValueError, match=r"study.json is torn"):
    Study(study.path)


def test_scores_on_the_way_are_kept_and_a_stopped_run_is_not_proposed_again(study):
  study.attach(make_trial(row=1))
  later = {name: {"score": np.float64(0.25)} for name in SCORES}
  study.report(0, 200, later)
  study.report(0, 100, later)
  trial = study.report(0, 100, SCORES)  # again, as after a kill
  assert trial.curve == ((100.0, SCORES), (200.0, {name: {"score": 0.25} for name in SCORES}))
  assert trial.state == QUEUED and trial.scores is None
  study.mark(0, STOPPED, "hopeless")
  assert study.attach(make_trial(row=1)) == study.get(0) and study.retry(9) == []
  seen = observe(study.trials(), SPACE, lambda scores: (scores["ocr"]["score"], None))
  assert len(seen) == 0 and len(seen.pending) == 1
  with pytest.raises(ValueError, match="trial 0 reports at step -1"):
    study.report(0, -1, SCORES)
  with pytest.raises(ValueError, match="trial 0: 'ocr' has no finite score"):
    study.report(0, 300, {"ocr": {"score": np.nan}})
  done = study.tell(0, SCORES)
  assert done.curve == trial.curve
  (study.path / "trials/00000/curve.json").write_text('{"points": [{"step": 1')
  assert study.get(0) == dataclasses.replace(done, curve=())
  assert list(study.torn()) == ["00000/curve.json"]
  (study.path / "trials/00000/curve.json").write_text('{"points": [{"step": 1}]}')
  assert study.get(0).curve == () and "no curve" in study.torn()["00000/curve.json"]


def test_what_failed_is_tried_again_until_the_attempts_are_spent(study):
  for row in range(5):
    study.attach(make_trial(row=row))
  study.mark(0, FAILED, "host lost")
  study.mark(1, INFEASIBLE, "diverged")
  study.mark(2, RUNNING)
  study.tell(3, SCORES)
  others = [study.get(i) for i in (1, 2, 3, 4)]
  (again,) = study.retry(3)
  assert (again.id, again.state, again.detail) == (0, QUEUED, "host lost")
  assert study.attempt(0) == 2 and study.retry(3) == []  # it has not failed since
  study.mark(0, RUNNING)
  study.mark(0, FAILED, "out of memory")
  assert study.retry(2) == [] and study.get(0).state == FAILED
  assert [t.id for t in Study(study.path).retry(3)] == [0] and study.attempt(0) == 3
  study.mark(0, FAILED)
  assert study.retry(3) == []
  assert [study.get(i) for i in (1, 2, 3, 4)] == others
  assert study.tell(0, SCORES).state == DONE and study.attempt(0) == 3
  assert study.retry(99) == []
  with pytest.raises(ValueError, match="at least 1, not 0"):
    study.retry(0)
