"""Caps by the supply of data, on simplices and on products of axes."""

import numpy as np
import pytest
from allowed import CELLS, CONCEPTS, TASKS, within_by_hand

from mixjax.search.constraints import Constraints, supply_caps
from mixjax.search.space import Space


def test_caps_on_a_simplex_are_upper_bounds():
  space = Space.simplex("joint", CELLS)
  sizes = dict(zip(CELLS, (100, 200, 400, 50, 800, 0), strict=True))
  caps = supply_caps(space, sizes, budget=1000, repetition=2)
  assert caps == dict(zip(CELLS, (0.2, 0.4, 0.8, 0.1, 1.0, 0.0), strict=True))
  constraints = Constraints(space, caps=caps)
  np.testing.assert_allclose(constraints.polytope.upper, list(caps.values()))
  near = constraints.project(np.random.default_rng(0).dirichlet(np.ones(6), 50))
  assert (near * 1000 <= 2 * np.array(list(sizes.values())) + 1e-9).all()
  with pytest.raises(ValueError, match=r"sum to 0\.31"):
    Constraints(space, caps=supply_caps(space, sizes, budget=10000, repetition=2))


def test_sizes_must_be_known_and_empty_cells_named():
  space = Space.product(CONCEPTS, TASKS)
  with pytest.raises(ValueError, match=r"no size for .*'maps/ocr'"):
    supply_caps(space, {"maps/caption": 3}, 10, 1)
  with pytest.raises(ValueError, match=r"'maps/ocr'.* have no rows"):
    supply_caps(space, dict.fromkeys(CELLS, 3) | {"maps/ocr": 0}, 10, 1)
  without = Space.product(CONCEPTS, TASKS, empty={"maps/ocr"})
  assert "maps/ocr" not in supply_caps(without, dict.fromkeys(CELLS, 3) | {"maps/ocr": 0}, 10, 1)
  with pytest.raises(ValueError, match="positive"):
    supply_caps(space, dict.fromkeys(CELLS, 3), 0, 1)


@pytest.mark.parametrize("build", [Space.task_axis, Space.concept_axis, Space.product])
@pytest.mark.parametrize("empty", [(), ("maps/ocr",), ("maps/ocr", "faces/caption")])
def test_caps_bound_the_shares_of_cells(build, empty):
  space = build(CONCEPTS, TASKS, empty=empty)
  sizes = dict(zip(CELLS, (90, 60, 300, 250, 130, 170), strict=True))
  constraints = Constraints(space, caps=supply_caps(space, sizes, 1000, 2.7))
  rng = np.random.default_rng(0)
  points = [rng.dirichlet(np.full(n, 2.0), 300) for n in np.bincount(space.block)]
  points = np.concatenate(points, axis=1)
  inside = within_by_hand(constraints, points)
  assert 5 < inside.sum() < 295
  np.testing.assert_array_equal(constraints.within(points), inside)
  near = constraints.project(points)
  assert within_by_hand(constraints, near).all()
  np.testing.assert_allclose(near[inside], points[inside], atol=1e-12)
  np.testing.assert_allclose(constraints.project(near), near, atol=1e-8)
  if len(space.axes) == 1:
    # Convex: nothing within is nearer, and a step from the point's nearest towards it leads out.
    pairs = (points[:, None] - near[:, None]) * (points[inside] - near[:, None])
    assert (pairs.sum(axis=2) <= 1e-9).all()


def test_caps_on_a_product_do_not_forbid_uniform():
  space = Space.product(CONCEPTS, TASKS)
  # Bounds that are safe whatever the other axis does, w <= cap, sum to half of what is needed.
  constraints = Constraints(space, caps=dict.fromkeys(CELLS, 1 / 6))
  assert constraints.within(space.uniform()[None])[0]
  near = constraints.project([[0.8, 0.1, 0.1, 0.5, 0.5], [1 / 3, 1 / 3, 1 / 3, 0.9, 0.1]])
  np.testing.assert_allclose(near, [space.uniform()] * 2, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_under_the_caps_of_a_product_little_is_left_to_gain(seed):
  rng = np.random.default_rng(seed)
  space = Space.product(CONCEPTS, TASKS)
  caps = rng.uniform(0.1, 0.35, 6)
  constraints = Constraints(space, lower=[0.02] * 5, caps=caps)
  points = np.hstack([rng.dirichlet(np.ones(3), 300), rng.dirichlet(np.ones(2), 300)])
  near = constraints.project(points[:20])
  inside = points[within_by_hand(constraints, points)]
  allowed = np.concatenate([constraints.project(points), inside])
  apart = np.linalg.norm(points[:20, None] - allowed, axis=2).min(axis=1)
  reached = np.linalg.norm(near - points[:20], axis=1)
  assert (reached <= 1.01 * apart + 1e-9).all()


def test_weight_on_empty_cells_alone_is_not_within_caps():
  space = Space.product(CONCEPTS, TASKS, empty={"maps/ocr"})
  constraints = Constraints(space, caps=dict.fromkeys(CELLS, 0.5))
  nothing = np.array([[1.0, 0.0, 0.0, 0.0, 1.0]])
  assert not constraints.within(nothing)[0]
  assert within_by_hand(constraints, constraints.project(nothing)).all()


def test_a_product_that_cannot_be_supplied_is_refused():
  space = Space.product(("a", "b"), ("s", "t"))
  # The joint space can: half each on a/s and b/t. A product of axes cannot without a/t or b/s.
  caps = {"a/s": 0.6, "b/t": 0.6, "a/t": 0.05, "b/s": 0.05}
  with pytest.raises(ValueError, match="joint space"):
    Constraints(space, caps=caps)
  Constraints(Space.simplex("joint", space.cell_names), caps=caps)
  with pytest.raises(ValueError, match="one axis only"):
    Constraints(space, caps={"a/s": 0.6}, at_most=1)
