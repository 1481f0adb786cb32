import jax
import numpy as np
import pytest

from mixjax.search.space import Space, candidates, generator

CONCEPTS = ("maps", "charts", "faces")
TASKS = ("caption", "ocr")
SPACES = {
  "task": Space.task_axis(CONCEPTS, TASKS),
  "concept": Space.concept_axis(CONCEPTS, TASKS),
  "product": Space.product(CONCEPTS, TASKS),
  "joint": Space.simplex("joint", [f"{c}/{t}" for c in CONCEPTS for t in TASKS]),
}


def test_a_task_recipe_samples_concepts_uniformly_and_a_concept_recipe_tasks():
  cells = SPACES["task"].cells([0.25, 0.75])
  assert cells == pytest.approx(
    {f"{c}/{t}": w / 3 for c in CONCEPTS for t, w in (("caption", 0.25), ("ocr", 0.75))}
  )
  cells = SPACES["concept"].cells([0.5, 0.3, 0.2])
  assert cells["maps/ocr"] == pytest.approx(0.25) and cells["faces/caption"] == pytest.approx(0.1)


def test_a_product_recipe_is_the_outer_product():
  space = SPACES["product"]
  assert space.names == CONCEPTS + TASKS and space.dim == 5
  cells = space.cells([0.5, 0.3, 0.2, 0.25, 0.75])
  assert list(cells) == [f"{c}/{t}" for c in CONCEPTS for t in TASKS]
  np.testing.assert_allclose(list(cells.values()), np.outer([0.5, 0.3, 0.2], [0.25, 0.75]).ravel())


@pytest.mark.parametrize("build", [Space.task_axis, Space.concept_axis, Space.product])
def test_uniform_is_the_same_mixture_on_every_axis_and_leaves_empty_cells_out(build):
  space = build(CONCEPTS, TASKS, empty={"maps/ocr"})
  cells = space.cells(space.uniform())
  assert cells.pop("maps/ocr") == 0
  assert cells == pytest.approx(dict.fromkeys(cells, 1 / 5))


def test_weight_on_empty_cells_alone_is_an_error():
  space = Space.task_axis(CONCEPTS, TASKS, empty={f"{c}/ocr" for c in CONCEPTS})
  with pytest.raises(ValueError, match="empty"):
    space.cells([0.0, 1.0])


@pytest.mark.parametrize(
  ("points", "message"),
  [
    ([[0.5, 0.6]], "mixture 0: its task weights sum to 1.1"),
    ([[0.5, 0.5], [-0.1, 1.1]], "mixture 1: weight of 'caption' is -0.1"),
    ([[np.nan, 1.0]], "'caption' is nan"),
    ([[np.inf, 0.0]], "'caption' is inf"),
    ([[0.2, 0.3, 0.5]], "shape"),
    ([0.5, 0.5], "shape"),
  ],
)
def test_points_off_the_simplex_are_named(points, message):
  with pytest.raises(ValueError, match=message):
    SPACES["task"].check(points)


def test_names_go_both_ways_and_strangers_are_refused():
  space = SPACES["product"]
  point = space.check([[0.5, 0.3, 0.2, 0.25, 0.75]])[0]
  np.testing.assert_array_equal(space.from_dict(space.as_dict(point)), point)
  with pytest.raises(ValueError, match="no weight for"):
    space.from_dict({"maps": 1.0})
  with pytest.raises(ValueError, match="cats"):
    space.from_dict(space.as_dict(point) | {"cats": 0.0})


@pytest.mark.parametrize(
  "arguments",
  [
    dict(concepts=("ocr", "maps"), tasks=TASKS),  # the same name on two axes
    dict(concepts=("a/b",), tasks=TASKS),
    dict(concepts=(), tasks=TASKS),
    dict(concepts=CONCEPTS, tasks=TASKS, empty={"maps/vqa"}),
    dict(concepts=CONCEPTS, tasks=TASKS, floor=1.5),
  ],
)
def test_impossible_spaces_are_refused(arguments):
  with pytest.raises(ValueError):
    Space.product(**arguments)
  with pytest.raises(ValueError, match="cells"):
    Space.task_axis(("maps", "maps"), TASKS)


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("count", [1, 2, 7, 400])
def test_candidates_lie_on_the_simplex_and_start_with_uniform(name, count):
  space = SPACES[name]
  pool = candidates(space, count, 3)
  assert pool.shape == (count, space.dim)
  np.testing.assert_allclose(space.check(pool), pool, atol=1e-12)
  np.testing.assert_allclose(pool[0], space.uniform())
  assert len(np.unique(pool, axis=0)) == count
  np.testing.assert_array_equal(pool, candidates(space, count, 3))
  assert count == 1 or not np.array_equal(pool, candidates(space, count, 4))


def test_candidates_reach_from_specialists_to_generalists():
  space = Space.simplex("ten", [str(i) for i in range(10)])
  largest = candidates(space, 1000, 0).max(axis=1)
  assert (largest > 0.9).sum() >= 5  # points drawn evenly from this simplex: one in 10^8
  assert (largest < 0.15).sum() >= 5  # one in 10^4


def test_the_hypercube_covers_evenly_what_random_draws_do_not():
  space = Space.simplex("three", ["a", "b", "c"])
  deviations = []
  for seed in range(20):
    stratified = candidates(space, 400, seed)[1:201]
    random = generator(seed).dirichlet(np.ones(3), 200)
    deviations.append([np.abs(p.mean(axis=0) - 1 / 3).max() for p in (stratified, random)])
  stratified, random = np.mean(deviations, axis=0)
  assert stratified < 0.6 * random


@pytest.mark.parametrize("floor", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("build", [Space.task_axis, Space.product])
def test_the_floor_is_never_violated(build, floor):
  space = build(CONCEPTS, TASKS, floor=floor)
  pool = candidates(space, 300, 0)
  assert (pool >= floor * space.uniform()).all()
  np.testing.assert_allclose(space.raise_to_floor(pool), pool, atol=1e-12)
  space.with_pool(pool)
  if floor:
    one_hot = np.eye(space.dim)[[0] + [3] * (build == Space.product)].sum(axis=0, keepdims=True)
    with pytest.raises(ValueError, match="lower bound"):
      space.with_pool(one_hot)


def test_a_pool_holds_each_candidate_once_in_order_and_at_least_one():
  space = Space.simplex("x", ["a", "b"])
  pool = space.with_pool([[0.7, 0.3], [0.2, 0.8], [0.7, 0.3], [0.1, 0.9]]).pool
  np.testing.assert_array_equal(pool, [[0.7, 0.3], [0.2, 0.8], [0.1, 0.9]])
  with pytest.raises(ValueError, match="pool of the x axis has no candidate"):
    space.with_pool(np.zeros((0, 2)))


def test_keys_are_ints_tuples_or_jax_keys():
  a, b, c = (generator(key).uniform() for key in (1, (1, 2), jax.random.key(1)))
  assert len({a, b, c}) == 3 and c == generator(jax.random.key(1)).uniform()
