"""Recommendations and batches under floors."""

import dataclasses
import functools

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Matern
from three_benchmarks import NAMES, NOISE, RUNS, SPACE, problem, seen, with_the_prior

from mixjax.search import surrogate
from mixjax.search.benchmarks import Forecast, fit_benchmarks
from mixjax.search.constrained import (
  choose_constrained_batch,
  log_constrained_improvement,
  recommend,
)
from mixjax.search.objective import Objective, ScoreVectors
from mixjax.search.process import JITTER
from mixjax.search.surrogate import Hyperparameters, condition

pytestmark = pytest.mark.xdist_group("three_benchmarks")


@pytest.mark.slow
def test_floors_hold_at_the_stated_rate():
  def violated(level):
    broken, promised = [], []
    for seed in range(60):
      benchmarks, truth = problem(seed)
      objective = Objective({"counting": 1.0}, {"captions": 0.2, "charts": 0.2})
      choice = recommend(benchmarks, objective, level=level)
      if choice.feasible:
        row = np.argmin(np.abs(SPACE.pool - choice.mixture).sum(axis=1))
        broken += (truth[row, :2] < 0.2).tolist()
        promised += choice.kept.values()
    assert len(broken) > 60 and min(promised) >= level
    return np.mean(broken), 1 - np.mean(promised)

  broken, expected = violated(0.8)
  assert broken < 0.2
  assert broken == pytest.approx(expected, abs=0.07)
  assert violated(0.95)[0] < 0.05 < violated(0.5)[0]


def test_a_floor_moves_the_recommendation_and_no_more_than_it_must():
  benchmarks, _ = problem(2)
  forecast = benchmarks.forecast()
  free = recommend(benchmarks, Objective({"counting": 1.0}), forecast=forecast)
  assert free.feasible and free.kept == {}
  assert free.mean == forecast.of(Objective({"counting": 1.0}))[0].max()
  objective = Objective({"counting": 1.0}, {"captions": float(np.quantile(forecast.mean, 0.7))})
  bound = recommend(benchmarks, objective, forecast=forecast, level=0.9)
  held = norm.cdf(forecast.margins(objective)[:, 0]) >= 0.9
  assert bound.feasible and bound.kept["captions"] >= 0.9
  assert bound.mean == forecast.mean[held, 2].max() < free.mean


def test_a_floor_out_of_reach_is_named():
  benchmarks, _ = problem(2)
  forecast = benchmarks.forecast()
  objective = Objective(floors={"captions": 50.0, "charts": -50.0})
  choice = recommend(benchmarks, objective, forecast=forecast)
  assert choice.failing == ("captions",) and not choice.feasible
  assert choice.kept["captions"] < 1e-6 and choice.kept["charts"] > 0.999
  nearest = np.argmax((forecast.mean[:, 0] - 50) / forecast.sd[:, 0])
  np.testing.assert_array_equal(choice.mixture, forecast.mixtures[nearest])
  with pytest.raises(ValueError, match="level"):
    recommend(benchmarks, objective, level=1.0)


def test_losses_are_minimised_under_ceilings():
  benchmarks, _ = problem(3)
  runs = benchmarks.runs
  losses = ScoreVectors(NAMES, runs.mixtures, -runs.scores)
  fitted = fit_benchmarks(losses, SPACE, with_the_prior)
  theirs = recommend(fitted, Objective({"counting": 1}, {"captions": -0.2}, minimize=True))
  ours = recommend(benchmarks, Objective({"counting": 1}, {"captions": 0.2}))
  np.testing.assert_array_equal(theirs.mixture, ours.mixture)
  assert (theirs.mean, theirs.sd) == (pytest.approx(ours.mean), pytest.approx(ours.sd))
  assert theirs.kept["captions"] == pytest.approx(ours.kept["captions"])


def test_another_objective_fits_and_predicts_nothing(monkeypatch):
  benchmarks, _ = problem(4)
  forecast = benchmarks.forecast()
  for used in ("fit", "condition"):
    monkeypatch.delattr(surrogate, used)
  monkeypatch.delattr(surrogate.Surrogate, "predict")
  best = {n: recommend(benchmarks, Objective({n: 1}), forecast=forecast).mean for n in NAMES}
  assert list(best.values()) == forecast.mean.max(axis=0).tolist()


def test_an_observed_recommendation_says_what_was_observed():
  benchmarks, _ = problem(5)
  point = benchmarks.runs.mixtures[[7]]
  choice = recommend(benchmarks, Objective(), forecast=benchmarks.forecast(point))
  assert choice.observed == pytest.approx(benchmarks.runs.scores[7].mean())
  new = recommend(benchmarks, Objective(), forecast=benchmarks.forecast(np.full((1, 3), 1 / 3)))
  assert new.observed is None


def test_improvement_counts_as_far_as_floors_hold():
  forecast = Forecast(
    NAMES, SPACE.pool[:2], np.array([[1.0, 2, 3], [1, 2, 3]]), np.full((2, 3), 0.5), np.eye(3)
  )
  forecast.sd[1, 1] = 1.0
  objective = Objective({"counting": 1}, {"charts": 1.0, "captions": 1.0})
  draws = 3 + 0.5 * np.random.default_rng(0).standard_normal(400_000)
  gain = np.maximum(draws - 3.2, 0).mean()
  expected = gain * norm.cdf([2, 1]) * 0.5
  found = log_constrained_improvement(forecast, objective, 3.2)
  np.testing.assert_allclose(np.exp(found), expected, rtol=0.01)
  held = log_constrained_improvement(forecast, objective, None)
  np.testing.assert_allclose(held, np.log(norm.cdf([2, 1]) / 2), rtol=1e-12)
  # Far from any hope, mixtures are still told apart.
  found = log_constrained_improvement(forecast, objective, 1e3)
  assert np.isfinite(found).all() and found[0] > found[1]


def test_a_constrained_batch_is_what_refitting_with_hallucinated_runs_would_choose():
  """By its definition: each choice is added to every process as a run at its predicted means."""
  benchmarks, _ = problem(6)
  objective = Objective({"counting": 1}, {"captions": 0.0})
  chosen = choose_constrained_batch(benchmarks, objective, SPACE.pool, 6)
  forecast = benchmarks.forecast(SPACE.pool)
  observed = benchmarks.forecast(benchmarks.runs.mixtures)
  safe = observed.margins(objective)[:, 0] >= norm.ppf(0.8)
  best = observed.mean[safe, 2].max()

  def refitted(told):
    runs = seen(np.concatenate([benchmarks.runs.mixtures, SPACE.pool[told]]))
    sds = []
    for scores in benchmarks.runs.scores.T:
      noise = NOISE**2 + JITTER * scores.var()
      model = GaussianProcessRegressor(Matern(1.5, nu=2.5), alpha=noise, optimizer=None)
      sds.append(model.fit(runs, np.zeros(len(runs))).predict(seen(SPACE.pool), return_std=True)[1])
    return dataclasses.replace(forecast, sd=np.stack(sds, axis=1))

  expected: list[int] = []
  for _ in range(6):
    value = log_constrained_improvement(refitted(expected), objective, best)
    value[expected] = -np.inf
    expected.append(int(np.argmax(value)))
  assert chosen.tolist() == expected
  without = np.argsort(-log_constrained_improvement(forecast, objective, best))[:6]
  assert chosen.tolist() != without.tolist()


def test_a_constrained_batch_goes_where_nothing_is_pending():
  benchmarks, _ = problem(6)
  objective = Objective({"counting": 1}, {"captions": -9.0})
  first = choose_constrained_batch(benchmarks, objective, SPACE.pool, 2)
  told = choose_constrained_batch(
    benchmarks, objective, SPACE.pool, 1, pending=SPACE.pool[first[:1]]
  )
  assert told[0] == first[1]
  with pytest.raises(ValueError, match="cannot choose 0"):
    choose_constrained_batch(benchmarks, objective, SPACE.pool, 0)


def test_a_benchmark_that_never_moves_keeps_its_floor_or_breaks_it_for_sure():
  runs = problem(0)[0].runs
  scores = np.column_stack([runs.scores[:, :2], np.full(RUNS, 25.0)])
  fit = functools.partial(condition, hyper=Hyperparameters((1.5,) * 3, 1.0, 0.1))
  benchmarks = fit_benchmarks(ScoreVectors(NAMES, runs.mixtures, scores), SPACE, fit)
  objective = Objective({NAMES[0]: 1.0})
  free = recommend(benchmarks, objective)
  kept = recommend(benchmarks, dataclasses.replace(objective, floors={NAMES[2]: 25.0}))
  assert kept.feasible and kept.kept == {NAMES[2]: 1.0}
  np.testing.assert_array_equal(kept.mixture, free.mixture)
  broken = recommend(benchmarks, dataclasses.replace(objective, floors={NAMES[2]: 26.0}))
  assert broken.failing == (NAMES[2],)
  np.testing.assert_array_equal(broken.mixture, free.mixture)
  batch = choose_constrained_batch(benchmarks, objective, SPACE.pool, 3)
  objective = dataclasses.replace(objective, floors={NAMES[2]: 26.0})
  np.testing.assert_array_equal(
    choose_constrained_batch(benchmarks, objective, SPACE.pool, 3), batch
  )
