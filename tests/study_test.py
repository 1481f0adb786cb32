import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from etils import epath

from mixjax.search import study as study_lib
from mixjax.search.objective import Objective, ScoreVectors, all_fidelities
from mixjax.search.observations import Observations
from mixjax.search.policies.mixatlas import MixAtlas
from mixjax.search.space import Space, candidates
from mixjax.search.study import Study, observe
from mixjax.search.trial import DONE, FAILED, INFEASIBLE, QUEUED, RUNNING, STOPPED, Trial

SPACE = Space.task_axis(("maps", "charts"), ("caption", "ocr", "vqa"))
SPACE = SPACE.with_pool(candidates(SPACE, 50, 0))
CONFIG = {"proxy": {"steps": 100, "lr": 0.1}, "tasks": ("caption", "ocr")}
SCORES = {"ocr": {"score": 0.5, "stderr": 0.01, "n": 60}, "vqa": {"score": -1.25, "n": 3}}


def make_trial(row=3, **changes):
  point = SPACE.pool[row]
  command = "python -m mixjax.main --config=configs/train.py"
  trial = Trial(None, "seed", "task", SPACE.cells(point), SPACE.as_dict(point), 1, 100.0, command)
  return dataclasses.replace(trial, **changes)


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


def test_asking_a_study_is_asking_the_policy_of_what_is_in_the_folder(study):
  policy = MixAtlas(SPACE, seeds=4)
  objective = Objective({"ocr": 3.0, "vqa": 1.0})
  first = study.ask(policy, SPACE, objective, 6, 1, purpose="seed", fidelity=64.0)
  wanted = policy.ask(Observations.none(SPACE), 6, 1)
  np.testing.assert_allclose([SPACE.from_dict(t.point) for t in first], wanted, rtol=1e-15)
  assert {t.state for t in first} == {QUEUED} and {t.fidelity for t in first} == {64.0}
  for place, trial in enumerate(first[:5]):
    study.tell(trial, {"vqa": {"score": place**2}, "ocr": {"score": -place}})
  study.mark(first[5].id, FAILED)
  runs = ScoreVectors.of(study.trials(), SPACE).observations(objective)
  assert runs.parts.shape == (5, 2) and len(runs.pending) == 1
  then = study.ask(policy, SPACE, objective, 2, 1)
  np.testing.assert_allclose(
    [SPACE.from_dict(t.point) for t in then], policy.ask(runs, 2, 1), rtol=1e-15
  )
  assert [t.id for t in then] == [6, 7]


def test_cheaper_trials_follow_those_of_the_highest_fidelity(study):
  entry = {"score": 0.5, "stderr": 0.1}
  told = {"ocr": entry, "vqa": entry}
  more, fewer, bare = told | {"new": entry}, {"vqa": entry}, told | {"vqa": {"score": 0.5}}
  cheap = [(5, 10.0, more), (6, 10.0, fewer), (7, 20.0, bare)]
  for row, fidelity, scores in [(1, 100.0, told), *cheap, (2, 100.0, told)]:
    study.tell(study.attach(make_trial(row=row, fidelity=fidelity)), scores)
  study.mark(study.attach(make_trial(row=3)).id, INFEASIBLE, "diverged")
  study.attach(make_trial(row=4))
  seen = all_fidelities(study.trials(), SPACE, Objective())
  # Not those that lack a benchmark, or the standard errors that the others state.
  np.testing.assert_allclose(seen.mixtures, SPACE.pool[[1, 2, 5]], atol=1e-12)
  assert seen.fidelity.tolist() == [100.0, 100.0, 10.0] and seen.scores.tolist() == [0.5] * 3
  assert seen.parts.shape == (3, 2) and seen.stderr is not None
  np.testing.assert_allclose(seen.pending, SPACE.pool[[4]], atol=1e-12)
  np.testing.assert_allclose(seen.infeasible, SPACE.pool[[3]], atol=1e-12)
  highest = [trial for trial in study.trials() if trial.fidelity == 100.0]
  assert all_fidelities(highest, SPACE, Objective()).fidelity is None


def test_one_cheap_run_among_others_of_unknown_fidelity_is_refused(study):
  study.tell(study.attach(make_trial(row=1)), SCORES)
  study.tell(study.attach(make_trial(row=2, fidelity=None)), SCORES)
  for look in (ScoreVectors.of, lambda *seen: observe(*seen, Objective())):
    with pytest.raises(ValueError, match="trial 1 states no fidelity, but trial 0 has 100"):
      look(study.trials(), SPACE)


def test_a_study_file_without_config_and_an_unknown_state_are_named(study):
  study.attach(make_trial())
  status = study.path / "trials/00000/status.json"
  status.write_text('{"state": "paused", "attempt": 1}')
  assert study.get(0).state == QUEUED and "'paused'" in study.torn()["00000/status.json"]
  (study.path / "study.json").write_text('{"format": 1}')
  with pytest.raises(ValueError, match="has no fingerprint and no config"):
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
  deadline = time.time() + 60
  while not (study.path / "trials/00009/scores.json").exists() and time.time() < deadline:
    time.sleep(0.01)
  worker.send_signal(signal.SIGKILL)
  worker.wait()
  trials = study.trials()
  assert len(trials) >= 10 and [t.id for t in trials] == list(range(len(trials)))
  assert all(t.state == DONE and t.scores["ocr"]["score"] == t.id / 7 for t in trials[:-1])
  assert set(study.torn()) <= {f"{len(trials):05d}/mixture.json"}


def test_an_interrupted_search_proposes_the_same_trials_and_finds_them_done(tmp_path):
  policy = MixAtlas(SPACE, seeds=4)

  def search(study, runs_before_death):
    for start in range(0, 12, 2):
      before = [trial for trial in study.trials() if trial.id < start]
      runs = observe(before, SPACE, lambda s: (s["ocr"]["score"], s["ocr"]["stderr"]))
      points = policy.ask(runs, 2, 0)
      for number, point in enumerate(points, start):
        cells, weights = SPACE.cells(point), SPACE.as_dict(point)
        trial = study.attach(Trial(number, "mixatlas", "task", cells, weights, seed=0))
        if trial.state != DONE:
          if runs_before_death == 0:
            return
          runs_before_death -= 1
          study.tell(trial, {"ocr": {"score": point[1] - point[0] ** 2, "stderr": 0.01}})

  whole, broken = Study(tmp_path / "whole", {}), Study(tmp_path / "broken", {})
  search(whole, 99)
  for deaths in (3, 0, 4, 1, 99):
    search(Study(broken.path, {}), deaths)
  assert broken.trials() == whole.trials() and len(whole.trials()) == 12


def test_observations_hold_what_is_done_pending_and_infeasible(study):
  study.tell(study.attach(make_trial(row=1)), SCORES)
  study.mark(study.attach(make_trial(row=2)).id, INFEASIBLE, "diverged")
  study.attach(make_trial(row=3))
  study.tell(study.attach(make_trial(row=4, fidelity=50.0)), SCORES)
  study.attach(make_trial(row=5, axis="concept"))
  runs = observe(study.trials(), SPACE, lambda s: (s["ocr"]["score"], s["ocr"]["stderr"]))
  np.testing.assert_allclose(runs.mixtures, SPACE.pool[[1, 4]], atol=1e-12)
  np.testing.assert_allclose(runs.pending, SPACE.pool[[3]], atol=1e-12)
  np.testing.assert_allclose(runs.infeasible, SPACE.pool[[2]], atol=1e-12)
  assert runs.scores.tolist() == [0.5, 0.5] and runs.stderr.tolist() == [0.01, 0.01]
  assert runs.fidelity.tolist() == [100.0, 50.0]
  assert observe(study.trials(), SPACE, lambda s: (s["vqa"]["score"], None)).stderr is None
  assert len(observe([], SPACE, lambda s: (0.0, None))) == 0
