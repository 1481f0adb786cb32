"""What a policy sees of a study, and what it asks of it."""

import numpy as np
import pytest
from etils import epath
from some_trials import CONFIG, SCORES, SPACE, make_trial

from mixjax.search.objective import Objective, ScoreVectors, all_fidelities
from mixjax.search.observations import Observations
from mixjax.search.policies.mixatlas import MixAtlas
from mixjax.search.study import Study, observe
from mixjax.search.trial import DONE, FAILED, INFEASIBLE, QUEUED, Trial


@pytest.fixture
def study(tmp_path):
  return Study(tmp_path / "study", CONFIG)


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


@pytest.mark.parametrize("done", [0, 8])
def test_a_kill_amid_asking_loses_no_trial_and_the_rest_are_those_that_would_have_come(
  tmp_path, monkeypatch, done
):
  """Dies before every step on the disk in turn: with nothing to learn from, and with eight runs."""
  policy, objective = MixAtlas(SPACE, seeds=4), Objective()

  def started(name):
    study = Study(tmp_path / name, {})
    for trial in study.ask(policy, SPACE, objective, done, 1) if done else ():
      study.tell(trial, {"ocr": {"score": trial.point["ocr"] - trial.point["vqa"] ** 2}})
    return study

  wanted = [trial.point for trial in started("whole").ask(policy, SPACE, objective, 3, 1)]
  path_type, left = type(epath.Path(tmp_path)), [10**9]

  def guarded(original):
    def step(self, *args, **kwargs):
      if left[0] == 0:
        raise KeyboardInterrupt
      left[0] -= 1
      return original(self, *args, **kwargs)

    return step

  for name in ("mkdir", "write_text", "replace"):
    monkeypatch.setattr(path_type, name, guarded(getattr(path_type, name)))
  seen = set()
  for deaths in range(0, 40, 1 if done == 0 else 4):
    left[0] = 10**9
    study = started(str(deaths))
    left[0] = deaths
    try:
      study.ask(policy, SPACE, objective, 3, 1)
    except KeyboardInterrupt:
      left[0] = 10**9
    else:
      break
    queued = Study(study.path).trials()[done:]
    assert {trial.state for trial in queued} <= {QUEUED}
    rest = 3 - len(queued)
    queued += study.ask(policy, SPACE, objective, rest, 1) if rest else []
    assert [trial.id for trial in queued] == list(range(done, done + 3)) and not study.torn()
    for trial, point in zip(queued, wanted, strict=True):
      assert trial.point == pytest.approx(point, abs=1e-12)
    seen.add(rest)
  assert len(seen) > 1


def test_a_study_with_torn_trials_is_asked_on(study):
  """A trial that cannot be read may be proposed again; the others are told from."""
  policy, objective = MixAtlas(SPACE, seeds=4), Objective()
  first = study.ask(policy, SPACE, objective, 6, 1)
  for trial in first:
    study.tell(trial, {"ocr": {"score": trial.point["ocr"]}})
  (study.path / "trials/00002/mixture.json").write_text('{"mixture": {"maps/oc')
  (study.path / "trials/00004/scores.json").write_text("")
  trials = study.ask(policy, SPACE, objective, 2, 1)
  assert trials[0].id == 2 and {trial.state for trial in trials} == {QUEUED}
  others = [first[place].point for place in (0, 1, 3, 4, 5)]
  assert not [trial for trial in trials if trial.point in others]
  assert list(study.torn()) == ["00004/scores.json"]
