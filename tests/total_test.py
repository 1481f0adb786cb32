"""A score that is the sum of parts: what its surrogate adds to that of the sum."""

import dataclasses

import numpy as np
import pytest

from mixjax.search import surrogate, total
from mixjax.search.acquire import choose_batch
from mixjax.search.objective import Objective, ScoreVectors
from mixjax.search.observations import Observations
from mixjax.search.policies.mixatlas import MixAtlas
from mixjax.search.space import Space, candidates

SPACE = Space.simplex("domain", [f"d{i}" for i in range(6)])
SPACE = SPACE.with_pool(candidates(SPACE, 300, 0))


def curves(points):
  """Six benchmarks, each rising in a weight of its own with falling returns: float[n, 6]."""
  return 10 * np.log(np.asarray(points) + 0.02)


def runs(count: int, noise: float = 0.05) -> Observations:
  rng = np.random.default_rng(1)
  mixtures = SPACE.pool[rng.choice(len(SPACE.pool), count, replace=False)]
  parts = (curves(mixtures) + noise * rng.standard_normal((count, 6))) / 6
  return Observations(mixtures, parts.sum(axis=1), parts=parts)


@pytest.fixture(scope="module")
def observed() -> Observations:
  return runs(24)


@pytest.fixture(scope="module")
def fitted(observed):
  return total.fit(observed, SPACE)


def test_parts_predict_better_than_their_sum(observed, fitted):
  truth = curves(SPACE.pool).mean(axis=1)
  alone = surrogate.fit(observed, SPACE)
  errors = [np.mean((one.predict(SPACE.pool)[0] - truth) ** 2) for one in (fitted, alone)]
  assert errors[0] < 0.5 * errors[1]


def test_sd_covers_and_joint_agrees_with_predict(fitted):
  truth = curves(SPACE.pool).mean(axis=1)
  mean, sd = fitted.predict(SPACE.pool)
  assert np.mean(np.abs(mean - truth) <= 1.96 * sd) > 0.85
  points = SPACE.pool[:40]
  together, covariance = fitted.joint(points)
  np.testing.assert_allclose(together, mean[:40], atol=1e-9)
  np.testing.assert_allclose(np.sqrt(np.diag(covariance)), sd[:40], rtol=1e-6)
  assert np.linalg.eigvalsh(covariance).min() > -1e-9


def test_equal_parts_are_as_one():
  """Copies of one score, wholly correlated, give the sd of the whole, not a smaller one."""
  one = runs(16)
  copies = Observations(one.mixtures, one.scores, parts=np.repeat(one.scores[:, None] / 3, 3, 1))
  mean, sd = total.fit(copies, SPACE).predict(SPACE.pool[:50])
  alone = surrogate.fit(dataclasses.replace(one, parts=None), SPACE)
  np.testing.assert_allclose(mean, alone.predict(SPACE.pool[:50])[0], rtol=1e-6)
  # Ledoit and Wolf shrink the correlation of 16 residuals a little.
  np.testing.assert_allclose(sd, alone.predict(SPACE.pool[:50])[1], rtol=0.1)


def test_leave_one_out_predicts_runs_from_the_others(observed, fitted):
  left_out = fitted.leave_one_out()
  assert np.corrcoef(left_out.mean, observed.scores)[0, 1] > 0.9
  assert left_out.coverage == np.mean(np.abs(observed.scores - left_out.mean) <= 1.96 * left_out.sd)


def test_one_part_is_the_score_itself():
  one = runs(12)
  with_it = dataclasses.replace(one, parts=one.scores[:, None])
  without = dataclasses.replace(one, parts=None)
  answers = [total.fit(o, SPACE).predict(SPACE.pool[:5])[0] for o in (with_it, without)]
  np.testing.assert_array_equal(*answers)


def test_a_batch_and_a_recommendation_from_parts(observed, fitted):
  chosen = choose_batch(fitted, SPACE.pool, 4)
  assert len(set(chosen.tolist())) == 4
  found = MixAtlas(SPACE, seeds=8).recommend(observed)
  truth = curves(SPACE.pool).mean(axis=1)
  (regret,) = truth.max() - curves(found.mixture[None]).mean(axis=1)
  assert regret < 0.1 * (truth.max() - np.median(truth))
  assert found.mean == pytest.approx(fitted.predict(found.mixture[None])[0][0])


def test_score_vectors_hand_their_parts_over():
  scores = np.array([[1.0, 5.0, 100.0], [2.0, 7.0, 200.0]])
  vectors = ScoreVectors(("a", "b", "c"), SPACE.pool[:2], scores, np.full((2, 3), 0.5))
  seen = vectors.observations(Objective({"a": 1, "b": 3}, minimize=True))
  np.testing.assert_allclose(seen.parts, [[-0.25, -3.75], [-0.5, -5.25]])
  np.testing.assert_allclose(seen.scores, [-4.0, -5.75])
  np.testing.assert_allclose(seen.part_stderr, [[0.125, 0.375]] * 2)


def test_parts_stay_with_their_runs_at_the_target():
  seen = Observations(
    SPACE.pool[:3], [1.0, 2.0, 3.0], fidelity=[1, 2, 2], parts=[[0.5, 0.5], [1, 1], [2, 1]]
  ).at_target()
  np.testing.assert_array_equal(seen.parts, [[1, 1], [2, 1]])


@pytest.mark.parametrize(
  "given, message",
  [
    (dict(parts=[[1.0, 1.0], [1.0, 1.0]]), "parts of run 0 sum to 2.0, but its score is 1.0"),
    (dict(parts=[[1.0], [np.nan]]), "parts of run 1 sum to nan"),
    (dict(parts=[[1.0]]), r"2 mixtures but parts of shape \(1, 1\)"),
    (dict(part_stderr=[[1.0], [1.0]]), "part_stderr without parts"),
    (dict(parts=[[1.0], [2.0]], part_stderr=[[-1.0], [0.0]]), "negative or not finite"),
  ],
)
def test_bad_parts_are_named(given, message):
  with pytest.raises(ValueError, match=message):
    Observations(SPACE.pool[:2], [1.0, 2.0], **given)


def test_runs_are_joined_with_what_all_state():
  first = Observations(SPACE.pool[:2], [1.0, 2.0], stderr=[0.1, 0.2], parts=[[1.0], [2.0]])
  second = Observations(SPACE.pool[2:3], [3.0], parts=[[3.0]], pending=SPACE.pool[5:6])
  joined = Observations.concatenate([first, second])
  np.testing.assert_array_equal(joined.mixtures, SPACE.pool[:3])
  np.testing.assert_array_equal(joined.parts[:, 0], joined.scores)
  assert joined.stderr is None and joined.pending is None


def test_each_part_is_a_score_of_its_own():
  errors = [[0.1, 0.2], [0.3, 0.4]]
  both = Observations(SPACE.pool[:2], [3.0, 7.0], parts=[[1, 2], [3, 4]], part_stderr=errors)
  first, second = both.by_part()
  np.testing.assert_array_equal(first.scores, [1, 3])
  np.testing.assert_array_equal(second.stderr, [0.2, 0.4])
  assert first.parts is None and first.by_part() == [first]
