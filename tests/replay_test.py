"""Policies searching recorded runs."""

import dataclasses
import json

import numpy as np
import pytest
from recorded import DOMAINS, make, same

from mixjax.search import replay
from mixjax.search.policies.uniform import Uniform


@pytest.mark.parametrize("policy", replay.POLICIES)
def test_every_policy_searches_a_table(policy):
  objective = make(40)
  row = replay.search_row(objective, policy, 0, 12)
  assert row["evaluations"] == len(row["regret"]) == 12
  assert row["regret"] == sorted(row["regret"], reverse=True) and row["regret"][-1] >= 0
  assert sum(row["recommended"]["mixture"].values()) == pytest.approx(1)
  best = objective.values.max()
  near = objective.runs.index(row["recommended"]["run"])
  assert row["recommended"]["regret"] == pytest.approx(best - objective.values[near], abs=1e-12)
  json.dumps(row, allow_nan=False)
  assert same([row], [replay.search_row(objective, policy, 0, 12)])
  other = replay.search_row(objective, policy, 1, 12)
  assert other["regret"] != row["regret"]


def test_regret_counts_from_the_first_evaluation_to_the_one_that_found_the_best():
  objective = make(20)
  row = replay.search_row(objective, "random", 3, 100)
  assert row["evaluations"] == 20  # the pool has no more
  at = row["found_at"]
  assert row["regret"][at - 1] == 0 and (at == 1 or row["regret"][at - 2] > 0)
  short = replay.search_row(objective, "random", 3, at - 1)
  assert short["found_at"] is None and short["regret"] == row["regret"][: at - 1]


def test_losses_are_minimised_and_stated_in_their_own_units():
  up, down = (replay.search_row(make(40, minimize), "mixatlas", 0, 14) for minimize in (0, 1))
  assert down["regret"] == up["regret"] and down["recommended"] == up["recommended"]
  assert down["mean"] == pytest.approx(-up["mean"]) and down["sd"] == pytest.approx(up["sd"])
  assert down["mean"] < 0


def test_a_search_learns_and_beats_chance():
  objective = make(200)
  last = {
    policy: [replay.search_row(objective, policy, seed, 20)["regret"][-1] for seed in range(2)]
    for policy in ("mixatlas", "random")
  }
  assert np.mean(last["mixatlas"]) < 0.3 * np.mean(last["random"])


def test_the_pool_holds_a_replicated_mixture_once_and_its_truth_is_the_mean():
  objective = make(15, replicates=3, noise=0.3)
  assert len(objective.replicates) == 15
  truth = objective.values.reshape(15, 3).mean(axis=1)
  row = replay.search_row(objective, "random", 0, 45)
  assert row["evaluations"] == 15 and row["found_at"] is not None
  near = objective.runs.index(row["recommended"]["run"])
  assert near % 3 == 0  # the first of its replicates
  assert row["recommended"]["regret"] == pytest.approx(truth.max() - truth[near // 3])
  # What was told is one draw of the three, another one for another seed.
  means = {replay.search_row(objective, "random", seed, 15)["mean"] for seed in range(12)}
  assert len(means) > 1 and means <= set(objective.values)


def test_a_recommendation_off_the_pool_is_judged_by_its_nearest_run():
  objective = make(40)
  row = replay.search_row(objective, "regmix-top", 0, 12)["recommended"]
  mixture = np.array([row["mixture"][name] for name in DOMAINS])
  away = np.abs(objective.mixtures - mixture).sum(axis=1) / 2
  assert row["run"] == objective.runs[np.argmin(away)]
  assert row["distance"] == pytest.approx(away.min()) and row["distance"] > 0
  assert replay.search_row(objective, "random", 0, 12)["recommended"]["distance"] == 0


def test_only_the_train_split_is_searched():
  objective = make(40, test=np.arange(40) >= 10)
  row = replay.search_row(objective, "random", 0, 40)
  assert row["evaluations"] == 10 and row["regret"][-1] == 0
  assert row["recommended"]["run"] == objective.runs[np.argmax(objective.values[:10])]


def test_asking_off_the_table_is_an_error(monkeypatch):
  monkeypatch.setitem(replay.POLICIES, "uniform", lambda space, budget: Uniform(space))
  with pytest.raises(ValueError, match="uniform asked for a mixture that has no run"):
    replay.search_row(make(), "uniform", 0, 4)


def test_targets_are_averaged():
  two = [make(30), dataclasses.replace(make(20, seed=1), name="z")]
  rows, single = replay.search_rows(two, ["random"], 2, 25)
  assert [(row["target"], row["seed"]) for row in single] == [
    ("y", 0),
    ("z", 0),
    ("y", 1),
    ("z", 1),
  ]
  long, short = single[0], single[1]
  assert len(short["regret"]) == 20 and len(long["regret"]) == 25
  padded = short["regret"] + [short["regret"][-1]] * 5
  np.testing.assert_allclose(rows[0]["regret"], np.mean([long["regret"], padded], axis=0))
  assert rows[0]["targets"] == 2 and rows[0]["found"] == sum(
    bool(r["found_at"]) for r in single[:2]
  )
  assert (rows[0]["found_at"] is None) == (rows[0]["found"] < 2)
  (summary,) = replay.search_summary(single)
  assert summary["searches"] == 4
  assert summary["regret"] == pytest.approx(np.mean([row["regret"][-1] for row in single]))
  assert (summary["found_at_worst"] is None) == (summary["found"] < 4)
