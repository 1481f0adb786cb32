import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern

from mixjax.search import surrogate
from mixjax.search.policies import Observations
from mixjax.search.space import Space, candidates
from mixjax.search.surrogate import Hyperparameters, condition, fit

TASKS = ["caption", "ocr", "grounded", "detection", "vqa"]
SPACE = Space.product([f"c{i}" for i in range(10)], TASKS)
POINTS = candidates(SPACE, 200, 0)


def smooth(points, seed=1):
  target = candidates(SPACE, 2, seed)[1]
  return 3 - np.sum((np.sqrt(points) - np.sqrt(target)) ** 2, axis=1)


def runs(count, noise=0.02):
  return Observations(
    POINTS[:count], smooth(POINTS[:count]) + noise * np.random.default_rng(0).normal(size=count)
  )


@pytest.mark.parametrize("ard", [False, True])
@pytest.mark.parametrize("count", [3, 16, 50, 100])
def test_posterior_and_log_marginal_equal_scikit_learn(count, ard):
  rng = np.random.default_rng(count)
  observed = runs(count)
  stderr = 0.05 * rng.uniform(size=count)
  observed = Observations(observed.mixtures, observed.scores, stderr)
  lengths = rng.uniform(0.3, 1.5, SPACE.dim if ard else 2)
  ours = condition(observed, SPACE, Hyperparameters(tuple(lengths), 1.3, 0.1))

  scale = observed.scores.std()
  theirs = GaussianProcessRegressor(
    ConstantKernel(1.3**2) * Matern(lengths if ard else lengths[SPACE.block], nu=2.5),
    alpha=0.1**2 + surrogate.JITTER + (stderr / scale) ** 2,
    optimizer=None,
  ).fit(np.sqrt(observed.mixtures), (observed.scores - observed.scores.mean()) / scale)
  mean, sd = theirs.predict(np.sqrt(POINTS[100:]), return_std=True)
  our_mean, our_sd = ours.predict(POINTS[100:])
  np.testing.assert_allclose(our_mean, observed.scores.mean() + scale * mean, rtol=0, atol=1e-8)
  np.testing.assert_allclose(our_sd, scale * sd, rtol=0, atol=1e-8)
  np.testing.assert_allclose(ours.log_marginal, theirs.log_marginal_likelihood_value_, rtol=1e-8)
  _, covariance = theirs.predict(np.sqrt(POINTS[100:]), return_cov=True)
  np.testing.assert_allclose(
    ours.covariance(POINTS[100:], POINTS[107]), scale**2 * covariance[:, 7], rtol=0, atol=1e-8
  )


def test_leave_one_out_equals_leaving_each_run_out():
  observed = runs(12)
  whole = condition(observed, SPACE, Hyperparameters((0.5, 0.7), 1.0, 0.2))
  left_out = whole.leave_one_out()
  for i in range(12):
    keep = np.arange(12) != i
    kernel = Matern(np.array([0.5, 0.7])[SPACE.block], nu=2.5)
    noise = 0.2**2 + surrogate.JITTER
    theirs = GaussianProcessRegressor(kernel, alpha=noise, optimizer=None).fit(
      np.sqrt(observed.mixtures[keep]), (observed.scores[keep] - whole.center) / whole.scale
    )
    (mean,), (sd,) = theirs.predict(np.sqrt(observed.mixtures[[i]]), return_std=True)
    assert left_out.mean[i] == pytest.approx(whole.center + whole.scale * mean, abs=1e-9)
    assert left_out.sd[i] == pytest.approx(whole.scale * np.sqrt(sd**2 + noise), abs=1e-9)
  inside = np.abs(left_out.mean - observed.scores) <= 1.96 * left_out.sd
  assert left_out.coverage == pytest.approx(inside.mean())


def test_the_fit_is_a_maximum_that_predicts_and_covers():
  observed = runs(60, noise=0.05)
  fitted = fit(observed, SPACE)
  mean, sd = fitted.predict(POINTS[60:])
  truth = smooth(POINTS[60:])
  assert spearmanr(mean, truth)[0] > 0.95
  assert 0.85 <= np.mean(np.abs(mean - truth) <= 1.96 * sd) <= 1
  assert fitted.leave_one_out().coverage > 0.85

  def posterior(hyper):
    z = [
      np.log(length / surrogate._typical_distance(size)) / surrogate.LENGTH_SPREAD
      for length, size in zip(hyper.lengths, (10, 5), strict=True)
    ]
    z += [np.log(hyper.amplitude), np.log(hyper.noise / surrogate.NOISE) / surrogate.NOISE_SPREAD]
    return condition(observed, SPACE, hyper).log_marginal - 0.5 * np.sum(np.square(z))

  best = posterior(fitted.hyper)
  for i in range(4):
    for factor in (0.8, 1.25):
      values = [*fitted.hyper.lengths, fitted.hyper.amplitude, fitted.hyper.noise]
      values[i] *= factor
      assert posterior(Hyperparameters(tuple(values[:2]), *values[2:])) < best


def test_the_noise_of_replicates_is_found():
  mixtures = np.repeat(POINTS[:15], 4, axis=0)
  noise = 0.05 * np.random.default_rng(1).normal(size=60)
  fitted = fit(Observations(mixtures, smooth(mixtures) + noise), SPACE)
  assert 0.04 < fitted.noise_sd < 0.065


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_predictions_scale_and_shift_with_the_scores(scale):
  observed = runs(20)
  moved = Observations(observed.mixtures, scale * observed.scores + 5 * scale)
  mean, sd = fit(observed, SPACE).predict(POINTS[:50])
  moved_mean, moved_sd = fit(moved, SPACE).predict(POINTS[:50])
  np.testing.assert_allclose(moved_mean, scale * mean + 5 * scale, rtol=1e-4)
  np.testing.assert_allclose(moved_sd, scale * sd, rtol=1e-3)


HOSTILE = {
  "one run": (POINTS[:1], [0.3]),
  "one run at zero": (POINTS[:1], [0.0]),
  "constant": (POINTS[:9], [-4.0] * 9),
  "constant zero": (POINTS[:9], [0.0] * 9),
  "one mixture, many scores": (np.tile(POINTS[:1], (12, 1)), np.arange(12.0)),
  "duplicates without noise": (np.tile(POINTS[:4], (8, 1)), np.tile(smooth(POINTS[:4]), 8)),
  "corners": (
    np.concatenate([np.tile(np.eye(10), (5, 1)), np.repeat(np.eye(5), 10, 0)], 1),
    np.arange(50.0),
  ),
  "one outlier": (POINTS[:20], [0.0] * 19 + [1e9]),
  "huge": (POINTS[:9], 1e300 * smooth(POINTS[:9])),
  "tiny": (POINTS[:9], 1e-300 * smooth(POINTS[:9])),
  "nearly the same": (POINTS[:9], 1e6 + 1e-9 * np.arange(9)),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("stderr", [None, 0.0, 0.1])
def test_hostile_runs_give_finite_answers(name, stderr):
  mixtures, scores = HOSTILE[name]
  stderr = None if stderr is None else np.full(len(scores), stderr)
  fitted = fit(Observations(mixtures, scores, stderr), SPACE)
  mean, sd = fitted.predict(POINTS)
  left_out = fitted.leave_one_out()
  for numbers in (mean, sd, left_out.mean, left_out.sd, fitted.log_marginal):
    assert np.isfinite(numbers).all()
  assert (sd >= 0).all()
  if np.ptp(scores) == 0:
    np.testing.assert_allclose(mean, scores[0], atol=1e-9)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_no_numbers_are_refused(bad):
  with pytest.raises(ValueError, match=f"scores of run 2 is {bad}"):
    fit(Observations(POINTS[:3], [0.0, 1.0, bad]), SPACE)
  with pytest.raises(ValueError, match="stderr of run 1"):
    fit(Observations(POINTS[:2], [0.0, 1.0], [0.1, bad]), SPACE)
  with pytest.raises(ValueError, match="at least one"):
    fit(Observations.none(SPACE), SPACE)


def test_a_noisy_run_counts_less():
  mixtures = POINTS[[3, 3, 9, 12]]
  scores = [0.0, 1.0, 0.4, 0.6]
  for stderr, low, high in ([0.001, 1], -0.2, 0.2), ([1, 0.001], 0.8, 1.2):
    observed = Observations(mixtures, scores, [*stderr, 0.01, 0.01])
    assert low < fit(observed, SPACE).predict(mixtures[:1])[0] < high


def test_it_is_deterministic_and_the_rest_of_the_program_stays_in_float32():
  first, second = (fit(runs(30), SPACE) for _ in range(2))
  assert first.hyper == second.hyper
  np.testing.assert_array_equal(first.predict(POINTS), second.predict(POINTS))
  assert first.predict(POINTS)[0].dtype == np.float64
  assert jnp.ones(1).dtype == jnp.float32 and not jax.config.jax_enable_x64


def test_predictions_do_not_depend_on_how_many_are_asked_for():
  fitted = fit(runs(30), SPACE)
  many = candidates(SPACE, surrogate.CHUNK + 10, 5)
  mean, sd = fitted.predict(many)
  few_mean, few_sd = fitted.predict(many[-20:])
  np.testing.assert_allclose(few_mean, mean[-20:], atol=1e-12)
  np.testing.assert_allclose(few_sd, sd[-20:], atol=1e-9)
  assert fitted.predict(many[:0])[0].shape == (0,)


def test_recorded_proxy_runs_are_ranked_from_64_of_them():
  """RegMix's 1M-parameter runs: loss on Pile-CC, fitted on 64 of 512, judged on the 256 others."""
  root = os.environ.get("MIXJAX_RECORDED")
  folder = pathlib.Path(root or "missing") / "regmix"
  if not folder.exists():
    pytest.skip("MIXJAX_RECORDED names no folder with regmix/*_1m.csv (github.com/sail-sg/regmix)")

  def table(name):
    with open(folder / f"{name}_1m.csv") as file:
      columns = file.readline().strip().split(",")
      return columns, np.loadtxt(file, delimiter=",")

  def split(name):
    _, mixtures = table(f"{name}_mixture")
    columns, losses = table(f"{name}_pile_loss")
    np.testing.assert_array_equal(mixtures[:, 0], losses[:, 0])
    weights = mixtures[:, 1:] / mixtures[:, 1:].sum(axis=1, keepdims=True)
    return weights, -losses[:, columns.index("metric/the_pile_pile_cc_val_loss")]

  (weights, scores), (held_out, truth) = split("train"), split("test")
  space = Space.simplex("domain", [str(i) for i in range(weights.shape[1])])
  rhos = []
  for seed in range(5):
    chosen = np.random.default_rng(seed).permutation(len(weights))[:64]
    fitted = fit(Observations(weights[chosen], scores[chosen]), space)
    rhos.append(spearmanr(fitted.predict(held_out)[0], truth)[0])
  assert np.mean(rhos) >= 0.95, rhos
