"""Curves with a known truth: what is learnt of them and forecast from them."""

import functools

import numpy as np
import pytest
from known_curves import (
  NAMES,
  NEAR,
  SPACE,
  STEPS,
  chains,
  landscapes,
  running,
  scores,
  some,
  split,
)

from mixjax.search import coordinates, surrogate
from mixjax.search.benchmarks import Benchmarks, fit_benchmarks
from mixjax.search.chain import LEAST_INFORMATION, Chain, Link, fit_curves
from mixjax.search.curves import Curves
from mixjax.search.objective import Objective, ScoreVectors
from mixjax.search.observations import Observations
from mixjax.search.slopes import Noisy
from mixjax.search.surrogate import Hyperparameters

pytestmark = pytest.mark.xdist_group("known_curves")


def test_slopes_have_the_sign_of_what_goes_along():
  slopes = np.array([chain.slopes()[:, 1, 0] for chain, _, _ in chains()])
  assert (slopes[:, 0] > 0.4).all()
  assert (slopes[:, 3] <= 0).all() and np.mean(slopes[:, 3] < -0.2) >= 0.75
  # At the level of 5%, one of four studies by chance; most show nothing where there is nothing.
  assert np.mean(slopes[:, 2] == 0) >= 0.75


def test_forecasts_are_calibrated_and_gain_from_prefixes():
  inside, ratio = [], []
  for chain, table, others in chains():
    trials, truth = running(table, others), table[others, 1]
    none = Curves(NAMES, STEPS, trials.mixtures, np.full_like(trials.scores, np.nan))
    told, untold = chain.final(trials), chain.final(none)
    inside.append(np.abs(truth - told.mean) <= 1.96 * told.sd)
    errors = [np.mean((truth - one.mean) ** 2, axis=0) for one in (told, untold)]
    ratio.append(errors[0] / errors[1])
    flat = chain.slopes()[:, 1, 0] == 0
    np.testing.assert_array_equal(told.mean[:, flat], untold.mean[:, flat])
    np.testing.assert_array_equal(told.sd[:, flat], untold.sd[:, flat])
    assert told.sd.mean() < untold.sd.mean()
  assert 0.88 < np.mean(inside) < 0.99
  assert np.mean(inside, axis=(0, 1)).min() > 0.83
  assert np.mean(ratio, axis=0)[0] < 0.85


def test_stopping_the_worse_half_biases_no_forecast():
  """Processes fitted apart are off by half an sd of the scores here: finishers began well."""
  off = []
  for seed in range(4):
    rows, _, others = split(seed)
    table = scores(seed, rhos=(0.99,))
    finished = table[rows, 0, 0] > np.median(table[rows, 0, 0]) - 0.2
    chain = fit_curves(some(table, rows, finished, ("near",)), SPACE)
    forecast = chain.final(running(table, others, ("near",))).mean
    off.append(np.mean(table[others, 1] - forecast))
  assert abs(np.mean(off)) < 0.1


def test_objective_weighs_benchmarks_and_their_common_errors():
  chain, table, others = chains()[0]
  finals = chain.final(running(table, others))
  mean, sd = finals.of(Objective({"near": 1.0, "half": 3.0}, minimize=True))
  np.testing.assert_allclose(mean, -(finals.mean[:, 0] + 3 * finals.mean[:, 1]) / 4)
  shares = np.array([0.25, 0.75])
  expected = np.einsum("b,mbc,c->m", shares, finals.covariance[:, :2, :2], shares)
  np.testing.assert_allclose(sd**2, expected)


def test_finished_runs_keep_their_scores():
  chain, table, others = chains()[0]
  finals = chain.final(some(table, others[:3]))
  np.testing.assert_array_equal(finals.mean, table[others[:3], 1])
  assert (finals.sd == 0).all()


def test_later_checkpoints_leave_less_doubt():
  rng, (rows, finished, others) = np.random.default_rng(0), split(0)
  final = landscapes(0)[0] + 0.3 * rng.normal(size=len(SPACE.pool))
  late = final + 0.15 * rng.normal(size=len(final))
  early = late + 0.5 * rng.normal(size=len(final))
  table, steps = np.stack([early, late, final], axis=1)[:, :, None], (1.0, 2.0, 3.0)
  seen = table[rows].copy()
  seen[~finished, 2] = np.nan
  seen[-3:, 1] = np.nan
  chain = fit_curves(Curves(("one",), steps, SPACE.pool[rows], seen), SPACE)
  errors, sds = [], []
  for known in range(3):
    trials = table[others].copy()
    trials[:, known:] = np.nan
    found = chain.final(Curves(("one",), steps, SPACE.pool[others], trials))
    errors.append(np.sqrt(np.mean((found.mean - table[others, 2]) ** 2)))
    sds.append(found.sd.mean())
  assert errors[2] < 0.7 * errors[0] and sds[2] < sds[1] < sds[0]
  assert chain.reliance(2).shape == (2, 1) and chain.reliance(2)[1, 0] > 0.5


def given_chain(rows, finished, slope=0.8):
  """A chain with given hyper-parameters: no fit hides what follows from the model itself."""
  table = scores(7, rhos=(0.9,))
  curves = some(table, rows, finished, ("one",))
  links = []
  hypers = (
    Hyperparameters((2.0, 3.0, 4.0, 5.0), 1.1, 0.3, coordinates.LOG),
    Hyperparameters((6.0, 4.0, 3.0, 5.0), 0.9, 0.5, coordinates.LOG),
  )
  left = (table[:, 0, 0], table[:, 1, 0] - slope * table[:, 0, 0])
  for place, (hyper, values) in enumerate(zip(hypers, left, strict=True)):
    there = rows[curves.reached > place]
    runs = ScoreVectors(("one",), SPACE.pool[there], values[there, None])
    process = surrogate.condition(runs.observations(Objective()), SPACE, hyper, Noisy())
    innovations = Benchmarks(runs, (process,), np.eye(1))
    links.append(Link(np.full((place, 1), slope), np.zeros((1, place, place)), innovations, ((),)))
  return Chain(curves, tuple(links)), table


def joint_posterior(chain, slope, points, left_out=None):
  """Mean and variance of the noise-free final scores, by one process over both checkpoints."""
  first, second = (link.innovations.processes[0] for link in chain.links)

  def kernel(process, a, b):
    hyper, reference = process.hyper, coordinates.reference(SPACE)
    at = (hyper.coordinates.exponent, hyper.coordinates.offset)
    mean, sd = coordinates.spread(reference, *at)
    a, b = ((coordinates.transform(x, *at) - mean) / sd / np.array(hyper.lengths) for x in (a, b))
    r = np.sqrt(5 * np.sum((np.asarray(a)[:, None] - np.asarray(b)[None]) ** 2, axis=2))
    return (process.data.scale * hyper.amplitude) ** 2 * (1 + r + r**2 / 3) * np.exp(-r)

  curves = chain.curves
  keep = np.arange(len(curves)) != (-1 if left_out is None else left_out)
  early = np.flatnonzero(keep)
  late = np.flatnonzero(keep & curves.finished)
  x, y = curves.mixtures[early], curves.mixtures[late]
  same = (early[:, None] == late).astype(float)
  noises = [one.noise_sd**2 for one in (first, second)]
  kxx = kernel(first, x, x) + noises[0] * np.eye(len(x))
  kxy = slope * (kernel(first, x, y) + noises[0] * same)
  kyy = slope**2 * (kernel(first, y, y) + noises[0] * np.eye(len(y))) + kernel(second, y, y)
  kyy += noises[1] * np.eye(len(y))
  center = slope * first.data.center + second.data.center
  data = np.concatenate(
    [curves.scores[early, 0, 0] - first.data.center, curves.scores[late, 1, 0] - center]
  )
  cross = np.hstack(
    [
      slope * kernel(first, points, x),
      slope**2 * kernel(first, points, y) + kernel(second, points, y),
    ]
  )
  solved = np.linalg.solve(np.block([[kxx, kxy], [kxy.T, kyy]]), cross.T)
  prior = slope**2 * np.diag(kernel(first, points, points))
  prior = prior + np.diag(kernel(second, points, points))
  return center + solved.T @ data, prior - np.sum(cross.T * solved, axis=0)


def test_links_together_are_the_joint_process_of_all_checkpoints():
  rows, finished, others = split(7)
  chain, _ = given_chain(rows, finished)
  mean, sd = chain.predict(SPACE.pool[others], Objective())
  expected, variance = joint_posterior(chain, 0.8, SPACE.pool[others])
  np.testing.assert_allclose(mean, expected, atol=1e-5)
  np.testing.assert_allclose(sd, np.sqrt(variance), rtol=1e-4)


def test_a_stopped_run_counts_once():
  """What stands for it takes the belief without it to the belief with it, and is no forecast."""
  rows, finished, _ = split(7)
  chain, table = given_chain(rows, finished)
  seen = chain.observations(Objective())
  assert len(seen) == 32 and not len(seen.pending)
  np.testing.assert_allclose(seen.scores[finished], table[rows[finished], 1, 0])
  for run in np.flatnonzero(~finished):
    here = chain.curves.mixtures[run][None]
    (before,), (prior,) = joint_posterior(chain, 0.8, here, left_out=run)
    (after,), (left,) = joint_posterior(chain, 0.8, here)
    score, error = seen.scores[run], seen.stderr[run]
    np.testing.assert_allclose(1 / left, 1 / prior + 1 / error**2, rtol=1e-4)
    combined = left * (before / prior + score / error**2)
    if 1 - left / prior > LEAST_INFORMATION:
      np.testing.assert_allclose(combined, after, atol=1e-4)
    else:
      assert min(before, after) <= combined <= max(before, after)


def test_a_search_on_observations_believes_what_the_curves_say():
  """Hyper-parameters of its own and the parts that stopped runs lack hardly move it."""
  search_fit = functools.partial(surrogate.fit, warp=0.0)
  for chain, _, others in chains()[:2]:
    points = SPACE.pool[others]
    mean, sd = chain.predict(points, NEAR)
    seen = chain.observations(NEAR)
    runs = ScoreVectors(("early", "late"), seen.mixtures, seen.parts, seen.part_stderr)
    both = fit_benchmarks(runs, SPACE, search_fit).forecast(points)
    assert np.sqrt(np.mean(((both.mean.sum(axis=1) - mean) / sd) ** 2)) < 0.1
    assert 0.9 < np.mean(np.sqrt(both.covariance.sum(axis=(1, 2))) / sd) < 1.1
    # Without the parts, nearly.
    whole = Observations(seen.mixtures, seen.scores, seen.stderr)
    alone, error = search_fit(whole, SPACE).predict(points)
    assert np.sqrt(np.mean(((alone - mean) / sd) ** 2)) < 0.6
    assert 0.8 < np.mean(error / sd) < 1.3


def test_runs_whose_curves_say_nothing_are_pending():
  chain = next(chain for chain, _, _ in chains() if not chain.slopes()[2].any())
  seen = chain.observations(Objective({"none": 1.0}))
  assert len(seen) == 24 and len(seen.pending) == 8 and seen.parts.shape == (24, 1)
