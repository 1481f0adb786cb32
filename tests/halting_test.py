"""Correlations along curves with a known truth, and what is stopped by them."""

import dataclasses

import numpy as np
import pytest
from known_curves import (
  NAMES,
  NEAR,
  RHOS,
  SPACE,
  STEPS,
  chains,
  running,
  scores,
  some,
  split,
)

from mixjax.search.chain import fit_curves
from mixjax.search.curves import Curves
from mixjax.search.halting import cheapest, correlation, hopeless
from mixjax.search.objective import Objective
from mixjax.search.slopes import slopes_on

pytestmark = pytest.mark.xdist_group("known_curves")


def normal_curves(rng, rhos, count=30):
  early, other = rng.normal(size=(2, count, len(rhos)))
  final = np.array(rhos) * early + np.sqrt(1 - np.square(rhos)) * other
  return np.stack([early, final], axis=1)


@pytest.mark.parametrize("stopped", [0, 15])
def test_intervals_hold_the_true_correlation(stopped):
  """Also where the worse half of the runs was stopped for its early scores."""
  rng, inside, estimates, naive = np.random.default_rng(0), [], [], []
  for _ in range(200):
    for rho in RHOS:
      table = normal_curves(rng, [rho])
      table[np.argsort(table[:, 0, 0])[:stopped], 1] = np.nan
      found = correlation(Curves(("one",), STEPS, np.full((30, 4), 0.25), table))
      assert found.runs == 30 - stopped
      inside.append(found.low[0, 0] <= rho <= found.high[0, 0])
      estimates.append(found.estimate[0, 0])
      naive.append(np.corrcoef(table[~np.isnan(table[:, 1, 0]), :, 0].T)[0, 1])
  inside, estimates, naive = (np.reshape(a, (200, 4)) for a in (inside, estimates, naive))
  assert (np.mean(inside, axis=0) > 0.9).all()
  assert np.abs(estimates.mean(axis=0) - RHOS).max() < 0.06
  if stopped:
    assert np.abs(naive.mean(axis=0) - RHOS).max() > 0.12


def search(seed, rho):
  """Two batches of seven after 18 finished runs, stopped early where hopeless: the share of their
  steps saved, and whether a run was stopped that would have been the best."""
  order = np.random.default_rng(seed).permutation(len(SPACE.pool))[:32]
  table = scores(seed + 50, rhos=(rho,))[order]
  told = np.arange(32) < 18
  saved, lost = 0.0, False
  for start in (18, 25):
    known = np.arange(32) < start
    rows = order[known]
    seen = table[known].copy()
    seen[~told[known], 1] = np.nan
    chain = fit_curves(Curves(("one",), STEPS, SPACE.pool[rows], seen), SPACE)
    batch = np.arange(start, start + 7)
    trials = table[batch].copy()
    trials[:, 1] = np.nan
    looks = hopeless(chain, Curves(("one",), STEPS, SPACE.pool[order[batch]], trials), Objective())
    for run, look in zip(batch, looks, strict=True):
      told[run] = not look.stop
      lost |= look.stop and table[run, 1, 0] > table[told, 1, 0].max()
      saved += look.stop * (1 - STEPS[0] / STEPS[1])
  return saved / 14, lost


def test_stopping_saves_steps_and_keeps_the_best():
  saved, lost = zip(*(search(seed, 0.99) for seed in range(4)), strict=True)
  assert np.mean(saved) > 0.4 and not any(lost)


def test_prefixes_that_say_nothing_stop_nothing():
  saved, lost = zip(*(search(seed, 0.0) for seed in range(4)), strict=True)
  assert np.mean(saved) < 0.1 and not any(lost)


def test_verdicts_state_their_numbers():
  chain, table, others = chains()[0]
  looks = hopeless(chain, running(table, others), NEAR)
  stopped = np.array([look.stop for look in looks])
  bar = np.nanmax(chain.curves.scores[:, 1, 0])
  wins = table[others, 1, 0] > bar
  assert stopped.sum() > 30
  assert np.sum(wins & stopped) <= 1 + sum(look.chance for look in looks if look.stop)
  one = looks[int(np.argmax(stopped))]
  assert one.reason.startswith("Stop: after 100 of 1000 steps") and "24 finished runs" in one.reason
  assert one.bar == bar and one.chance < 0.03
  # Ten best are easier to be among than the one best.
  tenth = hopeless(chain, running(table, others), NEAR, rank=10)
  assert sum(look.stop for look in tenth) < stopped.sum()
  assert not any(look.stop for look in hopeless(chain, running(table, others), NEAR, rank=25))


def test_nothing_is_stopped_before_correlations_can_be_known():
  chain, table, others = chains()[0]
  few = dataclasses.replace(chain, curves=some(table, split(0)[0], np.arange(32) < 8))
  looks = hopeless(few, running(table, others[:20]), NEAR)
  assert not any(look.stop for look in looks)
  assert "8 finished runs are too few" in looks[0].reason
  # Not even where they lie on a line.
  early = np.arange(8.0)
  slopes, error, _ = slopes_on(SPACE.pool[:8], early[None], early, SPACE)
  assert (slopes == 0).all() and (error == 0).all()


def test_the_cheapest_checkpoint_that_is_surely_near_the_final_one():
  rng = np.random.default_rng(0)
  final = rng.normal(size=(30, 1))
  table = np.stack([final + scale * rng.normal(size=(30, 1)) for scale in (1, 0.1, 0.01, 0)], 1)
  curves = Curves(("one",), (1, 2, 5, 10), np.full((30, 4), 0.25), table)
  found = cheapest(correlation(curves), 0.9)
  assert (found.step, found.share) == (2, 0.2) and "20% of the cost" in found.reason
  few = Curves(("one",), (1, 2, 5, 10), np.full((3, 4), 0.25), table[:3])
  assert cheapest(correlation(few), 0.9).share == 1
  assert correlation(few).low[0, 0] == -1
  with pytest.raises(ValueError, match="below 1"):
    cheapest(correlation(curves), 1.0)


def test_hostile_curves_get_sane_answers():
  table, (rows, finished, others) = scores(0, rhos=(0.6,)), split(0)
  trials = running(table, others[:4], ("one",))
  constant = np.ones_like(table)
  exact = np.stack([table[:, 1], 2 * table[:, 1] + 1], axis=1)
  for given, kept in ((table, rows[:1]), (constant, rows), (exact, rows), (1e90 * table, rows)):
    done = np.ones(1, bool) if len(kept) == 1 else finished
    seen = some(given, kept, done, ("one",))
    chain = fit_curves(seen, SPACE)
    finals = chain.final(trials)
    assert np.isfinite(finals.mean).all() and np.isfinite(finals.sd).all()
    found = correlation(seen)
    assert np.isfinite([found.estimate, found.low, found.high]).all()
    assert np.isfinite([look.chance for look in hopeless(chain, trials, Objective())]).all()
    assert np.isfinite(chain.observations(Objective()).stderr).all()


def test_what_cannot_be_asked_is_named():
  chain, table, others = chains()[0]
  trials = running(table, others)
  for options, message in ((dict(rank=0), "rank"), (dict(level=1.5), "level")):
    with pytest.raises(ValueError, match=message):
      hopeless(chain, trials, NEAR, **options)
  with pytest.raises(ValueError, match="run 0 of those running is finished"):
    hopeless(chain, some(table, others[:2]), NEAR)
  with pytest.raises(ValueError, match="not such as were learnt from"):
    chain.final(Curves(NAMES, (1, 2), trials.mixtures, trials.scores))
  with pytest.raises(ValueError, match="none of 100 runs reached the final checkpoint"):
    fit_curves(trials, SPACE)
