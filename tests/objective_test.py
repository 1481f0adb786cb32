import dataclasses
import functools

import numpy as np
import pytest
from scipy.stats import norm, t
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Matern

from mixjax.search import surrogate, tables
from mixjax.search.benchmarks import Benchmarks, Forecast, fit_benchmarks
from mixjax.search.constrained import (
  choose_constrained_batch,
  log_constrained_improvement,
  recommend,
)
from mixjax.search.coordinates import reference
from mixjax.search.objective import Objective, ScoreVectors
from mixjax.search.observations import Observations
from mixjax.search.process import JITTER
from mixjax.search.space import Space, candidates
from mixjax.search.study import observe
from mixjax.search.surrogate import Hyperparameters, condition
from mixjax.search.trial import Trial

NAMES = ("captions", "charts", "counting")
SPACE = Space.simplex("three", list("abc"))
SPACE = SPACE.with_pool(candidates(SPACE, 120, 0))
RUNS = 24
NOISE = 0.2
TOGETHER = np.array([[1.0, 0.7, -0.3], [0.7, 1.0, 0.0], [-0.3, 0.0, 1.0]])


def scored(*scores, stderr=None):
  return {n: {"score": s, "stderr": stderr} for n, s in zip(NAMES, scores, strict=True)}


def seen(points):
  """Square-root coordinates in sds over the space, as the processes see them."""
  return np.sqrt(points) / np.sqrt(reference(SPACE)).std(axis=0)


def with_the_prior(observations, space):
  scale = observations.scores.std()  # the process takes its sds in these
  return condition(observations, space, Hyperparameters((1.5,) * 3, 1 / scale, NOISE / scale))


@functools.cache
def problem(seed):
  """Benchmarks drawn from the prior that they are then fitted with, and their truth at the pool."""
  rng = np.random.default_rng(seed)
  kernel = Matern(1.5, nu=2.5)(seen(SPACE.pool))
  root = np.linalg.cholesky(kernel + 1e-9 * np.eye(len(kernel)))
  across = np.linalg.cholesky(TOGETHER).T
  truth = root @ rng.standard_normal((len(kernel), 3)) @ across
  noise = NOISE * rng.standard_normal((RUNS, 3)) @ across
  rows = rng.permutation(len(kernel))[:RUNS]

  runs = ScoreVectors(NAMES, SPACE.pool[rows], truth[rows] + noise)
  return fit_benchmarks(runs, SPACE, with_the_prior), truth


def test_a_weighted_mean_with_the_error_of_independent_benchmarks():
  scores = {"captions": {"score": 2, "stderr": 0.3}, "charts": {"score": 6, "stderr": 0.4}}
  assert Objective()(scores) == (4.0, pytest.approx(0.25))
  weighted = Objective({"charts": 3, "captions": 1})(scores)
  assert weighted == (5.0, pytest.approx(np.hypot(0.75 * 0.4, 0.25 * 0.3)))
  assert Objective({"charts": 2})(scores) == (6.0, 0.4)
  assert Objective({"charts": 2}, minimize=True)(scores) == (-6.0, 0.4)


def test_an_unknown_error_counts_only_where_there_is_weight():
  scores = {"captions": {"score": 2, "stderr": None}, "charts": {"score": 6, "stderr": 0.4}}
  assert Objective()(scores) == (4.0, None)
  assert Objective({"charts": 1, "captions": 0})(scores) == (6.0, 0.4)


@pytest.mark.parametrize(
  "objective", [Objective({"ocr": 1.0}), Objective(floors={"ocr": 0.0})], ids=["weight", "floor"]
)
def test_a_benchmark_without_score_is_named(objective):
  with pytest.raises(ValueError, match=r"\['ocr'\].*captions"):
    objective(scored(1, 2, 3))
  with pytest.raises(ValueError, match="ocr"):
    recommend(problem(0)[0], objective)


def test_weights_and_floors_are_checked():
  with pytest.raises(ValueError, match="'charts' is -1"):
    Objective({"captions": 2, "charts": -1})
  with pytest.raises(ValueError, match="no benchmark has a weight"):
    Objective({"captions": 0.0})
  with pytest.raises(ValueError, match="floor of 'charts' is nan"):
    Objective(floors={"charts": float("nan")})


def test_not_below_is_the_mean_less_slack_or_its_lower_confidence_bound():
  baseline = [scored(1, 5, 2), scored(3, 5, 2), scored(2, 5, 8)]
  assert Objective().not_below(baseline).floors == {"captions": 2, "charts": 5, "counting": 4}
  lenient = Objective().not_below(baseline, slack={"charts": 1.5})
  assert lenient.floors == {"captions": 2, "charts": 3.5, "counting": 4}
  bound = Objective().not_below(baseline, slack=0.5, level=0.95).floors["captions"]
  assert bound == pytest.approx(1.5 - t.ppf(0.95, 2) / np.sqrt(3))
  losses = Objective(minimize=True).not_below(baseline, slack=0.5, level=0.95).floors["captions"]
  assert losses == pytest.approx(2.5 + t.ppf(0.95, 2) / np.sqrt(3))


def test_the_stricter_of_two_floors_holds():
  baseline = [scored(1, 5, 2)]
  both = Objective(floors={"captions": 3.0, "charts": 4.0}).not_below(baseline)
  assert both.floors == {"captions": 3, "charts": 5, "counting": 2}
  losses = Objective(floors={"captions": 3.0}, minimize=True).not_below(baseline)
  assert losses.floors["captions"] == 1


def test_not_below_needs_replicates_of_the_same_benchmarks():
  with pytest.raises(ValueError, match="1 replicates"):
    Objective().not_below([scored(1, 2, 3)], level=0.9)
  with pytest.raises(ValueError, match="counting"):
    Objective().not_below([scored(1, 2, 3), {n: {"score": 1} for n in NAMES[:2]}])
  with pytest.raises(ValueError, match="ocr"):
    Objective().not_below([scored(1, 2, 3)], slack={"ocr": 1})


def trial(number, scores, axis="three", fidelity=None):
  point = SPACE.as_dict(SPACE.pool[number])
  state = "done" if scores else "queued"
  return Trial(number, "test", axis, point, point, 0, fidelity, state=state, scores=scores)


def test_score_vectors_of_trials_give_what_observe_gives():
  objective = Objective({"captions": 1, "counting": 3})
  trials = [
    trial(3, scored(1, 2, 3, stderr=0.1)),
    trial(4, None),
    trial(5, scored(4, 5, 6), axis="other"),
    trial(6, dict(reversed(scored(7, 8, 9, stderr=0.2).items()))),
  ]
  runs = ScoreVectors.of(trials, SPACE)
  np.testing.assert_array_equal(runs.scores, [[1, 2, 3], [7, 8, 9]])
  ours, theirs = runs.observations(objective), observe(trials, SPACE, objective)
  for field in ("mixtures", "scores", "stderr"):
    np.testing.assert_allclose(getattr(ours, field), getattr(theirs, field), rtol=1e-12)
  np.testing.assert_array_equal(ours.pending, theirs.pending)
  unknown = ScoreVectors.of([*trials, trial(8, scored(1, 1, 1))], SPACE)
  assert unknown.observations(objective).stderr is None


def test_score_vectors_keep_the_highest_fidelity_and_miss_no_benchmark():
  runs = ScoreVectors.of(
    [trial(3, scored(1, 2, 3), fidelity=1.0), trial(4, scored(4, 5, 6), fidelity=2.0)], SPACE
  )
  np.testing.assert_array_equal(runs.scores, [[4, 5, 6]])
  lacking = {n: s for n, s in scored(1, 2, 3).items() if n != "charts"}
  with pytest.raises(ValueError, match=r"trial 4 .*charts"):
    ScoreVectors.of([trial(3, scored(1, 2, 3)), trial(4, lacking)], SPACE)
  with pytest.raises(ValueError, match="none of 1 trials"):
    ScoreVectors.of([trial(3, None)], SPACE)


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


def test_only_some_benchmarks():
  benchmarks, _ = problem(0)
  two = benchmarks.only(("counting", "captions"))
  assert isinstance(two, Benchmarks)
  whole, part = benchmarks.forecast(), two.forecast()
  np.testing.assert_array_equal(part.mean, whole.mean[:, [2, 0]])
  np.testing.assert_array_equal(part.covariance, whole.covariance[:, [2, 0]][:, :, [2, 0]])
  with pytest.raises(ValueError, match="ocr"):
    benchmarks.only(("ocr",))


def test_shapes_of_score_vectors_are_checked():
  with pytest.raises(ValueError, match=r"\(2, 3\), not \(2, 2\)"):
    ScoreVectors(NAMES, SPACE.pool[:2], np.zeros((2, 2)))


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
