import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from mixjax.search.constraints import Constraints, Group, supply_caps
from mixjax.search.space import Space

CONCEPTS = ("maps", "charts", "faces")
TASKS = ("caption", "ocr")
CELLS = [f"{c}/{t}" for c in CONCEPTS for t in TASKS]


def simplex(dim):
  return Space.simplex("joint", [f"cell{i}" for i in range(dim)])


def within_by_hand(constraints, points):
  """Constraints spelt out from what they were made of, cell by cell."""
  space = constraints.space
  inside = ((points >= constraints.lower - 1e-9) & (points <= constraints.upper + 1e-9)).all(axis=1)
  for group in constraints.groups:
    total = points[:, [space.names.index(name) for name in group.members]].sum(axis=1)
    inside &= (total >= group.low - 1e-9) & (total <= group.high + 1e-9)
  if constraints.caps is not None:
    shares = np.array([list(space.cells(point).values()) for point in points])
    inside &= (shares <= constraints.caps + 1e-9).all(axis=1)
  if constraints.at_most is not None:
    for axis in range(len(space.axes)):
      inside &= (points[:, space.block == axis] > 0).sum(axis=1) <= constraints.at_most
  return inside


@st.composite
def feasible(draw, groups=True):
  """Constraints around a known point, often tight, on one axis or two; and points all around."""
  rng = np.random.default_rng(draw(st.integers(0, 2**32)))
  if draw(st.booleans()):
    space = simplex(draw(st.integers(2, 50)))
  else:
    concepts = [f"c{i}" for i in range(draw(st.integers(1, 12)))]
    space = Space.product(concepts, [f"t{i}" for i in range(draw(st.integers(2, 8)))])
  known = np.concatenate([rng.dirichlet(np.ones(n)) for n in np.bincount(space.block)])
  slack = rng.choice([0.0, 0.02, 0.3, 1.0], size=(2, space.dim))
  lower, upper = np.maximum(known - slack[0], 0), np.minimum(known + slack[1], 1)
  made = []
  for i in range(draw(st.integers(0, 6)) if groups else 0):
    members = rng.choice(space.names, size=rng.integers(1, space.dim + 1), replace=False).tolist()
    total = known[[space.names.index(name) for name in members]].sum()
    low, high = total - rng.choice([0, 0.01, 0.2, np.inf]), total + rng.choice([0, 0.01, 0.2])
    made.append(Group(f"g{i}", members, low, high))
  constraints = Constraints(space, lower, upper, groups=made)
  points = rng.normal(known, rng.choice([0.1, 1.0]), size=(4, space.dim))
  return constraints, np.concatenate([points, [known, space.uniform()]])


def furthest(constraints, direction):
  """The largest direction @ z over all mixtures within."""
  space, rows, limits = constraints.space, [], []
  for group in constraints.groups:
    row = np.isin(space.names, group.members).astype(float)
    rows += [row, -row]
    limits += [group.high, -group.low]
  finite = np.isfinite(limits)
  found = optimize.linprog(
    -direction,
    np.reshape(rows, (-1, space.dim))[finite] if rows else None,
    np.array(limits)[finite] if rows else None,
    np.eye(len(space.axes))[space.block].T,
    np.ones(len(space.axes)),
    np.stack([constraints.lower, constraints.upper], axis=1),
  )
  assert found.status == 0
  return -found.fun


@settings(max_examples=60, deadline=None)
@given(feasible())
def test_projections_are_within_and_nearest(made):
  constraints, points = made
  near = constraints.project(points)
  assert constraints.within(near, 1e-11).all() and within_by_hand(constraints, near).all()
  # Nearest in a convex set is where nothing within lies further the way that the point lies.
  for point, p in zip(points, near, strict=True):
    away = point - p
    assert furthest(constraints, away) - away @ p <= 1e-8 * max(1, np.abs(away).max())
  np.testing.assert_allclose(near[-2], points[-2], atol=1e-11)  # the known point is within
  np.testing.assert_allclose(constraints.project(near), near, atol=1e-11)
  for i, j in itertools.combinations(range(len(points)), 2):
    apart = np.linalg.norm(points[i] - points[j])
    assert np.linalg.norm(near[i] - near[j]) <= apart + 1e-10


@pytest.mark.parametrize("seed", range(4))
def test_projections_agree_with_a_general_solver(seed):
  rng = np.random.default_rng(seed)
  space = simplex(6)
  groups = (Group("odd", space.names[1::2], 0.2, 0.45), Group("first", space.names[:3], high=0.5))
  constraints = Constraints(space, [0.02] * 6, {"cell4": 0.2, "cell5": 0.3}, groups)
  rows = np.array([np.isin(space.names, group.members) for group in groups], float)
  for point in rng.normal(1 / 6, 0.5, size=(3, 6)):
    reference = optimize.minimize(
      lambda x, point=point: 0.5 * np.sum((x - point) ** 2),
      space.uniform(),
      jac=lambda x, point=point: x - point,
      method="SLSQP",
      bounds=np.stack([constraints.lower, constraints.upper], axis=1),
      constraints=[
        {"type": "eq", "fun": lambda x: x.sum() - 1},
        {"type": "ineq", "fun": lambda x: np.array([0.45, 0.5]) - rows @ x},
        {"type": "ineq", "fun": lambda x: rows[0] @ x - 0.2},
      ],
      options={"ftol": 1e-15, "maxiter": 500},
    )
    np.testing.assert_allclose(constraints.project(point[None])[0], reference.x, atol=1e-6)


def test_a_known_projection():
  # Worked by hand: 0.9 stops at its bound, what is missing is shared by the other two.
  space = simplex(3)
  near = Constraints(space, upper={"cell0": 0.5}).project([[0.9, 0.3, 0.0], [0.2, 0.2, 0.6]])
  np.testing.assert_allclose(near, [[0.5, 0.4, 0.1], [0.2, 0.2, 0.6]], atol=1e-15)
  group = Group("pair", ("cell0", "cell1"), high=0.5)
  near = Constraints(space, groups=[group]).project([[0.6, 0.4, 0.0]])
  np.testing.assert_allclose(near, [[0.35, 0.15, 0.5]], atol=1e-15)


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


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["plain", "caps", "uneven", "groups"])
def test_sparse_projections_against_every_support(kind, seed):
  rng = np.random.default_rng(seed)
  space = simplex(7)
  options = {
    "plain": {},
    "caps": dict(upper=[0.4] * 7),
    "uneven": dict(upper=rng.uniform(0.25, 0.6, 7), lower={"cell3": 0.05}),
    "groups": dict(groups=[Group("a", space.names[:4], 0.3, 0.5), Group("b", ("cell5",), 0.1)]),
  }[kind]
  constraints = Constraints(space, at_most=3, **options)
  points = np.concatenate([rng.dirichlet(np.full(7, 0.5), 4), rng.normal(size=(4, 7))])
  near = constraints.project(points)
  assert within_by_hand(constraints, near).all()
  np.testing.assert_allclose(constraints.project(near), near, atol=1e-10)
  best = np.full(len(points), np.inf)
  for support in itertools.combinations(range(7), 3):
    upper = np.where(np.isin(np.arange(7), support), constraints.upper, 0)
    try:
      held = Constraints(space, constraints.lower, upper, constraints.groups).project(points)
    except ValueError:
      continue
    best = np.minimum(best, np.linalg.norm(held - points, axis=1))
  reached = np.linalg.norm(near - points, axis=1)
  assert (reached >= best - 1e-9).all()
  if kind in ("plain", "caps"):
    np.testing.assert_allclose(reached, best, atol=1e-9)
  else:
    assert (reached <= 1.05 * best).all()


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


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
def test_points_may_come_from_anywhere(scale):
  space = simplex(30)
  constraints = Constraints(
    space,
    upper=[0.1] * 30,
    groups=[Group("a", space.names[:12], 0.2, 0.3), Group("b", space.names[8:20], 0.5, 0.5)],
  )
  points = space.uniform() + np.random.default_rng(0).normal(size=(20, 30)) * scale
  near = constraints.project(points)
  assert constraints.within(near, 1e-11 * max(1, scale)).all()
  for point, p in zip(points, near, strict=True):
    assert (furthest(constraints, point - p) - (point - p) @ p) <= 1e-8 * max(1, scale)


def test_a_product_that_cannot_be_supplied_is_refused():
  space = Space.product(("a", "b"), ("s", "t"))
  # The joint space can: half each on a/s and b/t. A product of axes cannot without a/t or b/s.
  caps = {"a/s": 0.6, "b/t": 0.6, "a/t": 0.05, "b/s": 0.05}
  with pytest.raises(ValueError, match="joint space"):
    Constraints(space, caps=caps)
  Constraints(Space.simplex("joint", space.cell_names), caps=caps)
  with pytest.raises(ValueError, match="one axis only"):
    Constraints(space, caps={"a/s": 0.6}, at_most=1)


def test_many_projections_are_fast():
  space = simplex(50)
  constraints = Constraints(space, lower=[0.002] * 50, upper=[0.1] * 50)
  points = np.random.default_rng(0).dirichlet(np.full(50, 0.2), 2000)
  seconds = []
  for _ in range(5):
    start = time.process_time()
    constraints.project(points)
    seconds.append(time.process_time() - start)
  assert min(seconds) < 0.05
