import dataclasses
import itertools

import numpy as np
import pytest
import scipy.integrate
from scipy.stats import norm

from mixjax.search.constraints import Constraints
from mixjax.search.multifidelity import Hyperparameters, condition, fit
from mixjax.search.observations import Observations, matches
from mixjax.search.policies.admire import (
  Admire,
  AdmireMultiFidelity,
  draw_joint_maxima,
  max_value_gain,
)
from mixjax.search.policies.within import narrowed
from mixjax.search.process import JITTER
from mixjax.search.space import Space, candidates

SPACE = Space.simplex("domain", "abc")
# In random order, so that the first few are spread out as all are.
SPACE = SPACE.with_pool(np.random.default_rng(0).permutation(candidates(SPACE, 200, 0)))
POOL = SPACE.pool
CHEAP = 0.05
HYPER = Hyperparameters((0.3, 0.5, 0.8), (0.9, 1.5, 0.7), 1.2, 0.6, 1.7, 0.2)


def bumps(points, centers, heights):
  squared = np.sum((points[:, None] - np.array(centers)) ** 2, axis=-1)
  return np.exp(-squared / 2 / 0.14**2) @ np.array(heights)


def target(points):
  """Four hills; the highest has a small basin."""
  centers = [[0.7, 0.15, 0.15], [0.1, 0.75, 0.15], [0.2, 0.2, 0.6], [0.45, 0.1, 0.45]]
  return bumps(points, centers, [0.8, 0.9, 1.2, 0.5])


def informative(points):
  return target(points) - 0.5 + 0.3 * points[:, 0]


def unrelated(points):
  centers = [[0.5, 0.45, 0.05], [0.05, 0.4, 0.55], [0.3, 0.3, 0.4]]
  return bumps(points, centers, [1.0, 1.0, 0.8])


def two_levels(cheap, count):
  """`count` runs of the target and as many cheap ones on other mixtures."""
  points = POOL[: 2 * count]
  scores = np.concatenate([target(points[:count]), cheap(points[count:])])
  return Observations(points, scores, fidelity=np.repeat([1.0, CHEAP], count))


def matern(x, y, lengths):
  r = np.sqrt(5) * np.linalg.norm((x[:, None] - y) / np.array(lengths), axis=-1)
  return (1 + r + r**2 / 3) * np.exp(-r)


def kernel(x, s, y, t, hyper=HYPER):
  fading = (1 - s[:, None]) * (1 - t) * (1 + s[:, None] * t) ** hyper.power
  bias = hyper.bias_amplitude**2 * matern(x, y, hyper.bias_lengths)
  return hyper.amplitude**2 * matern(x, y, hyper.lengths) + fading * bias


@pytest.mark.parametrize("coordinates", ["raw", "sqrt"])
@pytest.mark.parametrize("stated", [False, True])
def test_the_process_is_the_linear_truncated_kernel_conditioned_on_the_runs(coordinates, stated):
  rng = np.random.default_rng(0)
  change = np.sqrt if coordinates == "sqrt" else np.asarray
  shares = np.tile([0.0, CHEAP, 0.3, 1.0], 5)
  stderr = rng.uniform(0, 0.2, 20) if stated else None
  runs = Observations(POOL[:20], target(POOL[:20]) + shares, stderr, shares)
  process = condition(runs, SPACE, HYPER, coordinates=coordinates)

  scale, center = runs.scores.std(), runs.scores.mean()
  x, new, at = change(POOL[:20]), change(POOL[20:60]), rng.uniform(0, 1, 40)
  noise = 0.2**2 + JITTER + (0 if stderr is None else (stderr / scale) ** 2)
  gram = kernel(x, shares, x, shares) + noise * np.eye(20)
  standardised = (runs.scores - center) / scale

  def posterior(y, t, z, u):
    cross = kernel(y, t, x, shares) @ np.linalg.solve(gram, kernel(x, shares, z, u))
    return scale**2 * (kernel(y, t, z, u) - cross)

  mean, sd = process.predict(POOL[20:60], at)
  ours = kernel(new, at, x, shares) @ np.linalg.solve(gram, standardised)
  np.testing.assert_allclose(mean, center + scale * ours, rtol=0, atol=1e-9)
  expected = posterior(new, at, new, at)
  np.testing.assert_allclose(sd, np.sqrt(np.diag(expected)), rtol=0, atol=1e-8)
  joint_mean, joint = process.joint(POOL[20:60], at)
  np.testing.assert_allclose(joint_mean, mean, rtol=0, atol=1e-12)
  np.testing.assert_allclose(joint, expected, rtol=0, atol=1e-9)
  np.testing.assert_allclose(
    process.covariance(POOL[20:60], at, POOL[25], at[5]), expected[:, 5], rtol=0, atol=1e-9
  )
  np.testing.assert_allclose(
    process.covariance_with_target(POOL[20:60], at),
    np.diag(posterior(new, at, new, np.ones(40))),
    rtol=0,
    atol=1e-9,
  )
  density = scipy.stats.multivariate_normal(cov=gram).logpdf(standardised)
  assert process.log_marginal == pytest.approx(density, rel=1e-9)


def test_the_fit_is_a_maximum():
  runs = two_levels(informative, 12)
  fitted = fit(runs, SPACE)
  typical = np.sqrt(2 * 2 / (3 * 4))
  medians = [typical] * 6 + [1, 1, 1, 0.1]
  spreads = np.array([1.0] * 8 + [0.5, 1.5])
  names = [field.name for field in dataclasses.fields(Hyperparameters)]

  def flat(hyper):
    return np.hstack([getattr(hyper, name) for name in names])

  def posterior(values):
    hyper = Hyperparameters(tuple(values[:3]), tuple(values[3:6]), *values[6:])
    z = np.log(values / np.array(medians)) / spreads
    return condition(runs, SPACE, hyper).log_marginal - 0.5 * np.sum(z**2)

  best = posterior(flat(fitted.hyper))
  for i in range(10):
    for factor in (0.8, 1.25):
      values = flat(fitted.hyper)
      values[i] *= factor
      assert posterior(values) < best


def test_cheap_runs_help_to_predict_the_target():
  few = two_levels(informative, 28)
  few = Observations(few.mixtures[24:], few.scores[24:], fidelity=few.fidelity[24:])
  alone, rest = few.at_target(), POOL[100:]
  errors = [np.std(fit(r, SPACE).predict(rest, 1.0)[0] - target(rest)) for r in (few, alone)]
  assert errors[0] < 0.5 * errors[1]


def test_the_correlation_of_fidelities_is_found():
  for cheap in informative, unrelated:
    truth = np.corrcoef(cheap(POOL), target(POOL))[0, 1]
    found = fit(two_levels(cheap, 30), SPACE).fidelity_correlation(CHEAP)
    assert found == pytest.approx(truth, abs=0.1)
    assert found > 0.9 if cheap is informative else abs(found) < 0.2
  # Few runs tell more where both fidelities ran the same mixtures.
  apart = two_levels(unrelated, 10)
  same = np.tile(POOL[:10], (2, 1))
  scores = np.concatenate([target(POOL[:10]), unrelated(POOL[:10])])
  together = Observations(same, scores, fidelity=apart.fidelity)
  apart, together = (fit(r, SPACE).fidelity_correlation(CHEAP) for r in (apart, together))
  assert together < apart - 0.2
  process = fit(two_levels(unrelated, 5), SPACE)
  assert process.fidelity_correlation(1.0) == pytest.approx(1)
  # The expected covariance over the expected spreads, here by drawing both functions.
  points = POOL[:15]
  mean, covariance = process.joint(np.tile(points, (2, 1)), np.repeat([CHEAP, 1.0], 15))
  values, vectors = np.linalg.eigh(covariance)
  drawn = np.random.default_rng(0).normal(size=(20_000, 30)) * np.sqrt(np.maximum(values, 0))
  drawn = (mean + drawn @ vectors.T).reshape(-1, 2, 15)
  drawn -= drawn.mean(axis=2, keepdims=True)
  spread = np.einsum("nai,nbi->ab", drawn, drawn)
  expected = spread[0, 1] / np.sqrt(spread[0, 0] * spread[1, 1])
  assert process.fidelity_correlation(CHEAP, points) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("rho", [0.999999, 0.95, 0.6, -0.6, 0.1])
@pytest.mark.parametrize("gamma", [-4.0, -1.0, 0.0, 1.5, 4.0])
def test_max_value_gain_equals_integration_of_the_density(gamma, rho):
  rest = np.sqrt(1 - rho**2)

  def integrand(y):
    log_density = norm.logpdf(y) + norm.logcdf((gamma - rho * y) / rest) - norm.logcdf(gamma)
    return -np.exp(log_density) * log_density

  pieces = sorted({-12.0, 12.0, *np.clip(gamma / rho + np.array([-9, 0, 9]) * rest, -12, 12)})
  entropy = sum(
    scipy.integrate.quad(integrand, a, b, epsrel=1e-11, limit=200)[0]
    for a, b in itertools.pairwise(pieces)
  )
  assert max_value_gain(gamma, rho) == pytest.approx(norm.entropy() - entropy, abs=1e-7)


def test_max_value_gain_equals_monte_carlo():
  rng = np.random.default_rng(0)
  sd, noise, gamma = 0.7, 0.4, 0.5
  f = sd * rng.normal(size=2_000_000)
  y = f + noise * rng.normal(size=len(f))

  def entropy(draws):
    share, edges = np.histogram(draws, bins=400)
    share = share[share > 0] / len(draws)
    return -np.sum(share * np.log(share)) + np.log(edges[1] - edges[0])

  expected = entropy(y) - entropy(y[f <= gamma * sd])
  found = max_value_gain(gamma, sd / np.hypot(sd, noise))
  assert found == pytest.approx(expected, abs=2e-3) and found > 0.1
  # A run that has nothing to do with f tells nothing; nor does a maximum out of reach.
  assert max_value_gain(1.0, 0.0) == pytest.approx(0, abs=1e-12)
  assert max_value_gain(40.0, 0.9) == pytest.approx(0, abs=1e-12)
  assert np.isfinite(max_value_gain(np.linspace(-1e3, 1e3, 99), np.linspace(-1, 1, 99))).all()


def test_maxima_are_drawn_from_the_posterior_at_the_target():
  process = fit(two_levels(informative, 4), SPACE)
  pair = POOL[[150, 160]]
  mean, covariance = process.joint(pair, 1.0)
  spread = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
  gap = (mean[0] - mean[1]) / spread
  expected = mean[0] * norm.cdf(gap) + mean[1] * norm.cdf(-gap) + spread * norm.pdf(gap)
  drawn = draw_joint_maxima(process, pair, 40_000, 0)
  assert drawn.mean() == pytest.approx(expected, abs=4 * drawn.std() / 200)


def test_the_choice_tells_most_about_the_maximum_per_cost():
  costs = {CHEAP: 0.2, 1.0: 1.0}
  policy = AdmireMultiFidelity(SPACE, costs, draws=4)
  runs = two_levels(informative, 4)
  process = fit(runs, SPACE)
  maxima = draw_joint_maxima(process, POOL, 4, 7)
  best = {}
  for share, cost in costs.items():
    gains = []
    mean, covariance = process.joint(np.tile(POOL, (2, 1)), np.repeat([1.0, share], 200))
    for i in range(200):
      sd = np.sqrt(covariance[i, i])
      rho = covariance[i, 200 + i] / sd
      rho /= np.sqrt(covariance[200 + i, 200 + i] + process.noise_sd**2)
      gains.append(np.mean(max_value_gain((maxima - mean[i]) / sd, rho)) / cost)
    gains = np.where(matches(POOL, runs.mixtures[runs.fidelity == share]), -1, gains)
    best[share] = (max(gains), POOL[np.argmax(gains)])
  winner = max(best, key=lambda share: best[share][0])
  mixtures, fidelity = policy.ask_with_fidelity(runs, 1, 7)
  assert fidelity == winner
  np.testing.assert_array_equal(mixtures[0], best[winner][1])
  np.testing.assert_array_equal(policy.ask(runs, 1, 7)[0], best[1.0][1])
  # A cheap run that costs as much as the target has no advantage left, and one for nothing has all.
  dear, free = (AdmireMultiFidelity(SPACE, {CHEAP: c, 1.0: 1.0}) for c in (1.0, 1e-6))
  assert dear.ask_with_fidelity(runs, 1, 7)[1] == 1.0
  assert free.ask_with_fidelity(runs, 1, 7)[1] == CHEAP


@pytest.mark.parametrize("key", [0, *(pytest.param(k, marks=pytest.mark.slow) for k in (2, 4))])
def test_an_informative_cheap_fidelity_finds_the_optimum_at_half_the_cost(key):
  def regret(advice):
    top = target(POOL).max()
    return (top - target(advice.mixture[None])[0]) / (top - np.median(target(POOL)))

  policy = AdmireMultiFidelity(SPACE, {CHEAP: CHEAP, 1.0: 1.0})
  runs = Observations(np.zeros((0, 3)), np.zeros(0), fidelity=np.zeros(0))
  while runs.fidelity.sum() < 4:
    mixtures, fidelity = policy.ask_with_fidelity(runs, 1, key)
    scores = np.where(fidelity == 1, target(mixtures), informative(mixtures))
    runs = Observations(
      np.concatenate([runs.mixtures, mixtures]),
      np.append(runs.scores, scores),
      fidelity=np.append(runs.fidelity, fidelity),
    )
  assert runs.fidelity.sum() < 5
  assert regret(policy.recommend(runs)) < 0.05

  single, runs = Admire(SPACE), Observations.none(SPACE)
  while len(runs) < 10:
    mixtures = single.ask(runs, 1, key)
    scores = np.append(runs.scores, target(mixtures))
    runs = Observations(np.concatenate([runs.mixtures, mixtures]), scores)
    assert regret(single.recommend(runs)) > 0.05


def test_single_fidelity_finds_the_optimum_of_something_smooth():
  best = POOL[37]

  def smooth(points):
    return -np.sum((points - best) ** 2, axis=1)

  policy, runs = Admire(SPACE), Observations.none(SPACE)
  while len(runs) < 12:
    asked = policy.ask(runs, 2, 1)
    assert not matches(asked, runs.mixtures).any() and not matches(asked[:1], asked[1:]).any()
    scores = np.append(runs.scores, smooth(asked))
    runs = Observations(np.concatenate([runs.mixtures, asked]), scores)
  advice = policy.recommend(runs)
  gaps = smooth(POOL).max() - smooth(np.stack([advice.mixture, np.median(POOL, axis=0)]))
  assert gaps[0] < 0.02 * gaps[1]
  assert abs(advice.mean - smooth(advice.mixture[None])[0]) < 0.02


def test_a_batch_is_asked_for_at_once_or_one_by_one():
  runs = two_levels(informative, 5)
  # Pending runs are taken to be the cheapest asked for, which the last policy always chooses.
  nearly_free = AdmireMultiFidelity(SPACE, {CHEAP: 1e-6, 1.0: 1.0})
  for ask in (
    Admire(SPACE).ask,
    AdmireMultiFidelity(SPACE, {CHEAP: CHEAP, 1.0: 1.0}).ask,
    lambda *arguments: nearly_free.ask_with_fidelity(*arguments)[0],
  ):
    together = ask(runs, 4, 0)
    waiting = np.zeros((0, 3))
    for _ in range(4):
      then = dataclasses.replace(runs, pending=waiting)
      waiting = np.concatenate([waiting, ask(then, 1, 0)])
    np.testing.assert_array_equal(waiting, together)

  policy = AdmireMultiFidelity(SPACE, {CHEAP: CHEAP, 1.0: 1.0})
  mixtures, fidelity = policy.ask_with_fidelity(runs, 6, 0)
  again = policy.ask_with_fidelity(runs, 6, 0)
  np.testing.assert_array_equal(mixtures, again[0])
  np.testing.assert_array_equal(fidelity, again[1])
  rows = np.column_stack([mixtures, fidelity])
  assert len(np.unique(rows, axis=0)) == 6
  for share in CHEAP, 1.0:
    seen = runs.mixtures[runs.fidelity == share]
    assert not matches(mixtures[fidelity == share], seen).any()
  then = dataclasses.replace(runs, pending=mixtures)
  assert not matches(policy.ask_with_fidelity(then, 6, 0)[0], mixtures).any()
  assert not matches(policy.ask(then, 6, 0), np.concatenate([mixtures, runs.mixtures[:5]])).any()


def test_the_first_runs_are_random_and_cheap():
  policy = AdmireMultiFidelity(SPACE, {1.0: 1.0, CHEAP: CHEAP}, seeds=3)
  nothing = Observations.none(SPACE)
  mixtures, fidelity = policy.ask_with_fidelity(nothing, 5, 2)
  assert (fidelity == CHEAP).all()
  np.testing.assert_array_equal(mixtures, Admire(SPACE).ask(nothing, 5, 2))
  runs = Observations(mixtures[:2], informative(mixtures[:2]), fidelity=fidelity[:2])
  then, fidelity = policy.ask_with_fidelity(runs, 2, 2)
  np.testing.assert_array_equal(then[0], mixtures[2])
  assert fidelity[0] == CHEAP and not matches(then[1:], mixtures[:3]).all()


def test_each_fidelity_can_have_its_own_candidates():
  pools = {CHEAP: POOL[:40], 1.0: POOL[100:130]}
  bare = Space.simplex("domain", "abc")
  policy = AdmireMultiFidelity(bare, {CHEAP: CHEAP, 1.0: 1.0}, pools)
  points = np.concatenate([POOL[:5], POOL[100:105]])
  scores = np.concatenate([informative(points[:5]), target(points[5:])])
  runs = Observations(points, scores, fidelity=np.repeat([CHEAP, 1.0], 5))
  mixtures, fidelity = policy.ask_with_fidelity(runs, 60, 0)
  assert matches(mixtures[fidelity == CHEAP], POOL[5:40]).sum() == 35
  assert matches(mixtures[fidelity == 1], POOL[105:130]).sum() == 25
  assert matches(policy.recommend(runs).mixture[None], POOL[100:130]).all()
  with pytest.raises(ValueError, match="only 60 not yet run"):
    policy.ask_with_fidelity(runs, 61, 0)
  with pytest.raises(ValueError, match="no pool"):
    AdmireMultiFidelity(bare, {CHEAP: CHEAP, 1.0: 1.0}).ask_with_fidelity(runs, 1, 0)


def test_the_recommendation_is_the_highest_posterior_mean_at_the_target():
  runs = two_levels(informative, 6)
  multi = AdmireMultiFidelity(SPACE, {CHEAP: CHEAP, 1.0: 1.0}).recommend(runs)
  mean, sd = fit(runs, SPACE).predict(POOL, 1.0)
  best = np.argmax(mean)
  np.testing.assert_array_equal(multi.mixture, POOL[best])
  assert (multi.mean, multi.sd) == pytest.approx((mean[best], sd[best]))
  # With one fidelity only the highest counts, whatever the unit of its budget.
  steps = dataclasses.replace(runs, fidelity=4000 * runs.fidelity)
  alone = Observations(runs.mixtures[:6], runs.scores[:6])
  for policy in Admire(SPACE), Admire(SPACE, fidelity=0.3), Admire(SPACE, coordinates="sqrt"):
    advice, same = policy.recommend(steps), policy.recommend(alone)
    np.testing.assert_array_equal(advice.mixture, same.mixture)
    assert advice.mean == same.mean and advice.sd > 0
    np.testing.assert_array_equal(policy.ask(steps, 2, 0), policy.ask(alone, 2, 0))
  floored = Space.simplex("domain", "abc", floor=0.3)
  floored = floored.with_pool(candidates(floored, 50, 0))
  assert (Admire(floored).recommend(runs).mixture >= floored.lower - 1e-12).all()


HOSTILE = {
  "one run": (POOL[:1], [0.3], [1.0]),
  "one cheap run": (POOL[:1], [0.3], [CHEAP]),
  "constant": (POOL[:8], [2.0] * 8, [CHEAP, 1.0] * 4),
  "one mixture, two scores": (POOL[[0, 0]], [0.0, 1.0], [1.0, 1.0]),
  "corners": (np.eye(3), [0.0, 1.0, 2.0], [CHEAP, CHEAP, 1.0]),
  "one outlier": (POOL[:8], [0.0] * 7 + [1e9], [CHEAP, 1.0] * 4),
  "free": (POOL[:8], np.arange(8.0), [0.0, 1.0] * 4),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_runs_give_finite_answers(name):
  mixtures, scores, fidelity = HOSTILE[name]
  runs = Observations(mixtures, scores, fidelity=fidelity)
  process = fit(runs, SPACE)
  for share in 0.0, CHEAP, 1.0:
    assert np.isfinite(process.predict(POOL, share)).all()
    assert -1 <= process.fidelity_correlation(share) <= 1
  policy = AdmireMultiFidelity(SPACE, {CHEAP: CHEAP, 1.0: 1.0})
  advice = policy.recommend(runs)
  assert np.isfinite([advice.mean, advice.sd]).all()
  assert policy.ask_with_fidelity(runs, 2, 0)[0].shape == (2, 3)
  assert Admire(SPACE).ask(runs, 2, 0).shape == (2, 3)


def test_what_cannot_be_answered_says_why():
  runs = two_levels(informative, 4)
  with pytest.raises(ValueError, match=r"fidelity 4000.0 is no share .* divide every budget"):
    fit(dataclasses.replace(runs, fidelity=4000 * runs.fidelity), SPACE)
  with pytest.raises(ValueError, match="'raw' or 'sqrt', not 'log'"):
    fit(runs, SPACE, coordinates="log")
  with pytest.raises(ValueError, match="at least one finished run"):
    Admire(SPACE).recommend(Observations.none(SPACE))
  with pytest.raises(ValueError, match="pass at most 1024"):
    fit(runs, SPACE).joint(np.tile(POOL, (6, 1)), 1.0)
  with pytest.raises(ValueError, match="needs a pool"):
    fit(runs, Space.simplex("domain", "abc")).fidelity_correlation(CHEAP)
  with pytest.raises(ValueError, match="2 length-scales for 3"):
    condition(runs, SPACE, dataclasses.replace(HYPER, bias_lengths=(1.0, 1.0)))
  with pytest.raises(ValueError, match=r"in \(0, 1\], not 2"):
    Admire(SPACE, fidelity=2)
  with pytest.raises(ValueError, match=r"with 1, not \[0.05\]"):
    AdmireMultiFidelity(SPACE, {CHEAP: 1.0})
  with pytest.raises(ValueError, match="costs are above 0"):
    AdmireMultiFidelity(SPACE, {CHEAP: 0.0, 1.0: 1.0})
  with pytest.raises(ValueError, match=r"pools at \[0.5\]"):
    AdmireMultiFidelity(SPACE, {CHEAP: 0.1, 1.0: 1.0}, {0.5: POOL})
  for policy in Admire(SPACE), AdmireMultiFidelity(SPACE, {CHEAP: 0.1, 1.0: 1.0}):
    with pytest.raises(ValueError, match="at least one"):
      policy.ask(runs, 0, 0)
    with pytest.raises(ValueError, match="has only"):
      policy.ask(runs, 201, 0)


def test_under_constraints_a_narrowed_space_is_all_it_takes():
  constraints = Constraints(SPACE, upper={"a": 0.3})
  policy = AdmireMultiFidelity(narrowed(SPACE, constraints), {1.0: 1.0, CHEAP: CHEAP})
  runs = two_levels(informative, 12)
  mixtures, shares = policy.ask_with_fidelity(runs, 3, 0)
  chosen = np.concatenate([mixtures, policy.recommend(runs).mixture[None]])
  assert constraints.within(chosen).all() and set(shares) <= {1.0, CHEAP}
  free = AdmireMultiFidelity(SPACE, {1.0: 1.0, CHEAP: CHEAP})
  assert not constraints.within(free.ask_with_fidelity(runs, 3, 0)[0]).all()
