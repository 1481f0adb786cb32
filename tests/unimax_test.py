import numpy as np
import pytest
from scipy.optimize import linprog

from mixjax.search.observations import Observations
from mixjax.search.policies.unimax import UniMax, unimax_weights
from mixjax.search.space import Space


@pytest.mark.parametrize("seed", range(20))
def test_weights_are_the_flattest_under_the_caps(seed):
  """The flattest mixture has the lowest highest weight: a linear program, then min(cap, level)."""
  rng = np.random.default_rng(seed)
  count = int(rng.integers(2, 9))
  sizes = {f"d{i}": int(rows) for i, rows in enumerate(rng.integers(0, 1000, count))}
  epochs = float(rng.uniform(0.5, 4))
  budget = epochs * sum(sizes.values()) * rng.uniform(0.05, 1)
  caps = epochs * np.array(list(sizes.values())) / budget

  below_level = np.hstack([np.eye(count), -np.ones((count, 1))])
  whole = np.append(np.ones(count), 0.0)[None]
  level = linprog(
    np.append(np.zeros(count), 1),
    A_ub=below_level,
    b_ub=np.zeros(count),
    A_eq=whole,
    b_eq=[1],
    bounds=[(0, cap) for cap in caps] + [(0, 1)],
  ).x[-1]

  weights = unimax_weights(sizes, budget, epochs)
  assert list(weights) == list(sizes)
  np.testing.assert_allclose(list(weights.values()), np.minimum(caps, level), atol=1e-9)
  assert sum(weights.values()) == pytest.approx(1, abs=1e-12)


def test_known_answers():
  assert unimax_weights(dict(a=10, b=1000, c=1000), 100, 1) == pytest.approx(
    dict(a=0.1, b=0.45, c=0.45)
  )
  # Ample rows: uniform. No rows to spare: each domain's share of the corpus.
  assert unimax_weights(dict(a=50, b=60), 10, 2) == pytest.approx(dict(a=0.5, b=0.5))
  assert unimax_weights(dict(a=1, b=3), 8, 2) == pytest.approx(dict(a=0.25, b=0.75))
  assert unimax_weights(dict(a=0, b=5), 5, 1) == dict(a=0, b=1)


def test_a_supply_too_small_says_what_is_missing():
  with pytest.raises(ValueError, match=r"2 epochs over 40 rows supply 80 of 100 rows, 20 too few"):
    unimax_weights(dict(a=10, b=30), 100, 2)
  with pytest.raises(ValueError, match=r"at least 2\.5 epochs"):
    unimax_weights(dict(a=10, b=30), 100, 2)
  with pytest.raises(ValueError, match="0 rows supply 0 of 100"):
    unimax_weights(dict(a=0), 100, 2)
  with pytest.raises(ValueError, match="'b' is -1"):
    unimax_weights(dict(a=10, b=-1), 5, 2)
  with pytest.raises(ValueError, match="'epochs' is nan"):
    unimax_weights(dict(a=10), 5, np.nan)
  with pytest.raises(ValueError, match="budget of 0"):
    unimax_weights(dict(a=10), 0, 1)
  with pytest.raises(ValueError, match="no domain"):
    unimax_weights({}, 1, 1)


def test_the_policy_caps_every_axis_and_names_what_lacks_a_size():
  space = Space.product(("maps", "charts"), ("caption", "ocr", "vqa"))
  sizes = dict(maps=10, charts=190, caption=100, ocr=20, vqa=80)
  policy = UniMax(space, sizes, budget=200, epochs=2)
  expected = [0.1, 0.9, 0.4, 0.2, 0.4]
  np.testing.assert_allclose(policy.ask(Observations.none(space), 2, 0), [expected] * 2)
  advice = policy.recommend(Observations([expected, space.uniform()], [3.0, 7.0]))
  np.testing.assert_allclose(advice.mixture, expected)
  assert advice.mean == advice.observed == 3.0
  with pytest.raises(ValueError, match=r"no size for \['vqa'\]"):
    UniMax(space, {k: v for k, v in sizes.items() if k != "vqa"}, 200).recommend(
      Observations.none(space)
    )
  with pytest.raises(ValueError, match=r"sizes of \['hats'\]"):
    UniMax(space, sizes | {"hats": 3}, 200).recommend(Observations.none(space))
