"""Kills, torn files and bad disks: what they leave reads, and counts as not done."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from etils import epath
from some_trials import CONFIG, SCORES, make_trial

from mixjax.search.study import Study
from mixjax.search.trial import DONE, FAILED, QUEUED


@pytest.fixture
def study(tmp_path):
  return Study(tmp_path / "study", CONFIG)


def test_a_study_file_without_config_and_an_unknown_state_are_named(study):
  study.attach(make_trial())
  status = study.path / "trials/00000/status.json"
  status.write_text('{"state": "paused", "attempt": 1}')
  assert study.get(0).state == QUEUED and "'paused'" in study.torn()["00000/status.json"]
  (study.path / "study.json").write_text('{"format": 1}')
  with pytest.raises(ValueError, match="has no fingerprint and no config"):
    Study(study.path)


def test_a_kill_amid_retries_loses_no_attempt(study, monkeypatch):
  for row in range(3):
    study.mark(study.attach(make_trial(row=row)).id, FAILED)
  path_type = type(epath.Path(study.path))
  original, left = path_type.replace, [1]

  def dies(self, *args):
    if left[0] == 0:
      raise KeyboardInterrupt
    left[0] -= 1
    return original(self, *args)

  with monkeypatch.context() as patch:
    patch.setattr(path_type, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
      study.retry(2)
  assert [t.state for t in study.trials()] == [QUEUED, FAILED, FAILED] and study.torn() == {}
  assert [t.id for t in study.retry(2)] == [1, 2]
  assert [study.attempt(i) for i in range(3)] == [2, 2, 2]


@pytest.mark.parametrize("name", ["mixture.json", "status.json", "scores.json"])
@pytest.mark.parametrize("content", ["", '{"state": "do', "[1]", "\x00\x00"])
def test_a_torn_file_is_named_and_its_trial_is_not_done(study, name, content):
  study.tell(study.attach(make_trial(row=1)), SCORES)
  trial = study.tell(study.attach(make_trial(row=2)), SCORES)
  (study.path / "trials/00001" / name).write_text(content)
  assert list(study.torn()) == [f"00001/{name}"]
  assert study.get(0).state == DONE
  if name == "status.json":  # whole scores are proof enough
    assert study.get(1).state == DONE
    return
  assert all(t.id == 0 for t in study.trials() if t.state == DONE)
  found = study.attach(make_trial(row=2))
  assert found.id == 1 and found.state == QUEUED and found.scores is None
  assert study.tell(found, SCORES) == trial
  assert study.torn() == {}


@pytest.mark.parametrize(
  "tamper",
  [
    lambda d: d.pop("mixture"),
    lambda d: d.update(id=7),
    lambda d: d.update(mixture=[1.0]),
    lambda d: d.update(surprise=1),
    lambda d: d["mixture"].update({"maps/ocr": 2.0}),
  ],
)
def test_a_mixture_file_that_is_no_trial_is_named(study, tamper):
  study.attach(make_trial())
  file = study.path / "trials/00000/mixture.json"
  content = json.loads(file.read_text())
  tamper(content)
  file.write_text(json.dumps(content))
  assert study.trials() == [] and list(study.torn()) == ["00000/mixture.json"]


def test_missing_files_count_as_not_done(study):
  study.tell(study.attach(make_trial()), SCORES)
  (study.path / "trials/00000/scores.json").unlink()
  assert study.get(0).state == QUEUED and list(study.torn()) == ["00000/scores.json"]
  (study.path / "trials/00000/status.json").unlink()
  assert study.get(0).state == QUEUED and study.torn() == {}
  (study.path / "trials/00001").mkdir()
  (study.path / "trials/.DS_Store").write_text("")
  assert list(study.torn()) == ["00001/mixture.json"]
  assert study.attach(make_trial(row=9)).id == 1


def test_scores_of_a_lost_mixture_are_set_aside(study):
  study.tell(study.attach(make_trial(row=1)), SCORES)
  folder = study.path / "trials/00000"
  (folder / "mixture.json").unlink()
  assert study.attach(make_trial(row=2)).state == QUEUED
  (orphan,) = folder.glob("orphan-*-scores.json")
  assert json.loads(orphan.read_text()) == SCORES


def test_no_file_is_ever_half_written(study, monkeypatch):
  """Dies before every single step on the disk in turn; what is there always reads."""
  study.tell(study.attach(make_trial(row=1)), SCORES)
  path_type = type(epath.Path(study.path))
  steps = {"left": 0}

  def guarded(name, original):
    def step(self, *args, **kwargs):
      if steps["left"] == 0:
        if name == "write_text":
          original(self, args[0][: len(args[0]) // 2])  # a torn write
        raise KeyboardInterrupt
      steps["left"] -= 1
      return original(self, *args, **kwargs)

    return step

  for name in ("mkdir", "write_text", "replace"):
    monkeypatch.setattr(path_type, name, guarded(name, getattr(path_type, name)))
  for deaths in range(40):
    steps["left"] = deaths
    try:
      study.tell(study.attach(make_trial(row=2)), SCORES)
    except KeyboardInterrupt:
      assert Study(study.path).get(0).scores == SCORES
      assert set(study.torn()) <= {"00001/mixture.json"}
      assert [t.id for t in study.trials() if t.state == DONE] in ([0], [0, 1])
    else:
      break
  assert deaths > 3 and [t.state for t in study.trials()] == [DONE, DONE]


def test_a_killed_process_leaves_a_readable_study(study):
  program = """
import sys
from mixjax.search.study import Study
from mixjax.search.trial import Trial
study = Study(sys.argv[1])
for seed in range(100000):
  trial = study.attach(Trial(seed, "seed", "task", {"a/b": 1.0}, {"b": 1.0}, seed))
  study.tell(trial, {"ocr": {"score": seed / 7, "text": "x" * 20000}})
"""
  worker = subprocess.Popen(
    [sys.executable, "-c", program, str(study.path)], env=os.environ | {"JAX_PLATFORMS": "cpu"}
  )
  deadline = time.time() + 300  # on a busy machine the imports alone may take minutes
  while not (study.path / "trials/00009/scores.json").exists() and time.time() < deadline:
    time.sleep(0.01)
  worker.send_signal(signal.SIGKILL)
  worker.wait()
  trials = study.trials()
  assert len(trials) >= 10 and [t.id for t in trials] == list(range(len(trials)))
  assert all(t.state == DONE and t.scores["ocr"]["score"] == t.id / 7 for t in trials[:-1])
  assert set(study.torn()) <= {f"{len(trials):05d}/mixture.json"}
