import dataclasses

import numpy as np
import pytest

from mixjax.search import design
from mixjax.search.constraints import Constraints, Group, supply_caps
from mixjax.search.observations import Observations
from mixjax.search.policies.best_of_random import BestOfRandom
from mixjax.search.policies.bimix import BiMix
from mixjax.search.policies.mixatlas import MixAtlas
from mixjax.search.policies.mixing_laws import MixingLaws
from mixjax.search.policies.modomodo import MoDoMoDo
from mixjax.search.policies.natural import Natural
from mixjax.search.policies.olmix import Olmix, fit_log_linear
from mixjax.search.policies.regmix import RegMix
from mixjax.search.policies.uniform import Uniform
from mixjax.search.policies.within import Within
from mixjax.search.replay import POLICIES
from mixjax.search.space import Space, candidates

TASKS = ("caption", "ocr", "grounded", "detection", "vqa")
ROWS = dict(zip(TASKS, (900, 400, 800, 300, 700), strict=True))
BARE = Space.simplex("task", TASKS)
CONSTRAINTS = Constraints(
  BARE,
  lower={"grounded": 0.05},
  upper={"caption": 0.4},
  groups=[Group("boxes", ("grounded", "detection"), 0.2, 0.3)],
  caps=supply_caps(BARE, ROWS, budget=5000, repetition=4),
)
SPACE = BARE.with_pool(
  np.concatenate([candidates(BARE, 100, 0), design.pool(BARE, 100, 0, CONSTRAINTS)])
)
# Nearly all of it where no constraint allows it.
PEAK = np.array([0.02, 0.9, 0.02, 0.05, 0.01])

FIXED = {
  "uniform": Uniform,
  "natural": lambda space: Natural(space, dict(zip(TASKS, PEAK / PEAK.sum(), strict=True))),
}
FREE = {
  "olmix": Olmix,
  "olmix on the simplex": lambda space: Olmix(space, over="simplex"),
  "mixing laws": MixingLaws,
  "bimix": BiMix,
  "quadratic": MoDoMoDo,
  "norm": lambda space: MoDoMoDo(space, "norm"),
}
NAMED = {name: lambda space, make=make: make(space, 12) for name, make in POLICIES.items()}
CHOOSING = NAMED | {
  "top": lambda space: RegMix(space, "top", 16),
  "norm": lambda space: MoDoMoDo(space, "norm"),
  "continuous": lambda space: MixAtlas(space, seeds=4, continuous=True),
  "own": lambda space: MixAtlas(space, seeds=4, constraints=CONSTRAINTS),
  "own continuous": lambda space: MixAtlas(
    space, seeds=4, constraints=CONSTRAINTS, continuous=True
  ),
}


def kept(points):
  """The constraints spelt out."""
  weights = dict(zip(TASKS, np.asarray(points).T, strict=True))
  held = (weights["grounded"] >= 0.05 - 1e-9) & (weights["caption"] <= 0.4 + 1e-9)
  held &= np.abs(weights["grounded"] + weights["detection"] - 0.25) <= 0.05 + 1e-9
  for task, weight in weights.items():
    held &= (weight >= 0) & (5000 * weight <= 4 * ROWS[task] + 1e-5)
  return held


def different(points):
  apart = np.abs(points[:, None] - points).max(axis=2)
  return apart[~np.eye(len(points), dtype=bool)].min() > 1e-6


def truth(mixtures):
  return -np.sum((np.sqrt(mixtures) - np.sqrt(PEAK / PEAK.sum())) ** 2, axis=1)


def runs_on(mixtures):
  return Observations(mixtures, truth(mixtures))


OFF = candidates(BARE, 40, 7)
OFF = OFF[~kept(OFF)][:6]


def test_the_space_tempts_a_policy_to_leave():
  assert not kept(PEAK[None]).any() and 20 < kept(SPACE.pool).sum() < 180
  assert truth(OFF).max() > truth(SPACE.pool[kept(SPACE.pool)]).max()


@pytest.mark.parametrize("name", CHOOSING)
def test_nothing_else_is_proposed_or_recommended(name):
  policy = CHOOSING[name](SPACE) if "own" in name else Within(SPACE, CONSTRAINTS, CHOOSING[name])
  runs = runs_on(OFF)
  for step in range(3):
    count = 5 if name == "norm" else 3
    asked = policy.ask(runs, count, 3)
    np.testing.assert_array_equal(asked, policy.ask(runs, count, 3))
    assert len(asked) == count and kept(asked).all()
    runs = runs_on(np.concatenate([runs.mixtures, asked]))
    assert different(runs.mixtures)
    if name == "norm" and step < 2:
      continue  # its eleven pilots are still under way
    assert kept(policy.recommend(runs).mixture[None]).all()


@pytest.mark.parametrize("name", FREE)
def test_without_a_pool_designs_are_moved_and_never_repeat(name):
  policy = Within(BARE, CONSTRAINTS, FREE[name])
  runs = runs_on(OFF)
  for count in (1, 1, 1, 1, 4, 12):
    asked = policy.ask(runs, count, 3)
    assert len(asked) == count and kept(asked).all()
    runs = runs_on(np.concatenate([runs.mixtures, asked]))
  assert different(runs.mixtures)
  if name != "norm":
    assert kept(policy.recommend(runs).mixture[None]).all()


@pytest.mark.parametrize("name", FIXED)
def test_a_fixed_mixture_is_moved_and_run_again(name):
  policy = Within(BARE, Constraints(BARE, upper={"ocr": 0.15}), FIXED[name])
  first = policy.ask(Observations.none(BARE), 3, 0)
  assert (first[:, 1] <= 0.15 + 1e-9).all() and np.ptp(first, axis=0).max() == 0
  runs = Observations(first, np.array([1.0, 2.0, 6.0]))
  np.testing.assert_array_equal(policy.ask(runs, 2, 0), first[:2])
  advice = policy.recommend(runs)
  np.testing.assert_array_equal(advice.mixture, first[0])
  assert advice.mean == advice.observed == 3 and advice.sd > 0


@pytest.mark.parametrize("name", NAMED | FREE | FIXED)
def test_constraints_that_bind_nothing_change_nothing(name):
  make = (NAMED | FREE | FIXED)[name]
  for space in (SPACE, BARE) if name in FREE and name != "norm" else (SPACE,):
    free, bound = make(space), Within(space, Constraints(space), make)
    runs = runs_on(np.concatenate([OFF, SPACE.pool[:12]]))
    np.testing.assert_array_equal(free.ask(runs, 4, 5), bound.ask(runs, 4, 5))
    if name != "norm":
      one, other = free.recommend(runs), bound.recommend(runs)
      np.testing.assert_array_equal(one.mixture, other.mixture)
      assert (one.mean, one.sd, one.observed) == (other.mean, other.sd, other.observed)


def test_mixatlas_under_constraints_that_bind_nothing_is_itself():
  runs = runs_on(SPACE.pool[:12])
  for options in ({}, dict(top=5, floor=0.3), dict(recommend_by="observed")):
    free = MixAtlas(SPACE, seeds=4, **options)
    bound = dataclasses.replace(free, constraints=Constraints(SPACE))
    np.testing.assert_array_equal(free.ask(runs, 3, 5), bound.ask(runs, 3, 5))
    one, other = free.recommend(runs), bound.recommend(runs)
    np.testing.assert_allclose(one.mixture, other.mixture, atol=1e-12)
    assert one.mean == pytest.approx(other.mean, abs=1e-9)


def test_what_was_moved_is_judged_where_it_is_now():
  runs = runs_on(np.concatenate([OFF, candidates(BARE, 10, 1)]))
  law = fit_log_linear(runs)
  free = Olmix(BARE).recommend(runs)
  advice = Within(BARE, CONSTRAINTS, Olmix).recommend(runs)
  assert not kept(free.mixture[None])[0] and kept(advice.mixture[None])[0]
  assert advice.mean == pytest.approx(law(advice.mixture[None])[0]) and advice.mean < free.mean
  # A policy that can only be asked for its optimum says nothing of another mixture.
  silent = Within(BARE, CONSTRAINTS, FREE["olmix on the simplex"]).recommend(runs)
  np.testing.assert_array_equal(silent.mixture, advice.mixture)
  assert (silent.mean, silent.sd, silent.observed) == (None, None, None)


def test_runs_elsewhere_teach_but_do_not_win():
  inside = SPACE.pool[kept(SPACE.pool)][:6]
  runs = runs_on(np.concatenate([OFF, inside]))
  winner = inside[np.argmax(truth(inside))]
  best = Within(SPACE, CONSTRAINTS, BestOfRandom).recommend(runs)
  np.testing.assert_array_equal(best.mixture, winner)
  observed = MixAtlas(SPACE, recommend_by="observed", constraints=CONSTRAINTS)
  np.testing.assert_allclose(observed.recommend(runs).mixture, winner, atol=1e-9)
  policy = MixAtlas(SPACE, constraints=CONSTRAINTS)
  sd = {len(seen): policy.recommend(seen).sd for seen in (runs, runs_on(inside))}
  assert sd[12] != sd[6]


@pytest.mark.parametrize("name", NAMED)
def test_an_answer_when_no_run_is_within(name):
  runs = runs_on(OFF[OFF[:, 2] >= 0.05])
  assert len(runs) >= 3 and not kept(runs.mixtures).any()
  advice = Within(SPACE, CONSTRAINTS, NAMED[name]).recommend(runs)
  assert kept(advice.mixture[None])[0] and advice.observed is None
  if name.startswith("mixatlas"):
    own = dataclasses.replace(NAMED[name](SPACE), constraints=CONSTRAINTS).recommend(runs)
    assert kept(own.mixture[None])[0] and own.sd > 0


def test_a_single_mixture_is_proposed_and_then_there_is_no_more():
  single = Constraints(BARE, upper=[0.2] * 5)
  space = BARE.with_pool(design.pool(BARE, 100, 0, single))
  assert len(space.pool) == 1
  for policy in (
    Within(space, single, RegMix),
    MixAtlas(space, constraints=single),
    MixAtlas(space, constraints=single, continuous=True),
  ):
    (first,) = policy.ask(Observations.none(space), 1, 0)
    np.testing.assert_allclose(first, 0.2, atol=1e-12)
    runs = runs_on(first[None])
    np.testing.assert_allclose(policy.recommend(runs).mixture, 0.2, atol=1e-12)
    with pytest.raises(ValueError, match=r"not yet run|are known"):
      policy.ask(runs, 1, 0)
  # Nothing new can be had from a policy that is moved there; it runs the mixture again.
  policy = Within(BARE, single, Olmix)
  np.testing.assert_allclose(policy.ask(runs, 3, 0), np.full((3, 5), 0.2), atol=1e-12)


def test_a_pool_with_nothing_within_is_refused():
  narrow = Constraints(BARE, lower={"ocr": 0.35}, upper={"ocr": 0.35001})
  for make in (lambda: Within(SPACE, narrow, RegMix), lambda: MixAtlas(SPACE, constraints=narrow)):
    with pytest.raises(ValueError, match=r"only 0 of 200 candidates.*design\.pool"):
      make()
  space = BARE.with_pool(design.pool(BARE, 40, 0, narrow))
  policy = MixAtlas(space, seeds=2, constraints=narrow)
  for asked in (policy.ask(runs_on(OFF), 4, 0), policy.recommend(runs_on(OFF)).mixture[None]):
    np.testing.assert_allclose(asked[:, 1], 0.35, atol=2e-5)
  with pytest.raises(ValueError, match="not for"):
    Within(Space.concept_axis(TASKS, ("maps",)), CONSTRAINTS, Uniform)
  with pytest.raises(ValueError, match="not for"):
    rows = Space.task_axis(("maps",), TASKS, empty={"maps/ocr"})
    MixAtlas(rows, constraints=Constraints(Space.task_axis(("maps",), TASKS)))
  with pytest.raises(ValueError, match="floors differ"):
    Within(Space.simplex("task", TASKS, floor=0.2), CONSTRAINTS, Uniform)


def test_constraints_come_before_the_floor_and_averages_stay_within():
  runs = runs_on(np.concatenate([OFF, SPACE.pool[:8]]))
  policy = MixAtlas(SPACE, top=8, floor=0.9, constraints=CONSTRAINTS)
  mixture = policy.recommend(runs).mixture
  raised = MixAtlas(SPACE, top=8, floor=0.9).recommend(runs).mixture
  assert kept(mixture[None])[0] and not kept(raised[None])[0]
  sparse = Constraints(BARE, at_most=2)
  space = BARE.with_pool(design.pool(BARE, 60, 0, sparse))
  policy = MixAtlas(space, top=8, floor=0.1, constraints=sparse)
  assert (policy.recommend(runs).mixture > 0).sum() <= 2
  wrapped = Within(space, sparse, CHOOSING["top"]).recommend(runs)
  assert (wrapped.mixture > 0).sum() <= 2 and wrapped.mean is not None


CONCEPTS = tuple(f"concept{i}" for i in range(10))
CELLS = [f"{concept}/{task}" for concept in CONCEPTS for task in TASKS]
SIZES = dict(zip(CELLS, np.random.default_rng(0).lognormal(6, 1, 50).astype(int), strict=True))


@pytest.mark.parametrize(
  ("space", "continuous"),
  [
    (Space.task_axis(CONCEPTS, TASKS), False),
    (Space.concept_axis(CONCEPTS, TASKS), False),
    pytest.param(Space.product(CONCEPTS, TASKS), True, marks=pytest.mark.slow),
    pytest.param(Space.simplex("joint", CELLS[:15]), False, marks=pytest.mark.slow),
  ],
  ids=lambda value: getattr(value, "name", value),
)
def test_no_cell_is_asked_for_more_than_its_data_can_supply(space, continuous):
  budget = 0.25 * sum(SIZES[cell] for cell in space.cell_names)
  constraints = Constraints(space, caps=supply_caps(space, SIZES, budget, repetition=4))
  outside = candidates(space, 60, 1)
  outside = outside[~constraints.within(outside)][:6]
  space = space.with_pool(design.pool(space, 120, 0, constraints))
  policy = MixAtlas(space, seeds=4, continuous=continuous, constraints=constraints)

  def score(mixtures):
    return -np.sum((np.sqrt(mixtures) - np.sqrt(outside[0])) ** 2, axis=1)

  runs = Observations(outside, score(outside))
  for _ in range(2):
    asked = policy.ask(runs, 3, 0)
    mixtures = np.concatenate([runs.mixtures, asked])
    runs = Observations(mixtures, score(mixtures))
  asked = runs.mixtures[len(outside) :]
  assert different(runs.mixtures)
  for mixture in (*asked, policy.recommend(runs).mixture):
    for cell, share in space.cells(mixture).items():
      assert share * budget <= 4 * SIZES[cell] * (1 + 1e-6)
