import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mixjax.search import design
from mixjax.search.constraints import Constraints, Group, supply_caps
from mixjax.search.space import Space

CONCEPTS = ("maps", "charts", "faces")
TASKS = ("caption", "ocr")
DESIGNS = [design.uniform, design.latin_hypercube, design.sobol, design.dirichlet, design.pool]


def simplex(dim):
  return Space.simplex("joint", [f"cell{i}" for i in range(dim)])


def as_cube(shares):
  """Flat Dirichlet rows become even points of the cube; any others do not (Rosenblatt, 1952)."""
  left = 1 - np.cumsum(shares, axis=1)[:, :-1]
  before = np.concatenate([np.ones((len(shares), 1)), left[:, :-1]], axis=1)
  return 1 - np.clip(left / before, 0, 1) ** np.arange(shares.shape[1] - 1, 0, -1)


def evenness(cube):
  """p-value of a chi-square: 10 bins of each coordinate, and 5 x 5 of each two in a row."""
  bins = np.minimum((cube * 10).astype(int), 9)
  counts = [np.bincount(column, minlength=10) for column in bins.T]
  pairs = (bins[:, :-1] // 2 * 5 + bins[:, 1:] // 2).T
  joint = [np.bincount(column, minlength=25) for column in pairs]
  return min(stats.chisquare(c).pvalue for c in counts + joint) * len(counts + joint)


def test_uniform_is_a_flat_dirichlet():
  shares = design.uniform(simplex(6), 4000, 0)
  assert evenness(as_cube(shares)) > 0.01
  # The same test on what a beginner would do, and on a Dirichlet that is nearly flat.
  rng = np.random.default_rng(0)
  scaled = rng.uniform(size=(4000, 6))
  assert evenness(as_cube(scaled / scaled.sum(axis=1, keepdims=True))) < 1e-9
  assert evenness(as_cube(rng.dirichlet(np.full(6, 1.2), 4000))) < 1e-6


def test_uniform_treats_each_axis_of_a_product_alike():
  points = design.uniform(Space.product(CONCEPTS, TASKS), 4000, 1)
  cube = np.concatenate([as_cube(points[:, :3]), as_cube(points[:, 3:])], axis=1)
  assert evenness(cube) > 0.01


def test_bounds_that_leave_a_smaller_simplex_cost_nothing():
  space = simplex(8)
  raised = Constraints(space, lower=[0.11] * 8)
  assert evenness(as_cube((design.uniform(space, 4000, 2, raised) - 0.11) / 0.12)) > 0.01
  # Caps of 0.14 leave the same upside down: one in 10^7 of the simplex, that rejection never finds.
  capped = Constraints(space, upper=[0.14] * 8)
  assert evenness(as_cube((0.14 - design.uniform(space, 4000, 3, capped)) / 0.12)) > 0.01


def alike(left, right, features):
  """The least p-value that two sets of points have the same distribution, times how many."""
  pairs = zip(features(left).T, features(right).T, strict=True)
  tests = [stats.ks_2samp(a, b).pvalue for a, b in pairs]
  return min(tests) * len(tests)


def features(points):
  mixes = np.random.default_rng(5).normal(size=(points.shape[1], 4))
  return np.concatenate([points, (points**2).sum(axis=1, keepdims=True), points @ mixes], axis=1)


def hypercube_rejection(constraints, count, seed):
  """Even draws from whatever is within, by the shortest code there is."""
  rng, found = np.random.default_rng(seed), []
  sizes = np.bincount(constraints.space.block)
  while sum(map(len, found)) < count:
    draws = np.hstack([rng.dirichlet(np.ones(size), 20000) for size in sizes])
    found.append(draws[constraints.within(draws)])
  return np.concatenate(found)[:count]


TIGHT = {
  "bounds": Constraints(simplex(4), lower=[0.05, 0, 0, 0.1], upper=[0.3, 0.5, 0.4, 1.0]),
  "groups": Constraints(
    simplex(5), groups=[Group("a", ("cell0", "cell1"), 0.3, 0.5), Group("b", ("cell2",), high=0.1)]
  ),
  "product": Constraints(
    Space.product(CONCEPTS, TASKS), caps=dict.fromkeys(["maps/ocr", "charts/ocr"], 0.1)
  ),
  "empty": Constraints(
    Space.product(CONCEPTS, TASKS, empty={"maps/ocr"}), caps={"faces/ocr": 0.1, "maps/caption": 0.2}
  ),
}


@pytest.mark.parametrize("walk", [False, True])
@pytest.mark.parametrize("name", TIGHT)
def test_uniform_agrees_with_plain_rejection(monkeypatch, name, walk):
  constraints = TIGHT[name]
  if walk:
    monkeypatch.setattr(design, "LEAST_HITS", 1.01)
  found = design.uniform(constraints.space, 2000, 4, constraints)
  expected = hypercube_rejection(constraints, 2000, 5)
  assert constraints.within(found).all() and len(np.unique(found, axis=0)) == 2000
  assert alike(found, expected, features) > 0.01
  skewed = constraints.project(found + 0.1 * (np.arange(found.shape[1]) == 0))
  assert alike(skewed, expected, features) < 1e-6


def test_a_walk_leaves_the_corners_of_caps():
  space = Space.product([f"c{i}" for i in range(4)], [f"t{i}" for i in range(3)], empty={"c0/t0"})
  sizes = dict(zip(space.cell_names, (0, 9, 4, 6, 3, 8, 5, 7, 6, 9, 5, 4), strict=True))
  constraints = Constraints(space, caps=supply_caps(space, sizes, 66, 2.0))
  found = design.uniform(space, 1000, 0, constraints)
  assert alike(found, hypercube_rejection(constraints, 1000, 1), features) > 0.01


def test_a_walk_does_not_start_in_a_corner_of_caps(monkeypatch):
  # Under these caps there are mixtures, such as projections, from which no line leads anywhere.
  names = [f"c{i}" for i in range(10)], [f"t{i}" for i in range(5)]
  space = Space.product(*names, empty={"c0/t0", "c3/t2"})
  sizes = np.random.default_rng(0).integers(50, 1500, 50)
  sizes = dict(zip(space.cell_names, sizes.tolist(), strict=True))
  caps = supply_caps(space, sizes, sum(sizes.values()), 3.0)
  monkeypatch.setattr(design, "BURN_IN", 1)
  found = design.uniform(space, 30, 0, Constraints(space, caps=caps))
  assert len(np.unique(found.round(4), axis=0)) == 30


def test_a_walk_finds_its_way_in_thin_sets():
  space = simplex(3)
  # One in a thousand of the simplex: the last weight hardly moves, the first two share the rest.
  thin = Constraints(space, groups=[Group("last", ("cell2",), 0.299, 0.3)])
  points = design.uniform(space, 3000, 0, thin)
  cube = np.stack([(points[:, 2] - 0.299) / 0.001, points[:, 0] / (1 - points[:, 2])], axis=1)
  assert evenness(np.clip(cube, 0, 1)) > 0.01


def test_a_walk_moves_where_no_two_weights_may_trade():
  cells = [f"{a}/{b}" for a in "xyz" for b in "uvw"]
  space = Space.simplex("joint", cells)
  sides = [Group(a, [c for c in cells if a in c.split("/")], 1 / 3, 1 / 3) for a in "xyzuvw"]
  tables = Constraints(space, groups=sides)
  points = design.uniform(space, 1500, 0, tables)
  assert tables.within(points).all()
  # A table with these margins is four free cells, even where the other five are not negative.
  free = np.random.default_rng(1).uniform(0, 1 / 3, size=(60000, 2, 2))
  free = np.concatenate([free, 1 / 3 - free.sum(axis=2, keepdims=True)], axis=2)
  free = np.concatenate([free, 1 / 3 - free.sum(axis=1, keepdims=True)], axis=1)
  expected = free[(free >= 0).all(axis=(1, 2))].reshape(-1, 9)
  assert len(expected) > 1000 and alike(points, expected, features) > 0.01


def test_a_single_mixture_is_drawn_again_and_again():
  space = simplex(3)
  one = Constraints(space, groups=[Group(f"g{i}", (f"cell{i}",), 1 / 3, 1 / 3) for i in range(2)])
  np.testing.assert_allclose(design.uniform(space, 5, 0, one), np.full((5, 3), 1 / 3), atol=1e-9)
  assert len(design.pool(space, 50, 0, one)) == 1


def test_sparse_draws_are_even_over_the_faces():
  space = simplex(5)
  points = design.uniform(space, 5000, 0, Constraints(space, at_most=3))
  supports, counts = np.unique(points > 0, axis=0, return_counts=True)
  assert (supports.sum(axis=1) == 3).all() and len(supports) == 10
  assert stats.chisquare(counts).pvalue > 0.01
  assert evenness(as_cube(points[points > 0].reshape(-1, 3))) > 0.01
  # With a bound that one weight needs, and another that none of its faces can do without.
  bounded = Constraints(space, lower={"cell0": 0.2}, upper={"cell1": 0.0}, at_most=2)
  points = design.uniform(space, 500, 0, bounded)
  assert bounded.within(points, 1e-12).all()
  assert (points[:, 0] >= 0.2).all() and (points[:, 1] == 0).all()
  np.testing.assert_array_equal((points > 0).sum(axis=1), 2)


def errors(points, dim):
  """How far means over a design are from the truth, in units of what random draws would give."""
  truth = np.concatenate([np.full(dim, 1 / dim), [2 / (dim + 1)]])
  found = np.append(points.mean(axis=0), (points**2).sum(axis=1).mean())
  spread = np.append(np.full(dim, np.sqrt((dim - 1) / (dim + 1)) / dim), 1 / dim)
  return (found - truth) / spread * np.sqrt(len(points))


def test_stratified_designs_are_more_even_than_random_ones():
  error = {}
  for make in (design.uniform, design.latin_hypercube, design.sobol):
    runs = [errors(make(simplex(6), 256, seed), 6) for seed in range(20)]
    error[make] = np.sqrt(np.mean(np.square(runs)))
  assert 0.5 < error[design.uniform] < 1.5
  assert error[design.latin_hypercube] < 0.5 * error[design.uniform]
  assert error[design.sobol] < 0.15 * error[design.uniform]


@pytest.mark.parametrize("make", [design.latin_hypercube, design.sobol])
def test_stratified_rows_are_flat_dirichlet_draws(make):
  # One row a seed: as random as if drawn alone.
  shares = np.concatenate([make(simplex(4), 8, seed)[[seed % 8]] for seed in range(300)])
  assert evenness(as_cube(shares)) > 0.01


def test_a_latin_hypercube_fills_every_stratum():
  points = design.latin_hypercube(simplex(2), 100, 0)
  assert len(np.unique((points[:, 0] * 20).astype(int))) == 20
  axis = design.sobol(simplex(2), 64, 0)[:, 0]
  np.testing.assert_array_equal(np.sort((axis * 64).astype(int)), np.arange(64))


def test_dirichlet_families_have_their_centre_and_spread():
  space, centre = simplex(3), np.array([0.64, 0.32, 0.04])
  for strength in (0.5, 5.0):
    draws = design.dirichlet(space, 20000, 0, centre=centre, strengths=[strength])
    np.testing.assert_allclose(draws.mean(axis=0), centre, atol=0.01)
    np.testing.assert_allclose(
      draws.var(axis=0), centre * (1 - centre) / (strength + 1), rtol=0.05, atol=0.001
    )
  tempered = design.dirichlet(space, 20000, 0, centre=centre, temperature=0.5, strengths=[5.0])
  np.testing.assert_allclose(
    tempered.mean(axis=0), np.sqrt(centre) / np.sqrt(centre).sum(), atol=0.01
  )


def test_dirichlet_reaches_the_corners_and_leaves_out_what_its_centre_does():
  space = simplex(50)
  centre = dict.fromkeys(space.names, 0.0) | dict.fromkeys(space.names[:40], 1 / 40)
  draws = design.dirichlet(space, 300, 0, centre=centre, temperature=0.5)
  assert np.isfinite(draws).all() and (draws[:, 40:] == 0).all()
  largest = draws.max(axis=1)
  assert (largest > 0.999).sum() > 10 and (largest < 0.6).sum() > 10
  with pytest.raises(ValueError, match="positive"):
    design.dirichlet(space, 3, 0, strengths=[0.0])


def product_constraints():
  space = Space.product(CONCEPTS, TASKS, empty={"faces/ocr"}, floor=0.1)
  sizes = dict(zip(space.cell_names, (90, 160, 300, 250, 230, 0), strict=True))
  return Constraints(space, caps=supply_caps(space, sizes, 1000, 2.0))


ALL = TIGHT | {
  "plain": Constraints(simplex(7)),
  "supply": product_constraints(),
  "axis": Constraints(Space.task_axis(CONCEPTS, ("a", "b", "c")), upper={"a": 0.2}, at_most=2),
  "sparse": Constraints(
    simplex(6), upper=[0.4] * 6, at_most=4, groups=[Group("a", ("cell0", "cell1"), 0.2, 0.4)]
  ),
}


@pytest.mark.parametrize("make", DESIGNS)
@pytest.mark.parametrize("name", ALL)
def test_designs_are_within_and_depend_on_the_key_alone(name, make):
  constraints = ALL[name]
  space = constraints.space
  points = make(space, 20, (3, 1), constraints)
  assert points.shape == (20, space.dim) and constraints.within(points, 1e-11).all()
  assert (points >= space.lower).all()
  np.testing.assert_array_equal(points, make(space, 20, (3, 1), constraints))
  assert not np.array_equal(points, make(space, 20, (3, 2), constraints))
  assert make(space, 1, 0, constraints).shape == (1, space.dim)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 50), st.integers(0, 2**32), st.booleans())
def test_no_design_ever_leaves_the_constraints(dim, seed, grouped):
  rng, space = np.random.default_rng(seed), simplex(dim)
  known = rng.dirichlet(np.ones(dim))
  slack = rng.choice([0.001, 0.05, 0.5], size=(2, dim))
  members = rng.choice(space.names, size=rng.integers(1, dim + 1), replace=False).tolist()
  total = known[[space.names.index(name) for name in members]].sum()
  constraints = Constraints(
    space,
    np.maximum(known - slack[0], 0),
    np.minimum(known + slack[1], 1),
    [Group("some", members, total - 0.02, total + 0.02)] if grouped else (),
  )
  for make in DESIGNS[1:4]:
    assert constraints.within(make(space, 9, seed, constraints), 1e-11).all()


@pytest.mark.parametrize("name", [n for n in ALL if n != "axis"])
def test_a_pool_is_distinct_starts_near_uniform_and_serves_a_space(name):
  constraints = ALL[name]
  space = constraints.space
  found = design.pool(space, 80, 0, constraints)
  assert found.shape == (80, space.dim)
  assert len(np.unique(found.round(6), axis=0)) == 80
  np.testing.assert_allclose(found[:1], constraints.project(space.uniform()[None]))
  np.testing.assert_allclose(space.with_pool(found).pool, found, atol=1e-12)


def test_a_pool_reaches_from_specialists_to_generalists():
  largest = design.pool(simplex(10), 1000, 0).max(axis=1)
  assert (largest > 0.9).sum() >= 5 and (largest < 0.15).sum() >= 5


def test_a_pool_gives_what_there_is():
  space = simplex(4)
  found = design.pool(space, 100, 0, Constraints(space, at_most=1))
  np.testing.assert_array_equal(found[np.argsort(found.argmax(axis=1))], np.eye(4))


def test_constraints_of_another_space_are_refused():
  with pytest.raises(ValueError, match="for joint, not for other"):
    design.uniform(Space.simplex("other", ["a", "b"]), 3, 0, Constraints(simplex(2)))
  with pytest.raises(ValueError, match="at least one"):
    design.sobol(simplex(2), 0, 0)
