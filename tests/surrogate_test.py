import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern

from mixjax.search import flat, process, surrogate, tables
from mixjax.search.coordinates import LOG, SQRT, reference
from mixjax.search.observations import Observations
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


def seen(points):
  """Square-root coordinates in sds over the space, as the process sees them."""
  return np.sqrt(points) / np.sqrt(reference(SPACE)).std(axis=0)


@pytest.mark.parametrize("count", [3, 16, 50, 100])
def test_posterior_and_log_marginal_equal_scikit_learn(count):
  rng = np.random.default_rng(count)
  observed = runs(count)
  stderr = 0.05 * rng.uniform(size=count)
  observed = Observations(observed.mixtures, observed.scores, stderr)
  lengths = rng.uniform(1, 5, SPACE.dim)
  ours = condition(observed, SPACE, Hyperparameters(tuple(lengths), 1.3, 0.1))

  scale = observed.scores.std()
  theirs = GaussianProcessRegressor(
    ConstantKernel(1.3**2) * Matern(lengths, nu=2.5),
    alpha=0.1**2 + process.JITTER + (stderr / scale) ** 2,
    optimizer=None,
  ).fit(seen(observed.mixtures), (observed.scores - observed.scores.mean()) / scale)
  mean, sd = theirs.predict(seen(POINTS[100:]), return_std=True)
  our_mean, our_sd = ours.predict(POINTS[100:])
  np.testing.assert_allclose(our_mean, observed.scores.mean() + scale * mean, rtol=0, atol=1e-8)
  np.testing.assert_allclose(our_sd, scale * sd, rtol=0, atol=1e-8)
  np.testing.assert_allclose(ours.log_marginal, theirs.log_marginal_likelihood_value_, rtol=1e-8)
  _, covariance = theirs.predict(seen(POINTS[100:]), return_cov=True)
  joint_mean, joint = ours.joint(POINTS[100:])
  np.testing.assert_allclose(joint_mean, our_mean, rtol=0, atol=1e-8)
  np.testing.assert_allclose(joint, scale**2 * covariance, rtol=0, atol=1e-8)


def test_leave_one_out_equals_leaving_each_run_out():
  observed = runs(12)
  lengths = np.linspace(1, 4, SPACE.dim)
  whole = condition(observed, SPACE, Hyperparameters(tuple(lengths), 1.0, 0.2))
  left_out = whole.leave_one_out()
  standardised = (observed.scores - observed.scores.mean()) / observed.scores.std()
  for i in range(12):
    keep = np.arange(12) != i
    noise = 0.2**2 + process.JITTER
    theirs = GaussianProcessRegressor(Matern(lengths, nu=2.5), alpha=noise, optimizer=None).fit(
      seen(observed.mixtures[keep]), standardised[keep]
    )
    (mean,), (sd,) = theirs.predict(seen(observed.mixtures[[i]]), return_std=True)
    center, scale = observed.scores.mean(), observed.scores.std()
    assert left_out.mean[i] == pytest.approx(center + scale * mean, abs=1e-9)
    assert left_out.sd[i] == pytest.approx(scale * np.sqrt(sd**2 + noise), abs=1e-9)
  inside = np.abs(left_out.mean - observed.scores) <= 1.96 * left_out.sd
  assert left_out.coverage == pytest.approx(inside.mean())


@pytest.fixture(scope="module")
def fitted_to_60():
  return fit(runs(60, noise=0.05), SPACE)


def test_the_fit_predicts_and_covers(fitted_to_60):
  mean, sd = fitted_to_60.predict(POINTS[60:])
  truth = smooth(POINTS[60:])
  assert spearmanr(mean, truth)[0] > 0.95
  assert 0.9 <= np.mean(np.abs(mean - truth) <= 1.96 * sd) <= 1
  assert fitted_to_60.leave_one_out().coverage > 0.85


def test_the_mode_is_a_maximum(fitted_to_60):
  observed, hyper = runs(60, noise=0.05), fitted_to_60.hyper

  def posterior(hyper):
    z = np.log(np.divide(hyper.lengths, flat.LENGTH * SPACE.dim**0.5))
    logit = np.log(hyper.coordinates.exponent / (0.5 - hyper.coordinates.exponent))
    z = np.concatenate([
      z / flat.LENGTH_SPREAD,
      [
        np.log(hyper.amplitude) / flat.AMPLITUDE_SPREAD,
        np.log(hyper.noise / flat.NOISE) / flat.NOISE_SPREAD,
        (logit - surrogate.EXPONENT_LOGIT) / surrogate.EXPONENT_SPREAD,
        np.log(hyper.coordinates.offset / surrogate.OFFSET) / surrogate.OFFSET_SPREAD,
      ],
    ])  # fmt: skip
    return condition(observed, SPACE, hyper).log_marginal - 0.5 * np.sum(z**2)

  def changed(name, factor):
    if name in ("exponent", "offset"):
      old = hyper.coordinates
      moved = dataclasses.replace(old, **{name: getattr(old, name) * factor})
      return dataclasses.replace(hyper, coordinates=moved)
    if name in ("amplitude", "noise"):
      return dataclasses.replace(hyper, **{name: getattr(hyper, name) * factor})
    lengths = list(hyper.lengths)
    lengths[name] *= factor
    return dataclasses.replace(hyper, lengths=tuple(lengths))

  best = posterior(hyper)
  for name in (0, 7, 14, "amplitude", "noise", "exponent", "offset"):
    for factor in (0.9, 1.1):
      assert posterior(changed(name, factor)) < best, (name, factor)


def test_draws_surround_the_mode_and_widen_the_intervals():
  observed = runs(16)
  mode, averaged = (fit(observed, SPACE, draws=n) for n in (1, 16))
  assert mode.hyper == averaged.hyper
  assert averaged.predict(POINTS)[1].mean() > mode.predict(POINTS)[1].mean()
  lengths = np.log(np.asarray(averaged.draws.lengths))
  assert lengths.shape == (16, SPACE.dim) and lengths.std(0).min() > 0.05
  np.testing.assert_allclose(lengths.mean(0), np.log(mode.hyper.lengths), atol=1e-9)
  with pytest.raises(ValueError, match="in pairs"):
    fit(observed, SPACE, draws=3)


def test_coordinates_are_learnt_or_given():
  """A score that is linear in the logarithms is known as such, one linear in the roots too."""
  logs = Observations(POINTS[:80], np.log(POINTS[:80] + 1e-4) @ np.linspace(-1, 1, SPACE.dim))
  roots = Observations(POINTS[:80], np.sqrt(POINTS[:80]) @ np.linspace(-1, 1, SPACE.dim))
  exponents = [fit(o, SPACE, draws=1).hyper.coordinates.exponent for o in (logs, roots)]
  assert exponents[0] < 0.15 < 0.3 < exponents[1]
  assert fit(roots, SPACE, draws=1, coordinates=LOG).hyper.coordinates == LOG
  by_root, by_log = (fit(roots, SPACE, draws=1, coordinates=c).log_marginal for c in (SQRT, LOG))
  assert by_root > by_log


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
  "huge": (POINTS[:9], 1e90 * smooth(POINTS[:9])),
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


def test_gradients_equal_differences():
  data = process.Data.of(runs(20), SPACE)
  arrays = (np.zeros(3), (True, True), reference(SPACE), *surrogate._arrays(data))
  z = 0.3 * np.random.default_rng(2).normal(size=SPACE.dim + 5)
  with process.exact():
    _, gradient = surrogate._negative_log_posterior(z, *arrays)
    for i in range(len(z)):
      shift = 1e-5 * np.eye(len(z))[i]
      up, down = (surrogate._negative_log_posterior(z + s, *arrays)[0] for s in (shift, -shift))
      assert gradient[i] == pytest.approx(float(up - down) / 2e-5, abs=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_no_numbers_are_refused(bad):
  with pytest.raises(ValueError, match=f"scores of run 2 is {bad}"):
    fit(Observations(POINTS[:3], [0.0, 1.0, bad]), SPACE)
  with pytest.raises(ValueError, match="stderr of run 1"):
    fit(Observations(POINTS[:2], [0.0, 1.0], [0.1, bad]), SPACE)
  with pytest.raises(ValueError, match="at least one"):
    fit(Observations.none(SPACE), SPACE)


def test_a_run_that_diverged_does_not_flatten_the_others():
  observed = runs(60)
  scores = observed.scores.copy()
  worst = int(np.argmin(scores))
  scores[worst] = -1e6
  fitted = fit(Observations(observed.mixtures, scores), SPACE)
  mean, _ = fitted.predict(POINTS[100:])
  assert np.corrcoef(mean, smooth(POINTS[100:]))[0, 1] > 0.9
  assert fitted.predict(observed.mixtures[[worst]])[0][0] < np.quantile(mean, 0.05)
  # Many bad runs are what the scores are like, and stay as they are.
  scores[np.argsort(scores)[:6]] = -1e6 - np.arange(6)
  data = process.Data.of(Observations(observed.mixtures, scores), SPACE)
  told = data.center + data.scale * data.residuals[:60]
  np.testing.assert_allclose(told, scores, atol=1e-6)


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
  many = candidates(SPACE, process.CHUNK + 10, 5)
  mean, sd = fitted.predict(many)
  few_mean, few_sd = fitted.predict(many[-20:])
  np.testing.assert_allclose(few_mean, mean[-20:], atol=1e-12)
  np.testing.assert_allclose(few_sd, sd[-20:], atol=1e-9)
  assert fitted.predict(many[:0])[0].shape == (0,)


def test_recorded_proxy_runs_are_ranked_from_64_of_them(regmix):
  """RegMix's 1M-parameter runs: loss on Pile-CC, fitted on 64 of 512, judged on the 256 others."""
  table = tables.read(regmix)
  losses = table.metrics["metric/the_pile_pile_cc_val_loss"]
  weights, scores = table.mixtures[~table.test], -losses[~table.test]
  held_out, truth = table.mixtures[table.test], -losses[table.test]
  space = Space.simplex("domain", [str(i) for i in range(weights.shape[1])])
  rhos = []
  for seed in range(5):
    chosen = np.random.default_rng(seed).permutation(len(weights))[:64]
    fitted = fit(Observations(weights[chosen], scores[chosen]), space)
    rhos.append(spearmanr(fitted.predict(held_out)[0], truth)[0])
  assert np.mean(rhos) >= 0.965, rhos
