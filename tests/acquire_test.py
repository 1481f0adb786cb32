import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Matern

from mixjax.search import acquire, process
from mixjax.search.acquire import (
  KAPPA,
  choose_batch,
  draw_maxima,
  log_expected_improvement,
  rate_candidates,
  upper_confidence_bound,
)
from mixjax.search.coordinates import reference
from mixjax.search.observations import Observations
from mixjax.search.process import JITTER
from mixjax.search.space import Space, candidates
from mixjax.search.surrogate import Hyperparameters, condition

SPACE = Space.simplex("five", list("abcde"))
POOL = candidates(SPACE, 300, 0)
RUNS = 12
SCORES = POOL[:RUNS, 0] - POOL[:RUNS, 1] ** 2
SURROGATE = condition(
  Observations(POOL[:RUNS], SCORES), SPACE, Hyperparameters((2.0,) * 5, 1.0, 0.1)
)
UNSEEN = POOL[RUNS:]
OTHERS = ("log_ei", "max_value_entropy", "thompson")


def seen(points):
  return np.sqrt(points) / np.sqrt(reference(SPACE)).std(axis=0)


def test_the_bound_is_mean_plus_kappa_sd():
  bound = upper_confidence_bound(np.array([1.0, 2.0]), np.array([3.0, 0.0]))
  np.testing.assert_array_equal(bound, [1 + 3 * KAPPA, 2])


def test_the_first_choice_is_the_papers():
  mean, sd = SURROGATE.predict(UNSEEN)
  assert choose_batch(SURROGATE, UNSEEN, 1, kappa=3.0) == [np.argmax(mean + 3 * sd)]


@pytest.mark.parametrize("acquisition", ["ucb", "log_ei"])
@pytest.mark.parametrize("pending", [None, UNSEEN[[7, 7, 200]]])
def test_a_batch_is_what_refitting_with_hallucinated_runs_would_choose(pending, acquisition):
  """GP-BUCB by its definition: each choice is added as a run at its predicted mean."""

  def refitted(mixtures):
    standardised = (SCORES - SCORES.mean()) / SCORES.std()
    model = GaussianProcessRegressor(Matern(2.0, nu=2.5), alpha=0.1**2 + JITTER, optimizer=None)
    model.fit(seen(POOL[:RUNS]), standardised)
    if len(mixtures):
      told = np.concatenate([standardised, model.predict(seen(mixtures))])
      model.fit(seen(np.concatenate([POOL[:RUNS], mixtures])), told)
    best = model.predict(seen(np.concatenate([POOL[:RUNS], mixtures]))).max()
    return *model.predict(seen(UNSEEN), return_std=True), best

  told = np.zeros((0, 5)) if pending is None else pending
  expected = []
  for _ in range(6):
    mean, sd, best = refitted(np.concatenate([told, UNSEEN[expected]]))
    gain = (mean - best) / sd
    improvement = sd * (stats.norm.pdf(gain) + gain * stats.norm.cdf(gain))
    value = {"ucb": mean + KAPPA * sd, "log_ei": improvement}[acquisition]
    value[expected] = -np.inf
    expected.append(int(np.argmax(value)))
  chosen = choose_batch(
    SURROGATE, UNSEEN, 6, acquisition=acquisition, observed=POOL[:RUNS], pending=pending
  )
  assert chosen.tolist() == expected


@pytest.mark.parametrize("acquisition", ["ucb", "log_ei", "max_value_entropy"])
def test_a_short_list_changes_nothing(monkeypatch, acquisition):
  options = dict(acquisition=acquisition, observed=POOL[:RUNS])
  pending = UNSEEN[choose_batch(SURROGATE, UNSEEN, 20, **options)]
  everything = choose_batch(SURROGATE, UNSEEN, 8, pending=pending, **options)
  monkeypatch.setattr(acquire, "SHORTLIST", 4)
  short = choose_batch(SURROGATE, UNSEEN, 8, pending=pending, **options)
  assert short.tolist() == everything.tolist()


def test_log_expected_improvement_is_the_integral_far_into_the_tail():
  """With t = -z, E[max(x + z, 0)] = pdf(t) / t^2 times the integral of w e^(-w - w^2 / 2t^2)."""
  z = np.concatenate([-np.logspace(-1, 9, 41), [-0.99999, -1, -1.00001, -999.99, -1000.01]])
  scaled = [
    integrate.quad(lambda w, t: w * np.exp(-w - (w / t) ** 2 / 2), 0, 60, (-t,), epsabs=0)[0]
    for t in z
  ]
  expected = stats.norm.logpdf(z) - 2 * np.log(-z) + np.log(scaled)
  improvement = rate_candidates("log_ei", 3 + 0.5 * z, np.full(len(z), 0.5), 3.0)
  np.testing.assert_allclose(improvement, expected + np.log(0.5), rtol=1e-8)
  better = rate_candidates("log_ei", np.array([0.0, 1.0, 40.0]), np.ones(3), 0.0)
  gained = [stats.norm.expect(lambda x: max(x, 0), loc=m, lb=0) for m in (0.0, 1.0)]
  np.testing.assert_allclose(np.exp(better), [*gained, 40.0], rtol=1e-8)


@pytest.mark.parametrize("z", [-1e4, -300, -99, -30, -5, -1.01, -1, -0.99, 0, 0.7, 4, 40])
@pytest.mark.parametrize("sd", [1e-3, 2.0])
def test_log_expected_improvement_equals_quadrature(z, sd):
  # f - best = sd (z + e), so that E max(f - best, 0) = sd integral of t phi(t - z) over t > 0. With
  # t = scale v, and exp(-z^2 / 2) outside where z is below zero.
  scale = 1 / max(1, -z)
  outside = -0.5 * z**2 if z < 0 else 0.0

  def integrand(v):
    t = scale * v
    return t * np.exp(t * z - 0.5 * t**2 if z < 0 else -0.5 * (t - z) ** 2)

  pieces = [0, z, z + 40] if z > 0 else [0, 5, 60]
  value = sum(
    integrate.quad(integrand, a, b, epsabs=0, epsrel=1e-12, limit=200)[0]
    for a, b in itertools.pairwise(pieces)
  )
  expected = np.log(sd * scale * value / np.sqrt(2 * np.pi)) + outside
  (found,) = rate_candidates("log_ei", np.array([3 + z * sd]), np.array([sd]), 3.0)
  assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_log_expected_improvement_is_finite_and_has_its_gradient_everywhere():
  hopeless = rate_candidates("log_ei", np.array([-1e300, -1.0, 0, 1]), np.zeros(4), 0.0)
  assert np.isfinite(hopeless).all() and hopeless[3] == 0 and hopeless[1] < -1e100
  z = np.concatenate([-np.logspace(-3, 8, 34), [0.0, -1.0, -1000.0, 0.5, 30.0]])
  with process.exact():
    value, pull = jax.vjp(
      jax.jit(lambda m, s: log_expected_improvement(m, s, 0.0)), jnp.asarray(z), jnp.ones(len(z))
    )
    value, by_mean, by_sd = (np.asarray(x) for x in (value, *pull(jnp.ones(len(z)))))
  near = z > -1e3
  expected = np.exp(stats.norm.logcdf(z) - value)
  np.testing.assert_allclose(by_mean[near], expected[near], rtol=1e-6)
  # There log EI is -z^2 / 2 - 2 log(-z) and a constant.
  np.testing.assert_allclose(by_mean[~near], -z[~near] - 2 / z[~near], rtol=1e-9)
  assert np.isfinite(by_sd).all() and (by_sd[z < 30] > 0).all()


def test_max_value_entropy_is_what_a_score_below_a_known_maximum_loses():
  mean, sd, maxima = np.array([0.0, 1.0, -4.0]), np.array([1.0, 0.5, 2.0]), np.array([1.2, 2.5])
  lost = [
    [stats.norm(m, s).entropy() - stats.truncnorm(-60, (y - m) / s, m, s).entropy() for y in maxima]
    for m, s in zip(mean, sd, strict=True)
  ]
  information = rate_candidates("max_value_entropy", mean, sd, maxima)
  np.testing.assert_allclose(information, np.mean(lost, axis=1), rtol=1e-6)
  nothing = rate_candidates("max_value_entropy", mean, np.zeros(3), maxima)
  np.testing.assert_array_equal(nothing, 0)


def test_drawn_maxima_have_the_spread_of_the_highest_of_independent_scores():
  rng = np.random.default_rng(0)
  mean, sd = rng.normal(size=50), rng.uniform(0.2, 1, 50)
  highest = (mean + sd * rng.normal(size=(20_000, 50))).max(axis=1)
  drawn = draw_maxima(mean, sd, 20_000, 0)
  levels = [0.25, 0.5, 0.75]
  np.testing.assert_allclose(np.quantile(drawn, levels), np.quantile(highest, levels), atol=0.04)
  assert drawn.min() >= mean.max()
  np.testing.assert_array_equal(draw_maxima(np.ones(3), np.zeros(3), 2, 0), [1, 1])


@dataclasses.dataclass(frozen=True)
class ThreeScores:
  """Nothing but what a choice may ask for: beliefs about the three vertices of a simplex."""

  mean: np.ndarray
  covariance: np.ndarray
  space: Space = dataclasses.field(default_factory=lambda: Space.simplex("three", "abc"))
  noise_sd: float = 0.1

  def joint(self, points):
    places = np.argmax(points, axis=1)
    return self.mean[places], self.covariance[np.ix_(places, places)]

  def predict(self, points):
    mean, covariance = self.joint(points)
    return mean, np.sqrt(np.diag(covariance))


CORRELATED = ThreeScores(
  np.array([0.0, 0.3, 0.1]), np.array([[1.0, 0.7, -0.2], [0.7, 0.6, -0.1], [-0.2, -0.1, 0.3]])
)


@pytest.mark.slow
def test_thompson_chooses_each_candidate_as_often_as_it_is_the_best():
  rng = np.random.default_rng(1)
  draws = rng.multivariate_normal(CORRELATED.mean, CORRELATED.covariance, 400_000)
  expected = np.bincount(np.argmax(draws, axis=1)) / len(draws)
  thompson = dict(acquisition="thompson", key=5)
  chosen = [
    # More runs known, another draw: one key serves a whole search.
    choose_batch(CORRELATED, np.eye(3), 1, observed=np.tile(np.eye(3)[:1], (n, 1)), **thompson)[0]
    for n in range(1000)
  ]
  found = np.bincount(chosen) / len(chosen)
  assert np.abs(found - expected).max() < 4 * np.sqrt(0.25 / len(chosen))
  later = choose_batch(CORRELATED, np.eye(3), 1, pending=np.eye(3)[[0] * 7], **thompson)[0]
  assert later == chosen[7]


def test_thompson_takes_singular_covariances_and_leaves_out_the_hopeless():
  same = ThreeScores(np.array([0.0, 0.0, -9.0]), np.ones((3, 3)))
  chosen = [choose_batch(same, np.eye(3), 1, acquisition="thompson", key=k)[0] for k in range(20)]
  assert set(chosen) <= {0, 1}
  assert acquire._contenders(np.array([0.0, -1.0, -20.0]), np.ones(3), 1).tolist() == [0, 1]
  known = ThreeScores(np.array([0.0, 2.0, 1.0]), np.zeros((3, 3)))
  for acquisition in OTHERS:
    observed = np.eye(3)[:1]
    best = choose_batch(known, np.eye(3), 3, acquisition=acquisition, observed=observed)
    assert sorted(best) == [0, 1, 2]
    assert best[0] == 1 or acquisition == "max_value_entropy"


@pytest.mark.parametrize("acquisition", OTHERS)
def test_other_acquisitions_answer_alike_when_asked_alike_and_spread(acquisition):
  def ask(key, pending=None):
    options = dict(acquisition=acquisition, observed=POOL[:RUNS], key=key)
    return choose_batch(SURROGATE, UNSEEN, 8, pending=pending, **options).tolist()

  assert ask(3) == ask(3) and len(set(ask(3))) == 8
  assert (ask(3) == ask(4)) == (acquisition == "log_ei")
  assert ask(3, UNSEEN[ask(3)[:2]]) != ask(3)


def test_choices_differ_even_when_nothing_is_left_to_learn():
  same = np.tile(POOL[:1], (5, 1))
  assert sorted(choose_batch(SURROGATE, same, 5).tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("count", [0, 289])
def test_more_than_there_is_cannot_be_chosen(count):
  with pytest.raises(ValueError, match=f"cannot choose {count} of 288"):
    choose_batch(SURROGATE, UNSEEN, count)


def test_what_an_acquisition_lacks_is_named():
  with pytest.raises(ValueError, match="give them as observed"):
    choose_batch(SURROGATE, UNSEEN, 1, acquisition="log_ei")
  with pytest.raises(ValueError, match="not 'magic'"):
    choose_batch(SURROGATE, UNSEEN, 1, acquisition="magic")
