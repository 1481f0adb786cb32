import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import spearmanr

from mixjax.search import flat, process, surrogate, total
from mixjax.search.acquire import choose_batch
from mixjax.search.coordinates import Coordinates, reference
from mixjax.search.observations import Observations
from mixjax.search.space import Space, candidates
from mixjax.search.structured import Grid, fit, fit_by_evidence, form_of
from mixjax.search.surrogate import Hyperparameters, condition

CONCEPTS, TASKS = 10, 5
SPACE = Space.simplex("joint", [f"c{i}/t{j}" for i in range(CONCEPTS) for j in range(TASKS)])
POINTS = candidates(SPACE, 1000, 0)
# Six cells of a grid of 3 x 3, neither in order nor complete.
PARTIAL = Space.simplex("joint", ["b/z", "a/x", "c/y", "a/z", "b/x", "c/x"])
GRID = Grid(("b", "a", "c"), ("z", "x", "y"), ((0, 0), (1, 1), (2, 2), (1, 0), (0, 1), (2, 1)))


def additive(points):
  """Scores that hang on whole concepts and whole tasks alone."""
  grid = points.reshape(-1, CONCEPTS, TASKS)
  concepts = np.sqrt(grid.sum(axis=2)) @ np.linspace(-1, 1, CONCEPTS)
  return concepts + np.sqrt(grid.sum(axis=1)) @ np.array([1.0, -1.0, 0.5, 0.0, -0.5])


def runs(count, score=additive, noise=0.02, seed=0):
  rng = np.random.default_rng(seed)
  mixtures = POINTS[rng.permutation(500)[:count]]
  return Observations(mixtures, score(mixtures) + noise * rng.normal(size=count))


def reference_covariance(a, b, hyper):
  """The kernel of GRID on PARTIAL, one pair and one part at a time."""
  concepts = [[0, 4], [1, 3], [2, 5]]
  tasks = [[0, 3], [1, 4, 5], [2]]
  power, offset = hyper.coordinates.exponent, hyper.coordinates.offset

  def columns(p):
    shares = [*p, *(p[c].sum() for c in concepts), *(p[t].sum() for t in tasks)]
    return ((np.array(shares) + offset) ** power - 1) / power

  over_space = np.array([columns(p) for p in reference(PARTIAL)])
  scale = over_space.std(axis=0) * np.array(hyper.lengths)
  answer = np.zeros((len(a), len(b)))
  for i, p in enumerate(a):
    for j, q in enumerate(b):
      apart = (columns(p) - columns(q)) / scale
      for part, amplitude in zip(np.split(apart, [6, 9]), hyper.amplitude, strict=True):
        r = np.sqrt(5 * np.sum(part**2))
        answer[i, j] += amplitude**2 * (1 + r + r**2 / 3) * np.exp(-r)
  return answer


def test_the_posterior_equals_an_independent_reference():
  rng = np.random.default_rng(3)
  points = candidates(PARTIAL, 30, 1)
  scores = rng.normal(size=12)
  lengths = tuple(rng.uniform(0.5, 4, 12))
  hyper = Hyperparameters(lengths, (0.7, 0.4, 1.1), 0.2, Coordinates(0.3, 0.01))
  ours = condition(Observations(points[:12], scores), PARTIAL, hyper, Grid.of(PARTIAL))

  noise = (0.2**2 + process.JITTER) * np.eye(12)
  covariance = reference_covariance(points[:12], points[:12], hyper) + noise
  cross = reference_covariance(points[12:], points[:12], hyper)
  standardised = (scores - scores.mean()) / scores.std()
  mean = cross @ np.linalg.solve(covariance, standardised)
  prior = reference_covariance(points[12:], points[12:], hyper)
  posterior = prior - cross @ np.linalg.solve(covariance, cross.T)
  _, log_determinant = np.linalg.slogdet(2 * np.pi * covariance)
  fitness = standardised @ np.linalg.solve(covariance, standardised)

  our_mean, our_covariance = ours.joint(points[12:])
  np.testing.assert_allclose(our_mean, scores.mean() + scores.std() * mean, rtol=0, atol=1e-9)
  np.testing.assert_allclose(our_covariance, scores.var() * posterior, rtol=0, atol=1e-9)
  sd = scores.std() * np.sqrt(np.diag(posterior))
  np.testing.assert_allclose(ours.predict(points[12:])[1], sd, rtol=0, atol=1e-9)
  assert ours.log_marginal == pytest.approx(-0.5 * (log_determinant + fitness), rel=1e-9)


def test_concepts_and_tasks_come_from_names():
  assert Grid.of(PARTIAL) == GRID
  assert Grid.of(SPACE).shape == (50, 10, 5)
  for bad in ("ocr", "a/b/c", "/ocr", "photos/"):
    space = Space.simplex("joint", ["photos/ocr", bad])
    with pytest.raises(ValueError, match=f"^'{bad}' is not called"):
      fit(Observations(np.full((1, 2), 0.5), [0.0]), space)
  product = Space.product(["photos"], ["ocr", "vqa"])
  with pytest.raises(ValueError, match=r"'photos' .* use surrogate.fit"):
    fit(Observations.none(product), product)


def test_the_search_takes_it_for_grids_of_cells_alone():
  assert form_of(SPACE) == Grid.of(SPACE)
  assert total.fit(runs(8), SPACE).form == Grid.of(SPACE)
  # Every domain its own source and topic, as some tables name them: nothing is shared.
  loose = Space.simplex("domain", ["web/news", "books/novels", "code/python"])
  product = Space.product(["photos", "charts", "maps"], ["ocr", "vqa"])
  for space in (loose, product, Space.simplex("domain", ["a", "b"])):
    assert form_of(space) == flat.FLAT


def test_length_scales_of_cells_follow_concepts_and_tasks():
  """Moving one concept's number moves the length-scales of its cells alone, all alike."""
  size = GRID.size(6)
  assert size == (1 + 6 + 2 * (3 + 3), 1 + 6 + 2 * (3 + 3) + 4)
  with process.exact():
    still, amplitude, noise = (np.asarray(part) for part in GRID.unpack(np.zeros(size[1])))
    moved = np.asarray(GRID.unpack(np.eye(size[1])[2])[0])
  np.testing.assert_allclose(still, 2 * np.sqrt([6] * 6 + [3] * 6))
  np.testing.assert_allclose(np.sum(amplitude**2), 1)
  assert noise == pytest.approx(flat.NOISE)
  # The second concept, "a", has the cells 1 and 3.
  np.testing.assert_allclose(np.log(moved / still), [0, 0.5, 0, 0.5, *[0] * 8], atol=1e-12)


def test_the_kernel_is_positive_definite():
  """Also with runs at the corners, repeated, and length-scales far apart."""
  rng = np.random.default_rng(0)
  mixtures = np.concatenate([np.eye(50), POINTS[:60], POINTS[:20]])
  form = Grid.of(SPACE)
  for _ in range(2):
    z = rng.uniform(-3, 3, form.size(50)[1])
    with process.exact():
      lengths, amplitude, _ = form.unpack(z)
      points = process.Points(form.columns(mixtures), np.ones(len(mixtures)))
      kernel = form.kernel(lengths, amplitude)
      covariance, diagonal = np.asarray(kernel(points, points)), np.asarray(kernel(points))
    np.testing.assert_allclose(covariance, covariance.T, rtol=1e-12)
    np.testing.assert_allclose(np.diag(covariance), diagonal, rtol=1e-10)
    lowest = np.linalg.eigvalsh(covariance)[0]
    assert lowest > -1e-10 * diagonal[0]
    assert np.linalg.eigvalsh(covariance[:110, :110])[0] > 0


def test_gradients_equal_differences():
  form, data = Grid.of(PARTIAL), process.Data.of(partial_runs(), PARTIAL)
  arrays = (np.zeros(3), (True, True), reference(PARTIAL), data.rows, data.real, data.residuals)
  z = 0.3 * np.random.default_rng(2).normal(size=form.size(6)[1] + 3)
  with process.exact():

    def posterior(z):
      return surrogate._negative_log_posterior(z, *arrays, data.variance, form=form)

    _, gradient = posterior(z)
    for i in range(len(z)):
      shift = 1e-5 * np.eye(len(z))[i]
      difference = float(posterior(z + shift)[0] - posterior(z - shift)[0]) / 2e-5
      assert gradient[i] == pytest.approx(difference, abs=1e-6)


def partial_runs():
  mixtures = candidates(PARTIAL, 14, 4)
  return Observations(mixtures, np.sqrt(mixtures) @ np.arange(6.0))


@pytest.fixture(scope="module")
def both_at_32():
  return {name: f(runs(32), SPACE) for name, f in (("flat", surrogate.fit), ("structured", fit))}


def test_on_an_additive_truth_it_beats_a_flat_one(both_at_32):
  judged, truth = POINTS[500:], additive(POINTS[500:])
  means = {name: fitted.predict(judged)[0] for name, fitted in both_at_32.items()}
  rho = {name: spearmanr(mean, truth)[0] for name, mean in means.items()}
  error = {name: np.mean((mean - truth) ** 2) for name, mean in means.items()}
  assert rho["structured"] > 0.85 and rho["structured"] > rho["flat"] + 0.3, rho
  assert error["structured"] < 0.6 * error["flat"], error
  assert both_at_32["structured"].evidence > both_at_32["flat"].evidence + 3


def test_intervals_hold_and_the_answer_serves_the_search(both_at_32):
  fitted = both_at_32["structured"]
  mean, sd = fitted.predict(POINTS[500:])
  assert 0.85 <= np.mean(np.abs(mean - additive(POINTS[500:])) <= 1.96 * sd) <= 1
  assert (fitted.count, fitted.space) == (32, SPACE)
  assert len(fitted.hyper.lengths) == 65 and len(fitted.hyper.amplitude) == 3
  assert fitted.leave_one_out().coverage > 0.8
  joint_mean, covariance = fitted.joint(POINTS[500:520])
  np.testing.assert_allclose(joint_mean, mean[:20], atol=1e-10)
  np.testing.assert_allclose(np.sqrt(np.diag(covariance)), sd[:20], atol=1e-8)
  assert len(set(choose_batch(fitted, POINTS[500:], 4).tolist())) == 4


def test_eight_runs_in_fifty_dimensions_are_sane():
  fitted = fit(runs(8, noise=0.1), SPACE)
  mean, sd = fitted.predict(POINTS[500:])
  truth = additive(POINTS[500:])
  assert np.isfinite(mean).all() and (sd > 0).all()
  assert np.mean(np.abs(mean - truth) <= 1.96 * sd) > 0.75
  # It neither extrapolates nor claims more than the runs show.
  assert np.ptp(mean) < 2 * np.ptp(fitted.data.residuals) * fitted.data.scale
  assert 0.2 * truth.std() < np.median(sd) < 5 * truth.std()


HOSTILE = {
  "one run": (POINTS[:1], [0.3]),
  "constant": (POINTS[:9], [-4.0] * 9),
  "one mixture, many scores": (np.tile(POINTS[:1], (12, 1)), np.arange(12.0)),
  "duplicates without noise": (np.tile(POINTS[:4], (3, 1)), np.tile(additive(POINTS[:4]), 3)),
  "corners": (np.eye(50)[:16], np.arange(16.0)),
  "one outlier": (POINTS[:14], [0.0] * 13 + [1e9]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_runs_give_finite_answers(name):
  mixtures, scores = HOSTILE[name]
  fitted = fit(Observations(mixtures, scores), SPACE)
  mean, sd = fitted.predict(POINTS[:200])
  left_out = fitted.leave_one_out()
  for numbers in (mean, sd, left_out.mean, left_out.sd, fitted.log_marginal, fitted.evidence):
    assert np.isfinite(numbers).all()
  assert (sd >= 0).all()
  if np.ptp(scores) == 0:
    np.testing.assert_allclose(mean, scores[0], atol=1e-9)


def test_the_order_of_the_cells_does_not_matter():
  """Cells in another order, so other concepts and tasks first, make the same predictions."""
  order = np.random.default_rng(1).permutation(6)
  observed, judged = partial_runs(), candidates(PARTIAL, 20, 9)
  hyper = fit(observed, PARTIAL, draws=1).hyper
  pool = candidates(PARTIAL, 300, 0)
  straight = PARTIAL.with_pool(pool)
  shuffled = Space.simplex("joint", [PARTIAL.names[i] for i in order], pool=pool[:, order])
  there = Grid.of(shuffled)
  lengths = dict(zip((*PARTIAL.names, *GRID.concepts, *GRID.tasks), hyper.lengths, strict=True))
  moved = dataclasses.replace(
    hyper, lengths=tuple(lengths[n] for n in (*shuffled.names, *there.concepts, *there.tasks))
  )
  moved_runs = Observations(observed.mixtures[:, order], observed.scores)
  first = condition(observed, straight, hyper, GRID).predict(judged)
  second = condition(moved_runs, shuffled, moved, there).predict(judged[:, order])
  np.testing.assert_allclose(first, second, atol=1e-10)


def test_evidence_chooses_and_repeats():
  one_cell = runs(24, score=lambda points: np.sqrt(points[:, 7]) + np.sqrt(points[:, 31]))
  for observed in (runs(24), one_cell):
    fits = [fit(observed, SPACE), surrogate.fit(observed, SPACE)]
    chosen = fit_by_evidence(observed, SPACE)
    better = max(fits, key=lambda fitted: fitted.evidence)
    assert (chosen.form, chosen.evidence) == (better.form, better.evidence)
    assert chosen.hyper == better.hyper
    np.testing.assert_array_equal(chosen.predict(POINTS[:50]), better.predict(POINTS[:50]))
  assert fit_by_evidence(runs(24), SPACE).form == Grid.of(SPACE)
  assert fit(runs(24), SPACE, draws=1).evidence is None
  with pytest.raises(ValueError, match="at least 2, not 1"):
    fit_by_evidence(runs(24), SPACE, draws=1)


def test_evidence_is_the_integral_over_hyperparameters():
  """With two cells and no bend the posterior is nearly normal; importance sampling agrees."""
  space = Space.simplex("cells", ["a", "b"])
  mixtures = candidates(space, 16, 0)
  noise = 0.3 * np.random.default_rng(0).normal(size=16)
  fitted = surrogate.fit(Observations(mixtures, np.sqrt(mixtures[:, 0]) + noise), space, warp=0.0)
  data = fitted.data
  arrays = (np.zeros(3), (True, False), reference(space), *surrogate._arrays(data))

  def log_probability(z):
    return 0.5 * jnp.sum(z**2) - surrogate._negative_log_posterior(z, *arrays)[0]

  with process.exact():
    draws = jnp.asarray(np.random.default_rng(0).normal(size=(4000, 6)))
    logs = np.asarray(jax.lax.map(log_probability, draws))
  integral = np.log(np.mean(np.exp(logs - np.max(logs)))) + np.max(logs)
  assert fitted.evidence == pytest.approx(integral, abs=0.5)
