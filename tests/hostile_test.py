"""Runs that no search would wish for, at the door of the library: a sane answer or a clear error.

NaN, infinite and enormous scores are refused by `Observations` (`surrogate_test.py`,
`observations_test.py`) and by studies (`study_test.py`), torn trials are left out by studies
(`study_ask_test.py`, `study_kills_test.py`).
"""

import numpy as np
import pytest

from mixjax.search.observations import Observations, matches
from mixjax.search.policies.best_of_random import BestOfRandom
from mixjax.search.policies.mixatlas import MixAtlas
from mixjax.search.policies.regmix import RegMix
from mixjax.search.space import Space, candidates

SPACE = Space.simplex("domain", "abcd")
SPACE = SPACE.with_pool(candidates(SPACE, 60, 0))
POOL = SPACE.pool
RISING = POOL @ [1.0, 0.5, 0.0, -1.0] - POOL[:, 0] ** 2

POLICIES = {
  "mixatlas": MixAtlas(SPACE, seeds=1),
  "log EI": MixAtlas(SPACE, seeds=1, acquisition="log_ei"),
  "thompson": MixAtlas(SPACE, seeds=1, acquisition="thompson"),
  "regmix": RegMix(SPACE),
  "random": BestOfRandom(SPACE),
}

HOSTILE = {
  "one run": Observations(POOL[:1], [0.3]),
  "one run at zero": Observations(POOL[:1], [0.0]),
  "constant": Observations(POOL[:12], np.full(12, -4.0)),
  "one mixture": Observations(POOL[[5] * 9], RISING[:9]),
  "copies": Observations(POOL[[0, 1, 2, 3] * 3], RISING[[0, 1, 2, 3] * 3]),
  "decimals": Observations(POOL[[0, 0, 1, 2]] + 1e-9 * np.eye(4), RISING[[0, 0, 1, 2]]),
  "corners": Observations(np.eye(4)[[0, 1, 2, 3, 0]], RISING[:5]),
  "one outlier": Observations(POOL[:12], [0.0] * 11 + [-1e9]),
  "all else pending": Observations(POOL[:12], RISING[:12], pending=POOL[12:57]),
  "all else infeasible": Observations(POOL[:12], RISING[:12], infeasible=POOL[12:57]),
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_runs_get_sane_answers(name, policy):
  runs, policy = HOSTILE[name], POLICIES[policy]
  asked = policy.ask(runs, 3, 0)
  np.testing.assert_array_equal(asked, policy.ask(runs, 3, 0))
  assert matches(asked, POOL).all() and not matches(asked, runs.known()).any()
  assert len(np.unique(asked, axis=0)) == 3
  advice = policy.recommend(runs)
  np.testing.assert_allclose(SPACE.check(advice.mixture[None])[0], advice.mixture, atol=1e-9)
  believed = [value for value in (advice.mean, advice.sd, advice.observed) if value is not None]
  assert believed and np.isfinite(believed).all()


@pytest.mark.parametrize("name", ["mixatlas", "log EI", "regmix", "random"])
def test_a_millionfold_scale_of_the_scores_changes_no_answer(name):
  policy = POLICIES[name]
  plain = Observations(POOL[:12], RISING[:12])
  asked, advice = policy.ask(plain, 2, 0), policy.recommend(plain)
  for scale in (1e-6, 1e6):
    scaled = Observations(POOL[:12], scale * RISING[:12])
    np.testing.assert_array_equal(policy.ask(scaled, 2, 0), asked)
    ours = policy.recommend(scaled)
    np.testing.assert_array_equal(ours.mixture, advice.mixture)
    assert ours.mean == pytest.approx(scale * advice.mean, rel=1e-4)


@pytest.mark.parametrize("name", POLICIES)
def test_where_all_is_pending_it_is_said(name):
  policy = POLICIES[name]
  waiting = Observations(POOL[:0], [], pending=POOL[:-2])
  rest = policy.ask(waiting, 2, 0)
  assert matches(rest, POOL[-2:]).all() and np.abs(rest[0] - rest[1]).max() > 1e-6
  for runs in (waiting, Observations(POOL[:12], RISING[:12], pending=POOL[12:-2])):
    with pytest.raises(ValueError, match="only 2 not yet run"):
      policy.ask(runs, 3, 0)
  with pytest.raises(ValueError, match="finished run"):
    policy.recommend(waiting)
