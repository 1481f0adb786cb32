import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Matern

from mixjax.search import acquire
from mixjax.search.acquire import choose_batch, upper_confidence_bound
from mixjax.search.coordinates import reference
from mixjax.search.policies import Observations
from mixjax.search.process import JITTER
from mixjax.search.space import Space, candidates
from mixjax.search.surrogate import Hyperparameters, condition

SPACE = Space.simplex("five", list("abcde"))
POOL = candidates(SPACE, 300, 0)
RUNS = 12
SCORES = POOL[:RUNS, 0] - POOL[:RUNS, 1] ** 2
SURROGATE = condition(
  Observations(POOL[:RUNS], SCORES), SPACE, Hyperparameters((2.0,) * 5, 1.0, 0.1)
)
UNSEEN = POOL[RUNS:]


def seen(points):
  return np.sqrt(points) / np.sqrt(reference(SPACE)).std(axis=0)


def test_the_bound_is_mean_plus_kappa_sd():
  bound = upper_confidence_bound(np.array([1.0, 2.0]), np.array([3.0, 0.0]))
  np.testing.assert_array_equal(bound, [7, 2])


def test_the_first_choice_is_the_papers():
  mean, sd = SURROGATE.predict(UNSEEN)
  assert choose_batch(SURROGATE, UNSEEN, 1, kappa=3.0) == [np.argmax(mean + 3 * sd)]


@pytest.mark.parametrize("pending", [None, UNSEEN[[7, 7, 200]]])
def test_a_batch_is_what_refitting_with_hallucinated_runs_would_choose(pending):
  """GP-BUCB by its definition: each choice is added as a run at its predicted mean."""

  def refitted(mixtures):
    standardised = (SCORES - SCORES.mean()) / SCORES.std()
    model = GaussianProcessRegressor(Matern(2.0, nu=2.5), alpha=0.1**2 + JITTER, optimizer=None)
    model.fit(seen(POOL[:RUNS]), standardised)
    if len(mixtures):
      told = np.concatenate([standardised, model.predict(seen(mixtures))])
      model.fit(seen(np.concatenate([POOL[:RUNS], mixtures])), told)
    return model.predict(seen(UNSEEN), return_std=True)

  told = np.zeros((0, 5)) if pending is None else pending
  expected = []
  for _ in range(6):
    mean, sd = refitted(np.concatenate([told, UNSEEN[expected]]))
    bound = mean + 2 * sd
    bound[expected] = -np.inf
    expected.append(int(np.argmax(bound)))
  assert choose_batch(SURROGATE, UNSEEN, 6, pending=pending).tolist() == expected


def test_a_short_list_changes_nothing(monkeypatch):
  pending = UNSEEN[np.argsort(-upper_confidence_bound(*SURROGATE.predict(UNSEEN)))[:20]]
  everything = choose_batch(SURROGATE, UNSEEN, 8, pending=pending)
  monkeypatch.setattr(acquire, "SHORTLIST", 4)
  assert choose_batch(SURROGATE, UNSEEN, 8, pending=pending).tolist() == everything.tolist()


def test_choices_differ_even_when_nothing_is_left_to_learn():
  same = np.tile(POOL[:1], (5, 1))
  assert sorted(choose_batch(SURROGATE, same, 5).tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("count", [0, 289])
def test_more_than_there_is_cannot_be_chosen(count):
  with pytest.raises(ValueError, match=f"cannot choose {count} of 288"):
    choose_batch(SURROGATE, UNSEEN, count)
