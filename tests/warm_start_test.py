import numpy as np
import pytest

from mixjax.search import surrogate
from mixjax.search.observations import Observations
from mixjax.search.policies.mixatlas import MixAtlas
from mixjax.search.space import Space, candidates
from mixjax.search.warm_start import joined, translate

OLD = ("web", "code", "maths", "books")
RNG = np.random.default_rng(0)


def simplex(*names):
  space = Space.simplex("joint", names)
  return space.with_pool(candidates(space, 60, 0))


def make_runs(space=None, count=10, **fields):
  space = space or simplex(*OLD)
  points = space.pool[1 : count + 1]
  return Observations(points, points[:, 0] - points[:, 1] ** 2, **fields)


def test_after_a_mere_renaming_suggestions_are_equal_to_the_last_bit():
  old, new = simplex(*OLD), simplex("web", "python", "maths", "novels")
  runs = make_runs(old, pending=old.pool[20:22], fidelity=np.full(10, 64.0))
  told = translate(runs, old, new, renamed={"code": "python", "books": "novels"})
  for name in ("mixtures", "scores", "fidelity", "pending"):
    np.testing.assert_array_equal(getattr(told, name), getattr(runs, name))
  assert told.stderr is None
  asked = MixAtlas(old, seeds=4).ask(runs, 3, 0)
  np.testing.assert_array_equal(MixAtlas(new, seeds=4).ask(told, 3, 0), asked)


def test_names_decide_not_places():
  old, new = simplex("a", "b", "c"), simplex("c", "x", "a")
  told = translate(make_runs(old), old, new, renamed={"b": "x"})
  np.testing.assert_array_equal(told.mixtures, make_runs(old).mixtures[:, [2, 1, 0]])
  swapped = translate(make_runs(old), old, old, renamed={"a": "b", "b": "a"})
  np.testing.assert_array_equal(swapped.mixtures, make_runs(old).mixtures[:, [1, 0, 2]])


def test_merged_weights_add_up_and_split_ones_are_shared():
  old, new = simplex(*OLD), simplex("text", "python", "c", "maths", "films")
  runs = make_runs(old, pending=old.pool[30:33])
  told = translate(
    runs,
    old,
    new,
    merged={"text": ["web", "books"]},
    split={"code": ("python", "c")},
    added=["films"],
    rows={"python": 300, "c": 100},
  )
  for before, after in ((runs.mixtures, told.mixtures), (runs.pending, told.pending)):
    web, code, maths, books = before.T
    wanted = [web + books, 0.75 * code, 0.25 * code, maths, 0 * web]
    np.testing.assert_array_equal(after, np.transpose(wanted))
    np.testing.assert_allclose(after.sum(axis=1), 1, atol=1e-15)
  stated = translate(
    runs, old, simplex("web", "maths", "books", "x", "y"), split={"code": {"x": 0.9, "y": 0.1}}
  )
  np.testing.assert_allclose(stated.mixtures[:, 3:], runs.mixtures[:, [1]] * [0.9, 0.1], rtol=1e-15)


def test_each_axis_of_a_product_keeps_its_sum():
  tasks = ("ocr", "vqa")
  old = Space.product(("maps", "charts", "faces"), tasks)
  new = Space.product(("figures", "faces"), tasks)
  points = candidates(old, 20, 0)
  told = translate(
    Observations(points, points[:, 0]), old, new, merged={"figures": ["maps", "charts"]}
  )
  np.testing.assert_allclose(told.mixtures[:, :2].sum(axis=1), 1, atol=1e-15)
  np.testing.assert_array_equal(told.mixtures[:, 2:], points[:, 3:])
  # Rows of a concept do not tell those of its cells: they settle nothing here.
  told = translate(
    Observations(points, points[:, 0]),
    old,
    new,
    merged={"figures": ["maps", "charts"]},
    rows={"maps": 10, "charts": 10},
    doubt=2.0,
  )
  np.testing.assert_allclose(told.stderr, 2 * (points[:, 0] + points[:, 1]), rtol=1e-12)


MIXTURES = np.array([[0.3, 0.1, 0.6], [0.2, 0.2, 0.6], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])


def merge(stderr=None, **options):
  old, new = Space.simplex("old", ("a", "b", "c")), Space.simplex("new", ("ab", "c"))
  runs = Observations(MIXTURES, np.array([0.0, 1.0, 2.0, 5.0]), stderr)
  return runs, translate(runs, old, new, merged={"ab": ["a", "b"]}, **options)


def test_doubt_is_what_the_old_run_drew_differently():
  _, told = merge(rows={"a": 300, "b": 100}, doubt=1.0)
  np.testing.assert_allclose(told.stderr, [0, 0.1, 0, 0.25], atol=1e-15)
  assert told.stderr[0] == 0 and told.stderr[2] == 0
  runs, told = merge()  # without rows, all that was merged, as if the run told nothing of it
  np.testing.assert_allclose(told.stderr, runs.scores.std() * np.array([0.4, 0.4, 0, 1]))
  stated = np.array([0.3, 0.0, 0.2, 0.4])
  _, told = merge(stated, doubt=1.0)
  np.testing.assert_allclose(told.stderr, [0.5, 0.4, 0.2, np.hypot(0.4, 1)])
  _, told = merge(stated, doubt=0.0)
  np.testing.assert_array_equal(told.stderr, stated)


def test_a_split_by_rows_is_what_was_drawn_and_stated_shares_are_only_said_to_be():
  old, new = Space.simplex("old", ("a", "b", "c")), Space.simplex("new", ("a1", "a2", "b", "c"))
  runs = Observations(MIXTURES, np.array([0.0, 1.0, 2.0, 5.0]))
  rows = {"a1": 30, "a2": 60}
  assert translate(runs, old, new, split={"a": ["a1", "a2"]}, rows=rows).stderr is None
  stated = {"a": {"a1": 0.5, "a2": 0.5}}
  told = translate(runs, old, new, split=stated, doubt=1.0)
  np.testing.assert_allclose(told.stderr, MIXTURES[:, 0])
  told = translate(runs, old, new, split=stated, rows=rows, doubt=1.0)
  np.testing.assert_allclose(told.stderr, MIXTURES[:, 0] / 6)


def test_the_surrogate_trusts_doubtful_runs_less():
  old, new = simplex("a", "b", "c"), simplex("ab", "c")
  runs = make_runs(old)
  merged = {"ab": ["a", "b"]}
  trusted, doubted = (
    translate(runs, old, new, merged=merged, doubt=doubt) for doubt in (0.0, 10 * runs.scores.std())
  )
  hyper = surrogate.Hyperparameters((2.0, 2.0), 1.0, 0.1)
  sds = [surrogate.condition(told, new, hyper).predict(new.pool)[1] for told in (trusted, doubted)]
  assert (sds[1] > sds[0]).all() and np.median(sds[1] / sds[0]) > 2


@pytest.mark.parametrize(
  ("names", "options", "message"),
  [
    (("web", "code", "maths"), {}, r"old \['books'\] have no place .* renamed, merged or split"),
    ((*OLD, "films"), {}, r"new \['films'\] come from nowhere.* added"),
    (OLD, {"renamed": {"wbe": "web"}}, r"\['wbe'\] are no coordinates of the old joint axis"),
    (("x", *OLD[1:]), {"renamed": {"web": "y"}}, r"\['y'\] are no coordinates of the new"),
    (OLD[:3], {"renamed": {"books": "web"}}, r"new \['web'\] are reached from two.*merged"),
    (
      ("x", "y", *OLD[1:]),
      {"renamed": {"web": "x"}, "split": {"web": {"y": 1.0}}},
      r"old \['web'\] go to two places",
    ),
    (("x", "y", *OLD[1:]), {"split": {"web": {"x": 0.5, "y": 0.4}}}, r"'web' are .* not 0\.9"),
    (("x", "y", *OLD[1:]), {"split": {"web": {"x": 1.5, "y": -0.5}}}, r"not negative"),
    (("x", "y", *OLD[1:]), {"split": {"web": ["x", "y"]}}, r"give the rows of \['x', 'y'\]"),
    (
      ("x", "y", *OLD[1:]),
      {"split": {"web": ["x", "y"]}, "rows": {"x": 0, "y": 0}},
      r"not all 0",
    ),
    (OLD, {"doubt": -1.0}, r"doubt is a standard error"),
  ],
)
def test_what_does_not_fit_is_named_with_a_remedy(names, options, message):
  old, new = Space.simplex("joint", OLD), Space.simplex("joint", names)
  with pytest.raises(ValueError, match=message):
    translate(make_runs(), old, new, **options)


def test_weight_stays_on_its_axis():
  old = Space.product(("maps", "charts"), ("ocr", "vqa"))
  new = Space.product(("maps", "ocr"), ("charts", "vqa"))
  with pytest.raises(ValueError, match="'charts' and 'charts' are on different axes"):
    translate(Observations.none(old), old, new)
  with pytest.raises(ValueError, match="weights sum to"):
    translate(Observations([[0.5, 0.4, 0.5, 0.5]], [1.0]), old, old)


def test_parts_of_scores_are_carried_and_doubted_by_their_own_spread():
  old, new = simplex("a", "b", "c"), simplex("ab", "c")
  parts = np.column_stack([old.pool[1:11, 0], 10 * old.pool[1:11, 1]])
  runs = Observations(old.pool[1:11], parts.sum(axis=1), parts=parts)
  warm = translate(runs, old, new, merged={"ab": ["a", "b"]})
  np.testing.assert_array_equal(warm.parts, parts)
  share = warm.stderr / runs.scores.std()
  np.testing.assert_allclose(warm.part_stderr, np.outer(share, parts.std(axis=0)), rtol=1e-12)
  told = parts[:2]
  fresh = Observations(new.pool[1:3], told.sum(axis=1), parts=told)
  both = joined([warm, fresh])
  np.testing.assert_array_equal(both.parts, np.concatenate([parts, told]))
  np.testing.assert_array_equal(both.part_stderr[10:], 0)
  with pytest.raises(ValueError, match="only some of the runs state their parts"):
    joined([warm, make_runs(new, 3)])
  with pytest.raises(ValueError, match=r"have \[1, 2\] parts"):
    joined([warm, Observations(new.pool[1:2], [1.0], parts=[[1.0]])])


def test_old_and_new_runs_are_searched_as_one():
  old, new = simplex("a", "b", "c"), simplex("ab", "c")
  warm = translate(make_runs(old), old, new, merged={"ab": ["a", "b"]})
  fresh = make_runs(new, 3, pending=new.pool[10:12])
  both = joined([warm, fresh])
  np.testing.assert_array_equal(both.mixtures, np.concatenate([warm.mixtures, fresh.mixtures]))
  np.testing.assert_array_equal(both.scores, np.concatenate([warm.scores, fresh.scores]))
  np.testing.assert_array_equal(both.stderr, [*warm.stderr, 0, 0, 0])
  np.testing.assert_array_equal(both.pending, fresh.pending)
  assert both.fidelity is None
  assert joined([fresh, fresh]).stderr is None
  with pytest.raises(ValueError, match="fidelity"):
    joined([make_runs(new, 3, fidelity=np.ones(3)), fresh])
  assert joined([Observations.none(new), make_runs(new, 3, fidelity=np.ones(3))]).fidelity.all()
