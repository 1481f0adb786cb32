"""One axis of the search where some proxies diverge: who sees which of them, and as what."""

import numpy as np
import pytest

from configs.search import get_config
from mixjax.jobs.axis import AxisSearch, search_axis
from mixjax.jobs.runner import Diverged, Scored
from mixjax.jobs.search_config import AxisBudget, parse
from mixjax.search import total
from mixjax.search.policies.mixatlas import MixAtlas
from mixjax.search.policies.regmix import RegMix
from mixjax.search.space import Space, candidates

SPACE = Space.simplex("task", ("caption", "ocr", "vqa"))
SPACE = SPACE.with_pool(candidates(SPACE, 80, 0))
UNIFORM = np.array([[1.0, 2.0], [1.1, 1.9]])


class Runner:
  """Two benchmarks that OCR helps; the proxies of these numbers, from 1 on, diverge."""

  weights = None

  def __init__(self, diverged):
    self.diverged, self.ran = diverged, 0

  def run(self, asks):
    results = []
    for ask in asks:
      self.ran += 1
      vector = [1 + ask.point["ocr"] + 0.01 * (self.ran % 3), 2 + ask.point["ocr"] / 2]
      score = Scored(self.ran, sum(vector) / 2, vector)
      results.append(Diverged(self.ran, "nan") if self.ran in self.diverged else score)
    return results


def searched(diverged):
  """4 seeds, 3 runs of MixAtlas and a replicate; then 8 of the random design."""
  config = parse(get_config("tiny").to_dict())
  budget = AxisBudget(seeds=4, runs=8, replicates=1)
  return search_axis(SPACE, None, budget, config, Runner(diverged), UNIFORM, 0)


def test_no_method_sees_what_diverged_of_another(monkeypatch):
  seen, worst = {}, []
  for policy in (MixAtlas, RegMix):

    def recommend(self, runs, kind=policy, original=policy.recommend):
      seen.setdefault(kind, runs)
      return original(self, runs)

    monkeypatch.setattr(policy, "recommend", recommend)
  fit = total.fit
  monkeypatch.setattr(total, "fit", lambda runs, space: worst.append(runs) or fit(runs, space))
  side = searched({2, 6, 11})
  lost = {one["trial"]: list(one["point"].values()) for one in side["diverged"]}
  for policy, own in ((MixAtlas, (2, 6)), (RegMix, (11,))):
    points = [lost[trial] for trial in own]
    np.testing.assert_allclose(seen[policy].infeasible, points, rtol=1e-12)
  # What is said of the search is of runs, and by its own surrogate: one that knows what diverged.
  finished = seen[MixAtlas]
  assert side["leave_one_out"]["observed"] == finished.scores.tolist()
  assert len(side["leave_one_out"]["mean"]) == len(side["leave_one_out"]["sd"]) == len(finished)
  told = worst[-1]
  assert len(told) == len(finished) + len(finished.infeasible)
  assert (told.scores[len(finished) :] == finished.scores.min()).all()


def test_the_trial_named_where_all_diverged_is_the_methods_own():
  search = AxisSearch(SPACE, Runner({1, 3, 4, 5}), UNIFORM)
  search.check_any(search.run(SPACE.pool[:2], "mixatlas"))
  assert search.diverged[0]["trial"] == 1
  with pytest.raises(ValueError, match=r"every proxy of random .* first trial 3: lower"):
    search.check_any(search.run(SPACE.pool[2:5], "random"), random=True)
