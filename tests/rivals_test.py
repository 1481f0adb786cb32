import json
import pathlib
import sys

import numpy as np
import pytest

from mixjax.search import surrogate
from mixjax.search.coordinates import SQRT
from mixjax.search.observations import Observations, matches
from mixjax.search.policies.mixatlas import MixAtlas
from mixjax.search.space import Space, candidates

sys.path.append(str(pathlib.Path(__file__).parent / "benchmarks"))

import rivals
import search_bench
import search_standings
import simplex_functions
import suggestion_bench
from simplex_functions import FUNCTIONS


def small_space(dim=4, size=60):
  space = Space.simplex("domain", [f"w{i}" for i in range(dim)])
  return space.with_pool(candidates(space, size, 0))


def runs_of(space, count, noise=0.0):
  mixtures = space.pool[1 : count + 1]
  errors = noise * np.random.default_rng(1).normal(size=count)
  return Observations(mixtures, FUNCTIONS["hills"](space.dim).value(mixtures) + errors)


class Small:
  """A problem of 300 mixtures."""

  group, name = "small", "hills"

  def objective(self, seed):
    return simplex_functions.recorded(FUNCTIONS["hills"](4), 0.0, seed, size=300)


def needs_its_library(name):
  pytest.importorskip(name.split("-")[0], reason="pip install -r requirements-bench.txt")


@pytest.mark.parametrize("dim", [5, 10, 15, 50])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_highest_where_it_says(name, dim):
  function = FUNCTIONS[name](dim)
  assert function.dim == dim and function.best.sum() == pytest.approx(1)
  assert function.value(function.best[None])[0] == pytest.approx(function.maximum, abs=1e-12)
  space = Space.simplex("domain", [f"w{i}" for i in range(dim)])
  points = candidates(space, 3000, 7)
  values = function.value(points)
  assert np.isfinite(values).all() and values.max() <= function.maximum and np.ptp(values) > 0.01
  # Nor does a small step from the best go up.
  steps = 0.99 * function.best + 0.01 * points
  assert function.value(steps).max() <= function.maximum + 1e-12
  np.testing.assert_allclose(function.value(points[5:6]), values[5:6], rtol=1e-12)


def test_hills_has_other_optima():
  function = FUNCTIONS["hills"](5)
  rng = np.random.default_rng([5, 3])
  for center in rng.dirichlet(np.full(5, 0.5), 5):
    around = 0.999 * center + 0.001 * rng.dirichlet(np.ones(5), 200)
    assert function.value(around).max() <= function.value(center[None])[0]


def test_a_recorded_function_has_noisy_runs_and_an_exact_truth():
  function = FUNCTIONS["interacting"](6)
  exact = simplex_functions.recorded(function, 0.0, 3, size=500)
  noisy = simplex_functions.recorded(function, 0.4, 3, size=500)
  assert len(exact.replicates) == len(noisy.replicates) == 500
  truth = function.value(exact.mixtures)
  np.testing.assert_array_equal(exact.values, truth)
  pairs = noisy.values.reshape(500, 2)
  np.testing.assert_allclose(pairs.mean(axis=1), truth, atol=1e-12)
  assert (pairs[:, 0] - truth).std() == pytest.approx(0.4 * truth.std(), rel=0.15)
  other = simplex_functions.recorded(function, 0.0, 4, size=500)
  assert not np.isclose(other.values, truth).all()


def test_parameters_give_their_mixture_back():
  mixtures = np.concatenate(
    [candidates(small_space(30), 200, 0), np.eye(30), np.full((1, 30), 1 / 30)]
  )
  for mixture in mixtures:
    parameters = rivals.to_parameters(mixture)
    assert (parameters >= rivals.SMALLEST).all() and (parameters <= 1).all()
    np.testing.assert_allclose(rivals.to_mixture(parameters), mixture, atol=1e-9)
  np.testing.assert_allclose(rivals.to_mixture(np.ones(4)), 0.25)


@pytest.mark.parametrize("name", rivals.RIVALS)
def test_a_rival_starts_as_mixatlas_does_and_then_asks_for_what_was_not_run(name):
  space = small_space()
  rival, ours = rivals.RIVALS[name](space, 20), MixAtlas(space, 8)
  first = rival.ask(Observations.none(space), 8, 5)
  np.testing.assert_array_equal(first, ours.ask(Observations.none(space), 8, 5))
  some = Observations(first[:3], np.arange(3.0))
  np.testing.assert_array_equal(rival.ask(some, 4, 5), ours.ask(some, 4, 5))
  needs_its_library(name)
  told = runs_of(space, 12)
  told = Observations(told.mixtures, told.scores, pending=space.pool[20:22])
  asked = rival.ask(told, 2, 5)
  assert matches(asked, space.pool).all() and not matches(asked, told.known()).any()
  assert len(np.unique(asked, axis=0)) == 2
  np.testing.assert_array_equal(asked, rival.ask(told, 2, 5))
  assert matches(rival.recommend(told).mixture[None], space.pool).all()


@pytest.mark.parametrize("name", rivals.RIVALS)
def test_a_rival_finds_more_than_chance(name):
  needs_its_library(name)
  row = search_bench.search(search_bench.Task(Small(), name, 0, 18, 1))
  assert len(row["ask_seconds"]) == 10
  chance = search_bench.search(search_bench.Task(Small(), "random", 0, 18, 1))
  assert row["regret"][:8] == pytest.approx(chance["regret"][:8])  # the same first runs
  assert row["regret"][-1] < chance["regret"][-1]


def test_the_matched_model_is_our_process_on_square_roots():
  needs_its_library("botorch")
  import botorch_parts

  space = small_space(size=200)
  told = runs_of(space, 40, noise=0.05)
  ours = surrogate.fit(told, space, coordinates=SQRT, warp=0.0, draws=1)
  rival = rivals.BoTorchMatched(space, 8)
  mean, sd = botorch_parts.marginals(rival.model(told), rival.features(space.pool))
  our_mean, our_sd = ours.predict(space.pool)
  spread = told.scores.std()
  assert np.abs(mean - our_mean).max() < 0.03 * spread
  assert np.abs(sd - our_sd).max() < 0.03 * spread


def test_expected_improvement_of_a_batch():
  from scipy.stats import norm

  mean, sd, best = 0.3, 0.7, 0.5
  z = (mean - best) / sd
  exact = (mean - best) * norm.cdf(z) + sd * norm.pdf(z)
  one = suggestion_bench.expected_improvement(np.array([mean]), np.array([[sd**2]]), best)
  assert one == pytest.approx(exact, rel=0.02)
  twice = suggestion_bench.expected_improvement(np.full(2, mean), np.full((2, 2), sd**2), best)
  assert twice == pytest.approx(exact, rel=0.02)  # the same mixture twice is no better
  apart = suggestion_bench.expected_improvement(np.full(2, mean), np.eye(2) * sd**2, best)
  assert apart > 1.3 * exact


def test_a_bench_goes_on_from_the_searches_that_are_there(tmp_path, monkeypatch):
  path = tmp_path / "rows.jsonl"
  tasks = [search_bench.Task(Small(), "random", seed, 10, 1) for seed in range(3)]
  rows = search_bench.run(tasks[:2], path, 0)
  # A kill in the middle of the second line.
  path.write_text(path.read_text()[:-30])
  searched = []
  search = search_bench.search
  monkeypatch.setattr(search_bench, "search", lambda t: searched.append(t.seed) or search(t))
  again = search_bench.run(tasks, path, 0)
  assert searched == [1, 2] and again[0] == rows[0]
  assert again[1]["regret"] == rows[1]["regret"]
  assert [*search_bench.read_rows(path).values()] == [json.loads(json.dumps(r)) for r in again]


def make_row(policy, seed, problem, regret, typical=2.0):
  return {
    "label": f"{problem} {policy} {seed}",
    "problem": problem,
    "policy": policy,
    "seed": seed,
    "evaluations": len(regret),
    "regret": regret,
    "typical": typical,
    "found_at": regret.index(0) + 1 if 0 in regret else None,
    "recommended": {"regret": regret[-1]},
    "seconds": 1.0,
    "ask_seconds": [0.1, 0.2, 0.6],
  }


def test_standings_are_means_over_seeds_of_means_over_problems():
  rows = [
    make_row(policy, seed, problem, [4.0, 2.0 + seed + (policy == "random"), last], typical)
    for policy, last in (("random", 1.0), ("mixatlas", 0))
    for seed in range(3)
    for problem, typical in (("a", 2.0), ("b", 4.0))
  ]
  unfinished = make_row("random", 3, "a", [4.0, 3.0, 2.0])
  ours, random = search_standings.standings([*rows, unfinished])
  assert (ours["policy"], ours["found"], ours["median"], ours["worst"]) == ("mixatlas", "6/6", 3, 3)
  assert ours["ahead"] is None and random["seeds"] == 3 and random["worst"] is None
  assert random["regret"][0] == pytest.approx((1 / 2 + 1 / 4) / 2) and random["regret"][1] == 0
  assert random["ahead"][0] == pytest.approx(0.375) and random["seconds"] == 0.2
  curve, seeds = search_standings.curves(rows[:6], {"a", "b"})
  assert seeds == [0, 1, 2]
  np.testing.assert_allclose(curve[1], [1.5, 1.5, 0.375])
  search_standings.show("both", [ours, random])


def test_an_interval_holds_the_mean_as_often_as_it_says():
  draws = np.random.default_rng(0).normal(1.0, 2.0, size=(5, 4000))
  mean, half = search_standings.interval(draws)
  assert np.mean(np.abs(mean - 1.0) <= half) == pytest.approx(0.95, abs=0.015)
  assert np.isnan(search_standings.interval(np.ones((1, 3)))[1]).all()


def test_curves_are_written_for_every_group(tmp_path):
  rows = [make_row("random", seed, "a", [2.0, 1.0]) for seed in range(2)]
  search_standings.write_curves(tmp_path / "curves.csv", {"g": rows})
  lines = (tmp_path / "curves.csv").read_text().splitlines()
  assert lines[1:] == ["g,random,1,2,1,0", "g,random,2,2,0.5,0"]
