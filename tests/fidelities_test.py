import numpy as np
import pytest
from linked_runs import CHEAP, POOL, SEEDS, SPACE, TARGET, landscape, observe

from mixjax.search import coordinates, fidelities, total
from mixjax.search.fidelities import Linked
from mixjax.search.observations import Observations, matches
from mixjax.search.policies.mixatlas import MixAtlas
from mixjax.search.process import JITTER

pytestmark = pytest.mark.xdist_group("linked_runs")


@pytest.fixture(scope="module")
def informed():
  """Runs at a correlation of 0.9, the truth, and the process of all runs, for each seed."""
  seen = [observe(seed, 0.9) for seed in SEEDS]
  return [(runs, truth, fidelities.fit(runs, SPACE)) for runs, truth in seen]


@pytest.fixture(scope="module")
def alone(informed):
  return [total.fit(runs.at_target(), SPACE) for runs, _, _ in informed]


def test_the_posterior_is_that_of_one_process_over_all_runs():
  stderr = np.linspace(0, 0.2, TARGET + CHEAP)
  runs, _ = observe(1, 0.9, stderr)
  linked = fidelities.fit(runs, SPACE)
  (cheap,), rest, (slope,) = linked.cheap, linked.rest, linked.slopes

  def kernel(fitted, a, b):
    hyper, reference = fitted.hyper, coordinates.reference(SPACE)
    at = (hyper.coordinates.exponent, hyper.coordinates.offset)
    mean, sd = (np.asarray(v) for v in coordinates.spread(reference, *at))
    a, b = (
      (np.asarray(coordinates.transform(x, *at)) - mean) / sd / np.array(hyper.lengths)
      for x in (a, b)
    )
    r = np.sqrt(5 * np.sum((a[:, None] - b[None]) ** 2, axis=2))
    return (fitted.data.scale * hyper.amplitude) ** 2 * (1 + r + r**2 / 3) * np.exp(-r)

  def covariance(a, at_a, b, at_b):
    """`at_a` and `at_b` are 1 at the target, 0 at the cheap fidelity."""
    shared = np.where(at_a, slope, 1.0)[:, None] * np.where(at_b, slope, 1.0)
    return shared * kernel(cheap, a, b) + np.outer(at_a, at_b) * kernel(rest, a, b)

  at = np.repeat([1.0, 0.0], [TARGET, CHEAP])
  jitter = JITTER * np.where(at, linked.scale, cheap.data.scale) ** 2
  noise = np.where(at, rest.noise_sd, cheap.noise_sd) ** 2 + jitter + stderr**2
  gram = covariance(runs.mixtures, at, runs.mixtures, at) + np.diag(noise)
  centers = np.array([cheap.data.center, slope * cheap.data.center + rest.data.center])
  left = runs.scores - centers[at.astype(int)]
  points = POOL[-30:]
  cross = covariance(points, np.ones(30), runs.mixtures, at)
  expected = centers[1] + cross @ np.linalg.solve(gram, left)
  prior = covariance(points, np.ones(30), points, np.ones(30))
  after = prior - cross @ np.linalg.solve(gram, cross.T)
  # The slope is not certain, most where cheap runs are not such as those around runs of the target.
  apart = cheap.predict(points)[0] - linked.expected[0].predict(points)[0]
  after = after + linked.error[0, 0] * np.outer(apart, apart)
  mean, sd = linked.predict(points)
  np.testing.assert_allclose(mean, expected, atol=1e-4)
  np.testing.assert_allclose(sd, np.sqrt(np.diag(after)), rtol=1e-4)
  together, joint = linked.joint(points)
  np.testing.assert_allclose(together, mean, atol=1e-9)
  np.testing.assert_allclose(joint, after, atol=1e-4)


def test_cheap_runs_that_say_much_help(informed, alone):
  """The cheap scores have other units and another offset, on other mixtures."""
  errors, inside, regrets = [], [], []
  for (_, truth, linked), without in zip(informed, alone, strict=True):
    assert isinstance(linked, Linked)
    mean, sd = linked.predict(POOL)
    bare = without.predict(POOL)[0]
    errors.append([np.sqrt(np.mean((m - truth) ** 2)) for m in (mean, bare)])
    inside.append(np.abs(mean - truth) < 1.96 * sd)
    regrets.append([truth.max() - truth[np.argmax(m)] for m in (mean, bare)])
  ratio = np.exp(np.mean(np.log(errors), axis=0))
  assert ratio[0] < 0.75 * ratio[1]
  assert np.mean(inside) > 0.8
  assert np.mean(regrets, axis=0)[0] < np.mean(regrets, axis=0)[1]
  slopes = [linked.slopes[0] for _, _, linked in informed]
  assert np.median(slopes) == pytest.approx(0.9 / 0.4, rel=0.25)


def test_cheap_runs_that_say_nothing_do_no_harm(alone):
  """Not one bit of it: the target's runs are those of before, and so is what they make probable."""
  for seed, without in zip(SEEDS, alone, strict=True):
    runs, _ = observe(seed, 0.0)
    for ours, theirs in zip(
      fidelities.fit(runs, SPACE).predict(POOL), without.predict(POOL), strict=True
    ):
      np.testing.assert_array_equal(ours, theirs)


def test_the_policy_learns_from_them(informed):
  runs, _, linked = informed[2]
  policy = MixAtlas(SPACE, seeds=8)
  advice, bare = (policy.recommend(one) for one in (runs, runs.at_target()))
  known = np.concatenate([POOL, runs.mixtures])
  best = np.argmax(linked.predict(known)[0])
  np.testing.assert_array_equal(advice.mixture, known[best])
  assert advice.mean == pytest.approx(linked.predict(known[best][None])[0][0])
  assert advice.sd < bare.sd
  asked = policy.ask(runs, 3, 0)
  assert not np.array_equal(asked, policy.ask(runs.at_target(), 3, 0))
  # What ran at the cheap fidelity alone may run at the target.
  (again,) = MixAtlas(SPACE.with_pool(runs.mixtures), seeds=8).ask(runs, 1, 0)
  assert matches(runs.mixtures[TARGET:], again[None]).any()


def test_equal_fidelities_change_nothing(informed):
  runs = informed[0][0].at_target()
  bare = Observations(runs.mixtures, runs.scores)
  policy = MixAtlas(SPACE, seeds=8)
  np.testing.assert_array_equal(policy.ask(runs, 3, 0), policy.ask(bare, 3, 0))
  ours, theirs = policy.recommend(runs), policy.recommend(bare)
  np.testing.assert_array_equal(ours.mixture, theirs.mixture)
  assert (ours.mean, ours.sd) == (theirs.mean, theirs.sd)


def test_each_part_has_a_slope_of_its_own(informed):
  """One benchmark goes along with the cheap fidelity, the other does not."""
  seen = [informed[3][0].scores, observe(3, 0.0)[0].scores]
  parts = np.stack(seen, axis=1)
  first = informed[3][0]
  runs = Observations(first.mixtures, parts.sum(axis=1), fidelity=first.fidelity, parts=parts)
  fitted = fidelities.fit(runs, SPACE)
  assert [isinstance(one, Linked) for one in fitted.processes] == [True, False]
  mean, sd = fitted.predict(POOL[:20])
  each = np.array([one.predict(POOL[:20]) for one in fitted.processes])
  np.testing.assert_allclose(mean, each[:, 0].sum(axis=0))
  joint = fitted.joint(POOL[:20])[1]
  np.testing.assert_allclose(np.sqrt(np.diag(joint)), sd, rtol=1e-6)


def test_a_fidelity_that_cannot_predict_itself_is_not_asked(monkeypatch):
  """What is fitted to noise by chance goes along with 12 runs of the target."""
  rows, target = np.tile(np.arange(TARGET), 2), landscape(0)[:TARGET]

  def linked(seed):
    scores = np.concatenate([target, np.random.default_rng(seed).normal(size=TARGET)])
    runs = Observations(POOL[rows], scores, fidelity=np.repeat([2.0, 1.0], TARGET))
    return isinstance(fidelities.fit(runs, SPACE), Linked)

  assert sum(map(linked, range(16))) <= 1
  monkeypatch.setattr(fidelities, "SKILL", -np.inf)
  assert sum(map(linked, range(16))) >= 4


def test_few_runs_of_the_target_cannot_tell(informed):
  runs, _, _ = informed[2]
  few = runs.only(np.r_[:8, TARGET : TARGET + CHEAP])
  assert not isinstance(fidelities.fit(few, SPACE), Linked)
