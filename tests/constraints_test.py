"""What constraints are made of, and those that leave nothing."""

import numpy as np
import pytest
from allowed import CELLS, simplex

from mixjax.search.constraints import Constraints, Group
from mixjax.search.space import Space


def test_groups_may_have_coefficients():
  space = simplex(3)
  tokens = Group("tokens", {"cell0": 100.0, "cell1": 300.0, "cell2": 500.0}, high=200.0)
  constraints = Constraints(space, groups=[tokens])
  near = constraints.project([space.uniform(), [0.9, 0.1, 0.0]])
  np.testing.assert_allclose(near @ [100, 300, 500], [200, 120], atol=1e-9)
  np.testing.assert_allclose(near[0], [7 / 12, 4 / 12, 1 / 12], atol=1e-12)
  assert constraints.within(near).all() and not constraints.within(space.uniform()[None])[0]


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(lower={"maps/ocr": 0.7, "faces/ocr": 0.6}), "lower bounds of the joint axis sum to 1.3"),
    (dict(upper=[0.1] * 5 + [0.2]), "upper bounds of the joint axis sum to 0.7"),
    (dict(lower={"maps/ocr": 0.3}, upper={"maps/ocr": 0.2}), "'maps/ocr' has lower bound 0.3, ab"),
    (dict(lower={"maps/ocr": 0.3}, caps={"maps/ocr": 0.2}), "'maps/ocr' .* its supply 0.2"),
    (dict(caps=dict.fromkeys(CELLS, 0.1)), "caps of all cells sum to 0.6, below 1"),
    (
      dict(upper=dict.fromkeys(CELLS, 0.2), groups=[Group("maps", CELLS[:2], low=0.6)]),
      r"group 'maps' is to lie in \[0.6, inf\] and could, alone, in \[0.*, 0.4\]",
    ),
    (
      dict(
        groups=[
          Group("fine", CELLS[:1], low=0.1),
          Group("first", CELLS[:4], high=0.3),
          Group("last", CELLS[3:], high=0.6),
        ]
      ),
      r"cannot hold: group 'first' .* group 'last' .* Loosen one",
    ),
    (dict(groups=[Group("maps", ["maps"], low=0.1)]), "'maps'.*none of"),
    (dict(groups=[Group("maps", CELLS[:2], low=0.3, high=0.2)]), "allows nothing"),
    (dict(groups=[Group("none", [])]), "needs members"),
    (dict(upper={"maps/ocr": 1.2}), "upper bound of 'maps/ocr' is 1.2"),
    (dict(lower=[np.nan] * 6), "lower bound of 'maps/caption' is nan"),
    (dict(lower=[0.1] * 5), "shape"),
    (dict(upper={"maps/vqa": 0.2}), "maps/vqa"),
    (dict(at_most=0), "raise at_most"),
    (dict(at_most=2, upper=[0.4] * 6), "no 2 weights"),
    (dict(at_most=1, groups=[Group("maps", CELLS[:2], low=0.2, high=0.5)]), "no 1 weights"),
  ],
)
def test_constraints_that_leave_nothing_are_named(options, message):
  with pytest.raises(ValueError, match=message) as caught:
    Constraints(Space.simplex("joint", CELLS), **options)
  assert "fine" not in str(caught.value)


def test_bounds_that_leave_one_mixture_are_fine():
  space = simplex(10)
  exact = Constraints(space, upper=[0.1] * 10)  # sums to a little less than 1 in floats
  np.testing.assert_allclose(exact.project(np.eye(10)), np.full((10, 10), 0.1), atol=1e-15)
  halves = [Group("a", space.names[:3], high=0.3), Group("b", space.names[3:], high=0.7)]
  exact = Constraints(space, groups=halves)
  near = exact.project(np.eye(10))
  assert exact.within(near, 1e-12).all()
  np.testing.assert_allclose(near[:, :3].sum(axis=1), 0.3, atol=1e-12)


def test_nothing_that_could_move_is_no_crash():
  polytope = Constraints(simplex(2), groups=[Group("a", ("cell0",), 0.4, 0.6)]).polytope
  np.testing.assert_array_equal(
    polytope.nearest(np.eye(2), np.array([[1.0, 0.0]] * 2)), [[1, 0]] * 2
  )


def test_the_spaces_own_floor_holds_as_well():
  space = Space.simplex("joint", CELLS, floor=0.3)
  constraints = Constraints(space, lower={"maps/ocr": 0.2, "maps/caption": 0.0})
  np.testing.assert_allclose(constraints.lower, [0.05, 0.2, 0.05, 0.05, 0.05, 0.05])


def test_points_to_project_are_checked():
  with pytest.raises(ValueError, match="finite"):
    Constraints(simplex(2)).project([[np.nan, 1.0]])
  with pytest.raises(ValueError, match="shape"):
    Constraints(simplex(2)).project([0.5, 0.5])
