"""Benchmarks learnt together: their forecasts, draws and common errors."""

import functools

import numpy as np
import pytest
from three_benchmarks import NAMES, RUNS, SPACE, problem

from mixjax.search import surrogate, tables
from mixjax.search.benchmarks import Benchmarks, fit_benchmarks
from mixjax.search.constrained import (
  recommend,
)
from mixjax.search.objective import Objective, ScoreVectors
from mixjax.search.observations import Observations
from mixjax.search.space import Space
from mixjax.search.surrogate import Hyperparameters, condition

pytestmark = pytest.mark.xdist_group("three_benchmarks")


def test_reweighting_equals_refitting_the_reweighted_score():
  """With one kernel for all, the posterior mean is linear in the scores."""
  runs = problem(0)[0].runs
  fit = functools.partial(condition, hyper=Hyperparameters((1.0, 2.0, 3.0), 1.2, 0.3))
  benchmarks = fit_benchmarks(runs, SPACE, fit)
  for objective in (Objective(), Objective({"charts": 3.0, "counting": 1.0}, minimize=True)):
    refitted = fit(runs.observations(objective), SPACE)
    mean, _ = benchmarks.forecast(SPACE.pool).of(objective)
    np.testing.assert_allclose(mean, refitted.predict(SPACE.pool)[0], rtol=0, atol=1e-9)
  mean, sd = benchmarks.forecast(SPACE.pool).of(Objective({"charts": 5.0}))
  alone = fit(Observations(runs.mixtures, runs.scores[:, 1]), SPACE).predict(SPACE.pool)
  np.testing.assert_allclose([mean, sd], alone, rtol=0, atol=1e-9)


def test_the_sd_of_an_objective_is_that_of_its_covariance():
  forecast = problem(0)[0].forecast(SPACE.pool[:5])
  weights = np.array([0.5, 0.3, 0.2])
  expected = np.sqrt(np.einsum("i,mij,j->m", weights, forecast.covariance, weights))
  found = forecast.of(Objective(dict(zip(NAMES, weights, strict=True)), minimize=True))[1]
  np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_uncertainty_of_the_objective_is_calibrated():
  """Over draws from the prior, at mixtures that were not run, for two correlated benchmarks."""
  objective = Objective({"captions": 1, "charts": 1})
  squares, apart = [], []
  for seed in range(40):
    benchmarks, truth = problem(seed)
    forecast = benchmarks.forecast(SPACE.pool)
    new = np.abs(SPACE.pool[:, None] - benchmarks.runs.mixtures).max(axis=2).min(axis=1) > 1e-6
    mean, sd = forecast.of(objective)
    missed = truth[:, :2].mean(axis=1) - mean
    squares.append(np.mean((missed / sd)[new] ** 2))
    as_if_apart = np.sqrt((forecast.sd[:, :2] ** 2).sum(axis=1)) / 2
    apart.append(np.mean((missed / as_if_apart)[new] ** 2))
  assert 0.8 < np.mean(squares) < 1.25
  assert np.mean(apart) > 1.4


def test_draws_have_the_mean_and_covariance_of_the_forecast():
  benchmarks, _ = problem(1)
  points = SPACE.pool[:4]
  drawn = benchmarks.draw(points, 20000, 0)
  forecast = benchmarks.forecast(points)
  np.testing.assert_allclose(drawn.mean(axis=0), forecast.mean, atol=0.03)
  covariance = np.stack([np.cov(drawn[:, i].T) for i in range(4)])
  np.testing.assert_allclose(covariance, forecast.covariance, atol=0.03)
  between = np.cov(drawn[:, :, 2].T)
  np.testing.assert_allclose(between, benchmarks.processes[2].joint(points)[1], atol=0.03)
  np.testing.assert_array_equal(benchmarks.draw(points, 3, 5), benchmarks.draw(points, 3, 5))


def test_one_run_and_a_benchmark_on_which_all_runs_score_alike():
  runs = problem(0)[0].runs
  scores = np.column_stack([runs.scores[:, :2], np.full(RUNS, 4.0)])
  fit = functools.partial(condition, hyper=Hyperparameters((1.5,) * 3, 1.0, 0.1))
  benchmarks = fit_benchmarks(ScoreVectors(NAMES, runs.mixtures, scores), SPACE, fit)
  assert np.isfinite(benchmarks.correlation).all()
  np.testing.assert_array_equal(benchmarks.correlation[2], [0, 0, 1])
  single = fit_benchmarks(ScoreVectors(NAMES, runs.mixtures[:1], scores[:1]), SPACE, fit)
  np.testing.assert_array_equal(single.correlation, np.eye(3))
  assert np.isfinite(recommend(single, Objective()).mean)


def test_only_some_benchmarks():
  benchmarks, _ = problem(0)
  two = benchmarks.only(("counting", "captions"))
  assert isinstance(two, Benchmarks)
  whole, part = benchmarks.forecast(), two.forecast()
  np.testing.assert_array_equal(part.mean, whole.mean[:, [2, 0]])
  np.testing.assert_array_equal(part.covariance, whole.covariance[:, [2, 0]][:, :, [2, 0]])
  with pytest.raises(ValueError, match="ocr"):
    benchmarks.only(("ocr",))


def test_on_recorded_runs_benchmarks_predict_their_mean_better_than_one_process_of_it(regmix):
  table = tables.read(regmix)
  scores = np.stack(list(table.metrics.values()), axis=1)
  rows = np.random.default_rng([0, 2]).permutation(np.flatnonzero(~table.test))[:32]
  space = Space.simplex("domain", table.domains)
  runs = ScoreVectors(tuple(table.metrics), table.mixtures[rows], scores[rows])
  judged, truth = table.mixtures[table.test], -scores[table.test].mean(axis=1)
  objective = Objective(minimize=True)
  mean, _ = fit_benchmarks(runs, space).forecast(judged).of(objective)
  direct, _ = surrogate.fit(runs.observations(objective), space).predict(judged)
  assert np.mean((mean - truth) ** 2) < 0.15 * truth.var()
  assert np.mean((mean - truth) ** 2) < 0.5 * np.mean((direct - truth) ** 2)
