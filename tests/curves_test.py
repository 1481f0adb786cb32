"""Curves as a study holds them, and broken ones."""

import numpy as np
import pytest
from known_curves import NAMES, SPACE, STEPS, scores, some, split

from mixjax.search.curves import Curves
from mixjax.search.space import Space
from mixjax.search.study import Study
from mixjax.search.trial import Trial

pytestmark = pytest.mark.xdist_group("known_curves")


def test_a_study_holds_curves(tmp_path):
  study, table = Study(tmp_path, {}), scores(0)
  rows, finished, _ = split(0)
  for row, whole in zip(rows, finished, strict=True):
    point = SPACE.as_dict(SPACE.pool[row])
    trial = study.attach(Trial(None, "seed", "domain", point, point, seed=0))
    for step, values in list(zip(STEPS, table[row], strict=True))[: 1 + whole]:
      told = {name: {"score": value} for name, value in zip(NAMES, values, strict=True)}
      study.report(trial, step, told)
  study.attach(Trial(None, "other", "task", {"a": 1.0}, {"a": 1.0}, seed=0))
  found, wanted = Curves.of_trials(study.trials(), SPACE), some(table, rows, finished)
  assert found.names == wanted.names
  np.testing.assert_array_equal(found.steps, wanted.steps)
  np.testing.assert_array_equal(found.scores, wanted.scores)
  np.testing.assert_allclose(found.mixtures, wanted.mixtures, rtol=1e-15)
  with pytest.raises(ValueError, match="no trial on the task axis reported"):
    Curves.of_trials(study.trials(), Space.simplex("task", ["a"]))
  study.report(3, STEPS[0], {"near": {"score": 0.0}})
  with pytest.raises(ValueError, match=r"trial 3 reports \['near'\] at step 100, others"):
    Curves.of_trials(study.trials(), SPACE)


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(steps=(1000, 100, 2000)), "rise"),
    (dict(steps=(100,)), "shape"),
    (dict(names=("a", "b")), "shape"),
    (dict(at=(2, 1), value=np.nan), "run 2 has no score on 'one' at step 200"),
    (dict(at=(1, 0), value=np.inf), "run 1 scores inf"),
    (dict(at=(1, 0), value=-1e200), "run 1 scores -1e\\+200"),
  ],
)
def test_broken_curves_are_named(change, message):
  table = np.ones((4, 3, 1))
  if "at" in change:
    table[change["at"]] = change["value"]
  names, steps = change.get("names", ("one",)), change.get("steps", (100, 200, 300))
  with pytest.raises(ValueError, match=message):
    Curves(names, steps, np.full((4, 4), 0.25), table)
