import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax.search import coordinates, design, moments, process, structured
from mixjax.search import maximize as maximize_lib
from mixjax.search.acquire import KAPPA, choose_batch, rate, rate_candidates
from mixjax.search.constraints import Constraints, Group
from mixjax.search.coordinates import Coordinates
from mixjax.search.maximize import maximize
from mixjax.search.observations import Observations, matches
from mixjax.search.space import Space, candidates
from mixjax.search.surrogate import Hyperparameters, condition
from mixjax.search.total import Total


def make_space(floor=0.0):
  space = Space.product(("maps", "charts", "faces", "signs"), ("text", "ocr", "vqa"), floor=floor)
  return space.with_pool(candidates(space, 2000, 0))


# One shape for all, as each new one costs seconds of compilation.
SPACE = make_space()
POOL = SPACE.pool
NONE = POOL[:0]
PEAK = candidates(SPACE, 8, 123)[3]
TILTED = [0.6, 0.05, 0.3, 0.05, 0.1, 0.7, 0.2]
ACQUISITIONS = ("ucb", "log_ei", "max_value_entropy")


def truth(mixtures, peak):
  """Smooth, and highest at the peak."""
  return -np.sum((np.sqrt(mixtures) - np.sqrt(peak)) ** 2, axis=1)


def fitted(space=SPACE, count=12, peak=PEAK, how=(coordinates.LOG, coordinates.SQRT), length=2.0):
  """A process with two draws of the hyper-parameters."""
  mixtures = candidates(space, count, 1)
  runs = Observations(mixtures, truth(mixtures, peak))
  noise = 0.2 / length
  each = [
    condition(runs, space, Hyperparameters((scale,) * space.dim, 1.0, noise, one))
    for one, scale in zip(how, (length, 1.5 * length), strict=True)
  ]
  draws = jax.tree.map(lambda a, b: np.concatenate([a, b]), *(one.draws for one in each))
  return dataclasses.replace(each[0], draws=draws)


PROCESS = fitted()
RUNS = PROCESS.data.rows[: PROCESS.count]


def parameter_of(acquisition, surrogate):
  best = surrogate.predict(surrogate.data.rows[: surrogate.count])[0].max()
  return {"ucb": KAPPA, "log_ei": best}.get(acquisition, best + np.linspace(0.1, 0.3, 64))


def rated(acquisition, surrogate, points):
  parameter = parameter_of(acquisition, surrogate)
  return rate_candidates(acquisition, *surrogate.predict(points), parameter)


def moments_at(points, told=NONE, **parts):
  with process.exact():
    model = moments.Sum.of(**{"parts": [PROCESS], "weights": None, "correlation": None} | parts)
    return moments.moments_at(model, moments.Told.of(told), points)


@pytest.mark.parametrize("floor", [0.0, 0.3])
@pytest.mark.parametrize("acquisition", ["ucb", "log_ei"])
def test_all_of_a_pool_is_worse_and_no_bound_is_broken(floor, acquisition):
  space = make_space(floor)
  surrogate = fitted(space, peak=space.pool[1900])
  (point,) = maximize([surrogate], acquisition=acquisition)
  value, pool = (rated(acquisition, surrogate, p) for p in (point[None], space.pool))
  assert value[0] > pool.max() + 1e-3
  np.testing.assert_allclose(np.bincount(space.block, point), 1, atol=1e-9)
  assert (point >= space.lower - 1e-9).all()


def test_the_highest_posterior_mean_is_at_the_edge_where_the_peak_is():
  peak = SPACE.from_dict(dict(zip(SPACE.names, [0.6, 0.4, 0, 0, 0, 0.2, 0.8], strict=True)))
  surrogate = fitted(count=16, peak=peak, how=(coordinates.SQRT,) * 2, length=20.0)
  (point,) = maximize([surrogate], kappa=0.0, repeat=True)
  assert truth(point[None], peak)[0] > truth(POOL, peak).max()
  assert (point[peak == 0] < 1e-3).all()


def test_means_and_sds_are_those_of_the_process_also_after_runs_are_told():
  points, told = POOL[:40], POOL[[5, 60, 60]]
  np.testing.assert_allclose(moments_at(points), PROCESS.predict(points), rtol=1e-6)
  mean, covariance = PROCESS.joint(np.concatenate([points, told]))
  cross, among = covariance[:40, 40:], covariance[40:, 40:]
  noisy = among + PROCESS.noise_sd**2 * np.eye(3)
  variance = np.diag(covariance)[:40] - np.sum(cross * np.linalg.solve(noisy, cross.T).T, axis=1)
  np.testing.assert_allclose(moments_at(points, told), (mean[:40], np.sqrt(variance)), rtol=1e-6)


def test_a_sum_of_processes_is_maximised_as_the_sum():
  parts = (PROCESS, fitted(peak=POOL[1900]))
  correlation = np.array([[1, -0.6], [-0.6, 1]])
  whole = Total(parts, correlation, PROCESS.data, PROCESS.count)
  found = moments_at(POOL[:40], parts=parts, correlation=correlation)
  np.testing.assert_allclose(found, whole.predict(POOL[:40]), rtol=1e-6)
  points = maximize(parts, 3, correlation=correlation)
  (value, pool) = (rate("ucb", *whole.predict(p), KAPPA) for p in (points, POOL))
  assert value[0] > pool.max() + 1e-3
  assert np.abs(points[1:] - points[0]).max(axis=1).min() > 1e-3
  # Each process is told its own part of a run, so none is left surer than another of it.
  told = moments_at(POOL[:40], points, parts=parts, correlation=correlation)[1]
  alone = [moments_at(POOL[:40], points, parts=[one])[1] for one in parts]
  variance = alone[0] ** 2 + alone[1] ** 2 - 1.2 * alone[0] * alone[1]
  np.testing.assert_allclose(told, np.sqrt(variance), rtol=1e-6)
  # Weights that are negative turn losses into scores; one of 0 leaves a process out.
  weights = np.array([-2.0, 0.0])
  mean, sd = PROCESS.predict(POOL[:40])
  np.testing.assert_allclose(
    moments_at(POOL[:40], parts=parts, weights=weights), (-2 * mean, 2 * sd), rtol=1e-6
  )


def test_gradients_are_those_of_finite_differences_also_near_the_edge():
  corner = np.eye(7)[[0]] + np.eye(7)[[5]]
  points = 0.999 * np.concatenate([POOL[40:44], corner]) + 0.001 * SPACE.uniform()
  told = moments.Told.of(POOL[[3]])
  with process.exact():
    model = moments.Sum.of([PROCESS], None, None)
    best = parameter_of("log_ei", PROCESS)

    @jax.jit
    def value_and_slope(points):
      believed = moments.moments_of(model, told)
      value, pull = jax.vjp(lambda p: rate("log_ei", *believed(p), best), points)
      return value, pull(jnp.ones_like(value))[0]

    slope = np.asarray(value_and_slope(points)[1])
    assert np.abs(slope[-1]).max() > 1
    step = 1e-7
    for place in range(7):
      shift = step * np.eye(7)[place]
      up, down = (np.asarray(value_and_slope(points + s)[0]) for s in (shift, -shift))
      np.testing.assert_allclose(slope[:, place], (up - down) / (2 * step), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("acquisition", ACQUISITIONS)
def test_vertices_are_climbed_from_without_nan_whatever_the_coordinates(acquisition):
  vertices = np.array([np.eye(7)[c] + np.eye(7)[4 + t] for c in range(4) for t in range(3)])
  starts = np.concatenate([vertices] * 3)[: maximize_lib.BEST + maximize_lib.RANDOM]
  for how in (coordinates.RAW, coordinates.SQRT, coordinates.LOG, Coordinates(0.3, 1e-9)):
    for count in (1, 12):
      surrogate = fitted(count=count, how=(how, how))
      parameter = np.asarray(parameter_of(acquisition, surrogate))
      with process.exact():
        model = moments.Sum.of([surrogate], None, None)
        told = moments.Told.of(vertices[:2])
        points, values = maximize_lib._climb(model, told, acquisition, parameter, starts)
        before = moments.moments_at(model, told, 0.999 * starts + 0.001 * SPACE.uniform())
      points, values = np.asarray(points), np.asarray(values)
      assert np.isfinite(points).all() and np.isfinite(values).all() and (points >= 0).all()
      # The k-th highest end is above the k-th highest start.
      highest = np.sort(rate_candidates(acquisition, *before, parameter))[-len(values) :]
      assert len(values) == maximize_lib.LEADERS and (np.sort(values) >= highest - 1e-3).all()


@pytest.mark.parametrize("acquisition", ACQUISITIONS)
def test_a_batch_is_new_spread_and_the_same_when_asked_again(acquisition):
  options = dict(acquisition=acquisition, pending=POOL[[7, 7, 200]], key=3)
  points = maximize([PROCESS], 4, **options)
  np.testing.assert_array_equal(points, maximize([PROCESS], 4, **options))
  assert (np.abs(points[:, None] - points).max(axis=2) + np.eye(4)).min() > 1e-3
  assert not matches(points, np.concatenate([RUNS, options["pending"]])).any()


def test_a_batch_is_better_than_that_from_the_pool_and_pending_runs_push_it_away():
  first = maximize([PROCESS], 1, key=3)
  then = maximize([PROCESS], 1, key=3, pending=first)
  assert np.abs(first - then).max() > 1e-3
  values = []
  for batch in (maximize([PROCESS], 4), POOL[choose_batch(PROCESS, POOL, 4)]):
    told = [moments_at(batch[[n]], batch[:n]) for n in range(4)]
    values.append(np.sum([mean + KAPPA * sd for mean, sd in told]))
  assert values[0] > values[1] + 1e-3


LIMITS = {
  "sums": Constraints(
    SPACE,
    upper={"maps": 0.3, "ocr": 0.35},
    groups=[Group("people", ("maps", "faces"), 0.2, 0.4), Group("read", ("text", "ocr"), high=0.6)],
  ),
  "caps": Constraints(SPACE, caps=np.random.default_rng(5).uniform(0.09, 0.2, 12)),
}


@pytest.mark.parametrize("kind", LIMITS)
@pytest.mark.parametrize("acquisition", ["ucb", "log_ei"])
def test_under_constraints_no_step_that_stays_within_leads_higher(kind, acquisition):
  limits = LIMITS[kind]
  inside = design.pool(SPACE, 300, 0, limits)
  surrogate = fitted(peak=SPACE.from_dict(dict(zip(SPACE.names, TILTED, strict=True))))
  known = RUNS[limits.within(RUNS)]
  assert 0 < len(known) < len(RUNS)
  best = surrogate.predict(known)[0].max()
  parameter = {"ucb": KAPPA, "log_ei": best}[acquisition]

  def value(points):
    return rate_candidates(acquisition, *surrogate.predict(points), parameter)

  (free,) = maximize([surrogate], acquisition=acquisition)
  points = maximize([surrogate], 3, acquisition=acquisition, constraints=limits)
  assert not limits.within(free[None])[0] and limits.within(points).all()
  assert (np.abs(points[:, None] - points).max(axis=2) + np.eye(3)).min() > 1e-3
  steps = np.array([1e-3, 1e-2, 0.1, 0.5, 1])[:, None, None] * (inside - points[0])
  around = np.concatenate(points[0] + steps)
  around = around[limits.within(around)]
  assert len(around) > 500
  assert value(around).max() <= value(points[:1])[0] + 1e-6


def test_under_constraints_that_leave_few_weights_or_one_mixture():
  sparse = Constraints(SPACE, at_most=2)
  points = maximize([PROCESS], 3, constraints=sparse)
  assert sparse.within(points).all()
  inside = design.pool(SPACE, 200, 0, sparse)
  assert rated("ucb", PROCESS, points[:1])[0] > rated("ucb", PROCESS, inside).max()
  single = Constraints(SPACE, upper=SPACE.uniform())
  (point,) = maximize([PROCESS], constraints=single, repeat=True)
  np.testing.assert_allclose(point, SPACE.uniform(), atol=1e-9)
  with pytest.raises(ValueError, match="all points of product are known"):
    maximize([PROCESS], constraints=single, pending=point[None])


def test_what_is_known_comes_out_again_only_if_that_is_wanted():
  surrogate = fitted(make_space(1.0), 1)
  with pytest.raises(ValueError, match="all points of product are known"):
    maximize([surrogate])
  np.testing.assert_allclose(maximize([surrogate], repeat=True), [SPACE.uniform()], rtol=1e-12)


@pytest.mark.slow
def test_a_structured_process_is_climbed_as_it_sees_cells():
  cells = [f"{concept}/{task}" for concept in "abc" for task in ("ocr", "vqa")]
  space = Space.simplex("joint", cells)
  space = space.with_pool(candidates(space, 200, 0))
  mixtures = candidates(space, 12, 1)
  surrogate = structured.fit(Observations(mixtures, truth(mixtures, space.pool[7])), space, draws=1)
  points = space.pool[:20]
  seen = moments_at(points, space.pool[:0], parts=[surrogate])
  np.testing.assert_allclose(seen, surrogate.predict(points), rtol=1e-6)
  (found,) = maximize([surrogate], kappa=0.0, repeat=True)
  assert surrogate.predict(found[None])[0] >= surrogate.predict(space.pool)[0].max()


def test_more_runs_need_no_new_compilation():
  programs = maximize_lib._climb, moments._moments
  maximize([PROCESS])
  before = [program._cache_size() for program in programs]
  # Pending ones and all but the last of a batch are told: 16 at most fill one size.
  for count in (1, 13, 16):
    maximize([fitted(count=count)], 2, pending=POOL[: count - 1], kappa=1.0)
  assert before == [program._cache_size() for program in programs]


def test_what_cannot_be_maximised_says_why():
  with pytest.raises(ValueError, match="at least one"):
    maximize([PROCESS], 0)
  with pytest.raises(ValueError, match="choose_batch with a pool"):
    maximize([PROCESS], acquisition="thompson")
  with pytest.raises(ValueError, match="not 'magic'"):
    maximize([PROCESS], acquisition="magic")
  with pytest.raises(ValueError, match="process 1 was fitted to other mixtures"):
    maximize([PROCESS, fitted(count=11)])
  with pytest.raises(ValueError, match="weights of shape"):
    maximize([PROCESS], weights=np.ones(2))
  one = dataclasses.replace(PROCESS, draws=jax.tree.map(lambda x: x[:1], PROCESS.draws))
  with pytest.raises(ValueError, match="another form or number of draws"):
    maximize([PROCESS, one])
