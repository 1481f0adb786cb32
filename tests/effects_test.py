"""Effects of one weight and of two, judged by a truth that is known."""

import numpy as np
import pytest
from peaked import CONCEPTS, SPACE, TASKS, fitted, observe, truth

from mixjax.search import surrogate
from mixjax.search.effects import at_weights, main_effects, pair_effects
from mixjax.search.observations import Observations
from mixjax.search.space import Space, candidates

pytestmark = pytest.mark.xdist_group("peaked")


def test_the_path_keeps_proportions_and_bounds():
  space = Space.product(CONCEPTS, TASKS, floor=0.2)
  points = candidates(space, 20, 1)
  moved = at_weights(space, points, {"ocr": 0.5})
  np.testing.assert_allclose(space.check(moved), moved, atol=1e-12)
  assert (moved[:, 5] == 0.5).all() and (moved >= space.lower - 1e-12).all()
  np.testing.assert_allclose(moved[:, :4], points[:, :4], rtol=1e-14)
  above, before = moved - space.lower, points - space.lower
  np.testing.assert_allclose(above[:, 4] * before[:, 6], above[:, 6] * before[:, 4], atol=1e-12)
  both = at_weights(space, points, {"maps": 0.3, "charts": 0.4, "vqa": 0.1})
  assert (both[:, [0, 1, 6]] == [0.3, 0.4, 0.1]).all()
  np.testing.assert_allclose(both[:, [2, 3]].sum(axis=1), 0.3)
  # Nothing to keep proportions of: equal shares.
  corner = at_weights(SPACE, np.array([[1.0, 0, 0, 0, 0, 1, 0]]), {"maps": 0.4, "ocr": 0.5})
  np.testing.assert_allclose(corner, [[0.4, 0.2, 0.2, 0.2, 0.25, 0.5, 0.25]])


@pytest.mark.parametrize("weights", [{"ocr": 0.9}, {"ocr": -0.1}, {"maps": 0.6, "charts": 0.5}])
def test_weights_that_leave_too_little_are_refused(weights):
  space = Space.product(CONCEPTS, TASKS, floor=0.2)
  with pytest.raises(ValueError, match="no mixture on product"):
    at_weights(space, candidates(space, 3, 1), weights)


def true_effect(effect, bases):
  """The (second) difference of the truth that `effect` is about."""
  if len(effect.names) == 1:
    return np.mean(
      truth(at_weights(SPACE, bases, effect.high)) - truth(at_weights(SPACE, bases, effect.low))
    )
  a, b = effect.names
  corners = {
    (i, j): truth(at_weights(SPACE, bases, {a: x[a], b: y[b]})).mean()
    for i, x in enumerate((effect.low, effect.high))
    for j, y in enumerate((effect.low, effect.high))
  }
  return corners[1, 1] - corners[1, 0] - corners[0, 1] + corners[0, 0]


def test_effects_cover_the_truth():
  bases = SPACE.pool[:40]
  inside, found = {1: [], 2: []}, {1: [], 2: []}
  for seed in range(16):
    fit = surrogate.fit(observe(60, 0.05, seed), SPACE)
    # The effects of one fit are not independent: seven of them need more fits than 21 pairs do.
    pairs = pair_effects(fit, bases=bases) if seed < 4 else ()
    for effect in (*main_effects(fit, bases=bases), *pairs):
      low, high = effect.interval
      inside[len(effect.names)].append(low <= true_effect(effect, bases) <= high)
      found[len(effect.names)].append(abs(effect.mean) / effect.sd)
  assert len(inside[1]) == 16 * 7 and len(inside[2]) == 4 * 21
  for names in (1, 2):
    assert np.mean(inside[names]) >= 0.9
  # Not by being wide: most effects of one weight are told from none.
  assert np.median(found[1]) > 2


def test_an_interaction_is_found_and_none_is_invented():
  def additive(mixtures):
    return truth(mixtures) - 3 * mixtures[:, 1] * mixtures[:, 5]

  across = [(concept, task) for concept in CONCEPTS for task in TASKS]
  fit = surrogate.fit(observe(90, 0.02), SPACE)
  found = {effect.names: effect for effect in pair_effects(fit)}
  assert found["charts", "ocr"].interval[0] > 0.3
  assert max(across, key=lambda names: found[names].mean) == ("charts", "ocr")
  fit = surrogate.fit(observe(90, 0.02, score=additive), SPACE)
  none = [effect for effect in pair_effects(fit) if effect.names in across]
  assert len(none) == 12
  assert sum(effect.interval[0] < 0 < effect.interval[1] for effect in none) >= 11


def test_effects_use_the_joint_posterior_and_their_names():
  (effect,) = main_effects(fitted(), ["ocr"], bases=SPACE.pool[:30])
  assert (effect.low, effect.high) == tuple(
    {"ocr": np.quantile(SPACE.pool[:, 5], q)} for q in (0.1, 0.9)
  )
  points = [at_weights(SPACE, SPACE.pool[:30], weights) for weights in (effect.high, effect.low)]
  mean, covariance = fitted().joint(np.concatenate(points))
  draws = np.random.default_rng(0).multivariate_normal(mean, covariance, 20000, method="eigh")
  changes = draws[:, :30].mean(axis=1) - draws[:, 30:].mean(axis=1)
  assert effect.mean == pytest.approx(changes.mean(), abs=5 * effect.sd / 20000**0.5)
  assert effect.sd == pytest.approx(changes.std(), rel=0.03)
  assert effect.interval == (effect.mean - 1.96 * effect.sd, effect.mean + 1.96 * effect.sd)
  assert main_effects(fitted()) == main_effects(fitted())
  assert main_effects(fitted())[5] == main_effects(fitted(), ["ocr"])[0]
  with pytest.raises(ValueError, match="'loc'"):
    main_effects(fitted(), ["loc"])


def test_axes_of_one_and_two():
  space = Space.product(("all",), ("text", "boxes"))
  pool = candidates(space, 50, 0)
  fit = surrogate.fit(Observations(pool[:12], pool[:12, 1]), space.with_pool(pool))
  alone, text, boxes = main_effects(fit)
  assert (alone.mean, alone.sd) == pytest.approx((0, 0), abs=1e-9)
  assert boxes.mean < 0 < text.mean
  # text and boxes cannot move apart; `all` does not move.
  assert [effect.names for effect in pair_effects(fit)] == [("all", "text"), ("all", "boxes")]
  assert all(effect.mean == pytest.approx(0, abs=1e-9) for effect in pair_effects(fit))
