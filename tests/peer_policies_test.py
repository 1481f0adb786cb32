import itertools

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import rel_entr
from scipy.stats import spearmanr
from sklearn.linear_model import Ridge

from mixjax.search import tables
from mixjax.search.observations import Observations, matches
from mixjax.search.policies import bimix, mixing_laws, olmix
from mixjax.search.policies.best_of_random import BestOfRandom
from mixjax.search.policies.bimix import BiMix, PowerLaw, fit_power_law
from mixjax.search.policies.climb import Climb
from mixjax.search.policies.mixing_laws import MixingLaws, fit_mixing_law, halving_search
from mixjax.search.policies.modomodo import (
  MoDoMoDo,
  alpha,
  coli,
  fit_best_split,
  fit_quadratic,
  norm,
  pilots,
)
from mixjax.search.policies.olmix import LogLinear, Olmix, fit_log_linear
from mixjax.search.policies.regmix import RegMix, fit_trees
from mixjax.search.space import Space, candidates

TASKS = ("caption", "ocr", "grounded", "detection", "vqa")
BARE = Space.simplex("task", TASKS)
SPACE = BARE.with_pool(candidates(BARE, 300, 0))
WIDE = Space.product(("maps", "charts", "faces"), ("caption", "ocr", "vqa"))
PRODUCT = WIDE.with_pool(candidates(WIDE, 200, 0))
FLOORED = Space.product(("maps", "charts", "faces"), ("caption", "ocr", "vqa"), floor=0.3)

SLOPE = np.array([-3.0, 0.5, -1.0, 1.5, -6.0])


def truth(mixtures):
  """Every domain counts, most of all the last."""
  return 2 - np.exp(mixtures @ np.resize(SLOPE, mixtures.shape[1]))


def runs_on(space, count, scale=1.0, noise=0.0):
  mixtures = space.pool[:count] if space.pool is not None else candidates(space, count, 0)
  return Observations(
    mixtures, scale * (truth(mixtures) + noise * np.random.default_rng(0).normal(size=count))
  )


POLICIES = {
  "climb": lambda space: Climb(space, budget=28),
  "quadratic": MoDoMoDo,
  "quadratic in pool": lambda space: MoDoMoDo(space, over="pool"),
  "best split": lambda space: MoDoMoDo(space, fit="best split"),
  "olmix": Olmix,
  "mixing laws": MixingLaws,
  "bimix": BiMix,
}
POOLLESS = ("quadratic", "olmix", "mixing laws", "bimix")


@pytest.mark.parametrize("space", [SPACE, PRODUCT], ids=["simplex", "product"])
@pytest.mark.parametrize("name", POLICIES)
def test_answers_are_a_function_of_the_target_runs_and_the_key(name, space):
  policy = POLICIES[name](space)
  runs = runs_on(space, 20)
  asked = policy.ask(runs, 6, 7)
  assert matches(asked, space.pool).all() and not matches(asked, runs.mixtures).any()
  assert len(np.unique(asked, axis=0)) == 6
  mixed = Observations(
    np.concatenate([runs.mixtures, runs.mixtures]),
    np.concatenate([runs.scores, -9 * runs.scores]),
    fidelity=np.repeat([1.0, 0.1], 20),
  )
  np.testing.assert_array_equal(policy.ask(mixed, 6, 7), asked)
  assert not np.array_equal(policy.ask(runs, 6, 8), asked)
  waiting = Observations(runs.mixtures, runs.scores, pending=asked)
  assert not matches(policy.ask(waiting, 6, 7), asked).any()
  first, second = policy.recommend(runs), policy.recommend(mixed)
  np.testing.assert_array_equal(first.mixture, second.mixture)
  assert (first.mean, first.sd) == (second.mean, None)
  np.testing.assert_allclose(space.check(first.mixture[None])[0], first.mixture, atol=1e-12)


@pytest.mark.parametrize("name", ["quadratic", "olmix", "mixing laws", "bimix", "climb"])
def test_the_random_design_does_not_depend_on_the_batch(name):
  for space in (SPACE,) if name == "climb" else (SPACE, BARE):
    policy = POLICIES[name](space)
    one_by_one = Observations.none(space)
    for _ in range(8):
      asked = np.concatenate([one_by_one.mixtures, policy.ask(one_by_one, 1, 3)])
      one_by_one = Observations(asked, truth(asked))
    at_once = policy.ask(Observations.none(space), 8, 3)
    np.testing.assert_array_equal(one_by_one.mixtures, at_once)


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("count", [1, 2, 5, 30])
def test_few_runs_of_any_scale_give_a_sane_answer(name, count):
  policy = POLICIES[name](SPACE)
  if name == "best split" and count < 4:
    with pytest.raises(ValueError, match="cannot be split"):
      policy.recommend(runs_on(SPACE, count))
    return
  plain = policy.recommend(runs_on(SPACE, count))
  for scale in (1e-6, 1e6):
    scaled = policy.recommend(runs_on(SPACE, count, scale))
    # Rounding moves an optimiser a little: worth the same rather than bit for bit the same.
    assert abs(truth(scaled.mixture[None]) - truth(plain.mixture[None])) < 1e-3
    assert scaled.mean == pytest.approx(scale * plain.mean, rel=1e-2)
  if count >= 30:
    quantile = 0.5 if name == "best split" else 0.9
    assert truth(plain.mixture[None])[0] > np.quantile(truth(SPACE.pool), quantile)


@pytest.mark.parametrize("name", POOLLESS)
def test_without_a_pool_and_within_bounds(name):
  policy = POLICIES[name](FLOORED)
  asked = policy.ask(Observations.none(FLOORED), 30, 1)
  assert (asked >= FLOORED.lower - 1e-12).all()
  # A run outside the bounds, better than anything allowed.
  outside = FLOORED.check([[1, 0, 0, 1, 0, 0]])
  scores = np.append(truth(asked), 2.05)
  advice = policy.recommend(Observations(np.concatenate([asked, outside]), scores))
  assert (advice.mixture >= FLOORED.lower - 1e-12).all()
  np.testing.assert_allclose(FLOORED.check(advice.mixture[None])[0], advice.mixture, atol=1e-12)
  assert truth(advice.mixture[None])[0] > np.median(truth(asked))


def test_climb_goes_by_rounds_drawn_from_the_best_predictions():
  assert Climb(SPACE).rounds() == (64, 32, 16)
  assert Climb(SPACE, budget=5).rounds() == (3, 1, 1)
  assert Climb(SPACE, budget=1).rounds() == (1, 0, 0)
  policy = Climb(SPACE, budget=28)
  first = policy.ask(Observations.none(SPACE), 16, 0)
  np.testing.assert_array_equal(first, BestOfRandom(SPACE).ask(Observations.none(SPACE), 16, 0))
  runs = Observations(first, truth(first))
  unseen = SPACE.pool[~matches(SPACE.pool, first)]
  top = unseen[np.argsort(-fit_trees(runs)(unseen), kind="stable")[:32]]
  second = policy.ask(runs, 8, 0)
  assert matches(second, top).all() and not matches(second, top[:8]).all()
  assert not np.array_equal(np.sort(second, 0), np.sort(policy.ask(runs, 8, 1), 0))
  runs = Observations(np.concatenate([first, second]), truth(np.concatenate([first, second])))
  unseen = SPACE.pool[~matches(SPACE.pool, runs.mixtures)]
  top = unseen[np.argsort(-fit_trees(runs)(unseen), kind="stable")[:16]]
  # Past the budget the last round goes on.
  for count in (4, 7):
    assert matches(policy.ask(runs, count, 0), top).all()
  np.testing.assert_array_equal(
    policy.recommend(runs).mixture, RegMix(SPACE).recommend(runs).mixture
  )


def test_climb_fills_a_batch_across_rounds():
  policy = Climb(SPACE, budget=28)
  runs = runs_on(SPACE, 14)
  asked = policy.ask(runs, 12, 0)
  np.testing.assert_array_equal(asked[:2], BestOfRandom(SPACE).ask(runs, 2, 0))
  ranked = SPACE.pool[np.argsort(-fit_trees(runs)(SPACE.pool), kind="stable")]
  fresh = ranked[~matches(ranked, np.concatenate([runs.mixtures, asked[:2]]))]
  assert matches(asked[2:10], fresh[:32]).all()
  after = fresh[~matches(fresh, asked[:10])]
  assert matches(asked[10:], after[:16]).all()
  assert len(np.unique(asked, axis=0)) == 12


def test_climb_beats_the_same_number_of_random_runs():
  peak = np.array([0.3, 0.1, 0.2, 0.25, 0.15])
  space = BARE.with_pool(candidates(BARE, 1000, 1))

  def loss(mixtures):
    return np.sum((np.sqrt(mixtures) - np.sqrt(peak)) ** 2, axis=1)

  def regret(policy, key):
    runs = Observations.none(space)
    for count in sizes:
      mixtures = np.concatenate([runs.mixtures, policy.ask(runs, count, key)])
      runs = Observations(mixtures, -loss(mixtures))
    return -runs.scores.max() - loss(space.pool).min()

  sizes = Climb(space, budget=42).rounds()
  climb, random = (
    np.mean([regret(policy, key) for key in range(5)])
    for policy in (Climb(space, budget=42), BestOfRandom(space))
  )
  assert climb < 0.6 * random, (climb, random)


def test_the_quadratic_fits_recover_a_quadratic():
  rng = np.random.default_rng(1)
  linear, square = rng.normal(size=5), rng.normal(size=(5, 5))

  def quadratic(w):
    return 7 + w @ linear + np.einsum("ni,ij,nj->n", w, square, w)

  runs = Observations(SPACE.pool[:100], quadratic(SPACE.pool[:100]))
  held_out = SPACE.pool[100:]
  for predict in (fit_best_split(runs), fit_quadratic(runs, ridge=1e-8)):
    np.testing.assert_allclose(predict(held_out), quadratic(held_out), atol=1e-4)
  # Few noisy runs: the ridge is what keeps it from the splits' selection on noise.
  noisy = Observations(
    runs.mixtures[:24], runs.scores[:24] + 0.3 * np.random.default_rng(0).normal(size=24)
  )
  ridge, split = (
    np.mean((predict(held_out) - quadratic(held_out)) ** 2)
    for predict in (fit_quadratic(noisy), fit_best_split(noisy))
  )
  assert ridge < 0.5 * split


def test_gaussian_candidates_reach_a_peak_between_the_runs():
  peak = np.array([0.3, 0.1, 0.2, 0.25, 0.15])
  runs = Observations(SPACE.pool[:60], -np.sum((SPACE.pool[:60] - peak) ** 2, axis=1))
  found = {over: MoDoMoDo(SPACE, over=over).recommend(runs).mixture for over in ("pool", None)}
  found["bare"] = MoDoMoDo(BARE).recommend(runs).mixture
  apart = {over: np.abs(mixture - peak).max() for over, mixture in found.items()}
  assert apart[None] < 0.05 and apart["bare"] < 0.05
  assert matches(found["pool"][None], SPACE.pool)[0]
  assert not matches(found[None][None], SPACE.pool)[0]


def test_pilots_are_singles_leave_one_outs_and_all():
  mixtures, members = pilots(BARE)
  np.testing.assert_array_equal(mixtures[:5], np.eye(5))
  np.testing.assert_allclose(mixtures[5:10], (1 - np.eye(5)) / 4)
  np.testing.assert_allclose(mixtures[10], 0.2)
  np.testing.assert_array_equal(members, mixtures > 0)
  lifted, _ = pilots(Space.simplex("task", TASKS, floor=0.25))
  assert lifted.min() == pytest.approx(0.05) and lifted[0, 0] == pytest.approx(0.8)
  near, _ = pilots(SPACE)
  assert matches(near, SPACE.pool).all() and len(np.unique(near, axis=0)) == 11
  assert (np.argmax(near[:5], axis=1) == np.arange(5)).all()
  assert (np.argmin(near[5:10], axis=1) == np.arange(5)).all()
  with pytest.raises(ValueError, match="one axis"):
    pilots(PRODUCT)
  with pytest.raises(ValueError, match="a pool of 4"):
    pilots(BARE.with_pool(SPACE.pool[:4]))


def test_heuristics_by_hand():
  _, members = pilots(Space.simplex("domain", ("a", "b", "c")))
  scores = np.array([5.0, 1, 2, 4, 7, 6, 8])
  # In: a = 5+7+6+8, b = 1+4+6+8, c = 2+4+7+8. Out: a = 1+2+4, b = 5+2+7, c = 5+1+6.
  inside, outside = np.array([7, 0, 2]) / 7, np.array([0, 7, 5]) / 7
  np.testing.assert_allclose(alpha(members, scores), inside / inside.sum())
  np.testing.assert_allclose(alpha(members, scores, 0.0), outside / outside.sum())
  np.testing.assert_allclose(alpha(members, scores, 0.5), np.full(3, 1 / 3))
  np.testing.assert_allclose(alpha(members, np.ones(7)), np.full(3, 1 / 3))
  ridge = Ridge(1e-3, fit_intercept=False).fit(members.astype(float), scores)
  inflation = np.diag(np.linalg.inv(members.T.astype(float) @ members + 1e-3 * np.eye(3)))
  expected = np.maximum(ridge.coef_ / inflation, 0)
  np.testing.assert_allclose(coli(members, scores), expected / expected.sum(), rtol=1e-9)
  np.testing.assert_allclose(coli(members, -scores * 0), np.full(3, 1 / 3))
  # Best without b (0.1), worst without a (0.2), c two thirds of the way.
  np.testing.assert_allclose(norm(np.array([4.0, 7, 6])), np.array([3, 1.5, 2]) / 6.5)


@pytest.mark.parametrize("how", ["alpha", "coli", "norm"])
@pytest.mark.parametrize("space", [BARE, SPACE], ids=["bare", "pool"])
def test_heuristics_ask_for_the_pilots_first_and_answer_from_them(how, space):
  policy = MoDoMoDo(space, recommend_by=how)
  design, _ = pilots(space)
  asked = policy.ask(Observations.none(space), 7, 0)
  np.testing.assert_array_equal(asked, design[:7])
  part = Observations(asked, truth(asked))
  with pytest.raises(ValueError, match="4 of 11 pilots are no finished run"):
    policy.recommend(part)
  rest = policy.ask(part, 9, 0)
  np.testing.assert_array_equal(rest[:4], design[7:])
  assert not matches(rest[4:], design).any()
  runs = Observations(np.concatenate([asked, rest]), truth(np.concatenate([asked, rest])))
  # Whatever else has run, the scores' zero and scale: only the pilots' order and spacing count.
  alone = Observations(runs.mixtures[:11], -3e6 + 1e6 * runs.scores[:11])
  advice = policy.recommend(runs)
  np.testing.assert_allclose(advice.mixture, policy.recommend(alone).mixture, atol=1e-6)
  # The domain that hurts most gets least. The two that are worth most get most: exactly in order
  # from exact pilots, while the pool's are not pure enough to tell two saturated scores apart.
  assert np.argmax(advice.mixture) in ((4,) if space is BARE else (0, 4))
  assert np.argmin(advice.mixture) == np.argmax(SLOPE)
  inside = MoDoMoDo(SPACE, recommend_by=how, over="pool").recommend
  if space is SPACE:
    assert matches(inside(runs).mixture[None], SPACE.pool)[0]


def test_the_log_linear_fits_recover_their_law():
  held_out = SPACE.pool[200:]
  for fit in (fit_log_linear, fit_mixing_law):
    law = fit(runs_on(SPACE, 60))
    assert law.center - law.scale * law.floor == pytest.approx(2, abs=1e-3)
    np.testing.assert_allclose(law(held_out), truth(held_out), atol=1e-3)
  # A Huber loss: three absurd scores out of sixty change little.
  runs = runs_on(SPACE, 60)
  scores = runs.scores.copy()
  scores[[3, 30, 50]] += [-4, 6, -8]
  law = fit_log_linear(Observations(runs.mixtures, scores))
  assert np.abs(law(held_out) - truth(held_out)).mean() < 0.05


def test_one_run_is_a_constant_law():
  for fit in (fit_log_linear, fit_mixing_law, fit_power_law, fit_quadratic):
    predict = fit(Observations(SPACE.pool[3:4], [-0.7]))
    np.testing.assert_allclose(predict(SPACE.pool), -0.7, atol=1e-3)
    with pytest.raises(ValueError, match="no finished run"):
      fit(Observations.none(SPACE))


GRID = (
  np.array(
    [(i, j, 200 - i - j) for i, j in itertools.product(range(201), repeat=2) if i + j <= 200]
  )
  / 200
)


@pytest.mark.parametrize("pull", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("caps", [None, dict(a=0.4), dict(a=0.2, b=0.45, c=0.5)])
@pytest.mark.parametrize("floor", [0.0, 0.3])
def test_the_proposer_is_exact_in_three_dimensions(pull, caps, floor):
  space = Space.simplex("domain", ("a", "b", "c"), floor=floor)
  prior = np.array([0.2, 0.5, 0.3])
  upper = olmix.limits(space, caps)
  law = LogLinear(0.0, np.array([-2.0, 1.0, -1.5]), 0.0, 1.0)

  def cost(points):
    return law.loss(points) + pull * rel_entr(points, prior).sum(axis=1)

  found = olmix.least_loss(law, space, prior, pull, upper)
  inside = (found >= space.lower - 1e-12) & (found <= upper + 1e-12)
  assert inside.all() and found.sum() == pytest.approx(1, abs=1e-12)
  grid = GRID[((space.lower - 1e-9 <= GRID) & (upper + 1e-9 >= GRID)).all(axis=1)]
  best = cost(grid).min()
  # No point of the grid is better; the best of them is only better than ours by the least pull.
  assert cost(found[None])[0] <= best + 1e-5
  assert cost(found[None])[0] >= best - 1e-3


def test_the_proposer_is_exact_on_two_axes():
  prior = candidates(FLOORED, 5, 9)[4]
  upper = olmix.limits(FLOORED, dict(charts=0.35, vqa=0.6))
  law = LogLinear(0.0, np.array([-1.0, -3.0, 0.5, 1.0, -0.5, -2.0]), 0.0, 1.0)
  found = olmix.least_loss(law, FLOORED, prior, 0.1, upper)

  def cost(p):
    return np.exp(p @ law.slope) + 0.1 * rel_entr(p, prior).sum()

  theirs = minimize(
    cost,
    FLOORED.uniform(),
    method="SLSQP",
    bounds=list(zip(FLOORED.lower, upper, strict=True)),
    constraints=[{"type": "eq", "fun": lambda p: [p[:3].sum() - 1, p[3:].sum() - 1]}],
    options={"ftol": 1e-14, "maxiter": 500},
  )
  assert cost(found) <= theirs.fun + 1e-9
  np.testing.assert_allclose(found, theirs.x, atol=1e-4)


def test_olmix_stays_near_its_prior_and_under_its_caps():
  runs = runs_on(BARE, 40)
  prior = dict(caption=0.4, ocr=0.3, grounded=0.1, detection=0.1, vqa=0.1)
  point = BARE.from_dict(prior)

  def advised(space=BARE, **options):
    return Olmix(space, prior=prior, **options).recommend(runs).mixture

  np.testing.assert_allclose(advised(pull=1e4), point, atol=1e-3)
  apart = [rel_entr(advised(pull=pull), point).sum() for pull in (0.0, 0.05, 1.0)]
  assert apart[0] > apart[1] > apart[2] > 0
  assert np.argmax(advised(pull=0.0)) == 4 and advised(pull=0.0)[4] > 0.999
  capped = advised(pull=0.0, caps=dict(vqa=0.25, caption=0.5))
  np.testing.assert_allclose(capped, [0.5, 0, 0.25, 0, 0.25], atol=1e-3)
  for caps in (dict(vqa=0.25), dict(vqa=0.25, caption=0.3)):
    policy = Olmix(SPACE, prior=prior, caps=caps)
    assert policy.recommend(runs).mixture[4] <= 0.25
    assert (policy.ask(runs, 20, 0)[:, 4] <= 0.25).all()
    assert matches(policy.recommend(runs).mixture[None], SPACE.pool)[0]
  np.testing.assert_array_equal(advised(SPACE, over="simplex"), advised())
  zero = dict(prior, ocr=0.0, caption=0.7)
  assert Olmix(BARE, prior=zero).recommend(runs).mixture[1] == 0
  with pytest.raises(ValueError, match="no pool"):
    Olmix(BARE, over="pool").recommend(runs)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(caps=dict(tasks=0.1)), "no coordinate"),
    (dict(caps={name: 0.1 for name in TASKS}), "leave room for 0.5"),
    (dict(caps=dict(ocr=-1.0)), "under its bound"),
    (dict(prior=dict(caption=1.0)), "no weight for"),
    (dict(pull=-1.0), "not negative"),
    (dict(over="moon"), "'pool', 'simplex' or None"),
    (
      dict(prior=dict(caption=0.0, ocr=0.0, grounded=0.0, detection=0, vqa=1), caps=dict(vqa=0.5)),
      "leave room for 0.5",
    ),
  ],
)
def test_what_olmix_cannot_do_it_says(options, message):
  with pytest.raises(ValueError, match=message):
    Olmix(BARE, **options)
  if "prior" not in options and "pull" not in options:
    with pytest.raises(ValueError, match=message):
      MixingLaws(BARE, **options)


@pytest.mark.parametrize("seed", range(6))
def test_the_halving_search_is_the_best_of_its_grid(seed):
  rng = np.random.default_rng(seed)
  slope = rng.normal(size=4)
  caps = np.array([1.0, 0.6, 0.3, 0.8])[rng.permutation(4)] if seed else np.ones(4)
  rest = np.argmax(caps)
  shares = [caps[j] * np.array(mixing_laws.SHARES) for j in range(4) if j != rest]
  grid = np.array(list(itertools.product(*shares)))
  grid = np.insert(grid, rest, 1 - grid.sum(axis=1), axis=1)
  grid = grid[(grid[:, rest] >= -1e-9) & (grid[:, rest] <= caps[rest] + 1e-9)]
  found = halving_search(slope, caps)
  assert matches(found[None], grid)[0]
  assert slope @ found == pytest.approx((grid @ slope).min())


def test_the_halving_search_says_what_it_cannot_do():
  with pytest.raises(ValueError, match="too many sums"):
    halving_search(np.ones(12), np.random.default_rng(0).uniform(0.5, 1, 12))
  # Any number of domains, where caps have a common measure.
  caps = np.full(30, 0.25)
  found = halving_search(np.arange(30.0), caps)
  np.testing.assert_allclose(found, [0.25] * 4 + [0] * 26)


def test_mixing_laws_recommends_from_pool_or_grid():
  runs = runs_on(SPACE, 60)
  caps = dict(vqa=0.5, caption=0.4)
  np.testing.assert_allclose(MixingLaws(BARE).recommend(runs).mixture, np.eye(5)[4])
  np.testing.assert_allclose(
    MixingLaws(BARE, caps).recommend(runs).mixture, [0.4, 0.0375, 0.0625, 0, 0.5]
  )
  best = MixingLaws(SPACE).recommend(runs)
  np.testing.assert_array_equal(best.mixture, SPACE.pool[np.argmax(truth(SPACE.pool))])
  assert (MixingLaws(SPACE, caps).recommend(runs).mixture[4]) <= 0.5


def test_bimix_recovers_its_law_and_minimises_it():
  law = PowerLaw(0.3, np.array([2.0, 0.5, 0.0, 1.0, 4.0]), np.array([0.5, 1, 0, 0.2, 0.3]), 1, 2)
  runs = Observations(SPACE.pool[:150], law(SPACE.pool[:150]))
  np.testing.assert_allclose(
    fit_power_law(runs)(SPACE.pool[150:]), law(SPACE.pool[150:]), atol=0.02 * runs.scores.std()
  )
  found = bimix.least_loss(law, BARE)
  assert found.sum() == pytest.approx(1, abs=1e-12) and found.min() >= bimix.FLOOR - 1e-12
  theirs = minimize(
    lambda p: law.loss(p[None])[0],
    BARE.uniform(),
    method="SLSQP",
    bounds=[(bimix.FLOOR, 1)] * 5,
    constraints=[{"type": "eq", "fun": lambda p: p.sum() - 1}],
    options={"ftol": 1e-14, "maxiter": 500},
  )
  assert law.loss(found[None])[0] <= theirs.fun + 1e-9
  advice = BiMix(BARE).recommend(runs)
  assert law(advice.mixture[None])[0] == pytest.approx(law(found[None])[0], abs=1e-3)
  np.testing.assert_array_equal(
    BiMix(SPACE).recommend(runs).mixture, SPACE.pool[np.argmax(law(SPACE.pool))]
  )


def test_a_zero_weight_is_no_infinite_loss():
  corners = np.concatenate([np.eye(5), SPACE.pool[:20]])
  predict = fit_power_law(Observations(corners, truth(corners)))
  predicted = predict(np.concatenate([corners, SPACE.pool]))
  assert np.isfinite(predicted).all() and np.ptp(predicted) < 10 * np.ptp(truth(corners))


def test_recorded_proxy_runs_are_ranked_as_published_fits_rank_them(regmix):
  """RegMix's 1M-parameter runs, 512 to fit and 256 to judge, one of their thirteen losses.

  The figures are those of an independent program with the same laws; another optimum of the
  log-linear law, or another ridge, is off by more.
  """
  table = tables.read(regmix)
  scores = -table.metrics["metric/the_pile_pile_cc_val_loss"]
  runs = Observations(table.mixtures[~table.test], scores[~table.test])

  def judged(fit):
    predicted, truth = fit(runs)(table.mixtures[table.test]), scores[table.test]
    return 100 * spearmanr(predicted, truth)[0], np.mean((predicted - truth) ** 2)

  for fit in (fit_log_linear, fit_mixing_law):
    assert judged(fit) == pytest.approx((96.23, 0.0093), rel=0.005, abs=0.0003)
  assert judged(fit_quadratic) == pytest.approx((93.95, 0.0131), abs=0.02)
  assert judged(fit_power_law)[0] > 90
