import numpy as np
import pytest

from mixjax.search.observations import Observations
from mixjax.search.policies.chameleon import (
  Chameleon,
  domain_affinities,
  finetuning_weights,
  pretraining_weights,
)
from mixjax.search.space import Space

CONCEPTS, TASKS = ("maps", "charts", "faces", "signs"), ("caption", "ocr", "vqa")
SPACE = Space.product(CONCEPTS, TASKS)
EMBEDDINGS = np.random.default_rng(0).normal(size=(4, 6)) * [[3], [1], [1], [0.5]]
NAMED = dict(zip(CONCEPTS, EMBEDDINGS, strict=True))


@pytest.mark.parametrize("count", [2, 5, 12])
@pytest.mark.parametrize("ridge", [1e-3, 10.0])
def test_affinities_are_ridge_leverage_scores(count, ridge):
  embeddings = 4 * np.random.default_rng(count).normal(size=(count, 7)) + 3
  center = np.eye(count) - 1 / count
  gram = center @ embeddings @ embeddings.T @ center
  expected = np.diag(gram @ np.linalg.inv(gram + ridge * count * np.eye(count)))
  np.testing.assert_allclose(domain_affinities(embeddings, ridge=ridge), expected, atol=1e-10)


def test_affinities_ignore_the_origin_but_not_the_scale_unless_normalised():
  scores = domain_affinities(EMBEDDINGS)
  np.testing.assert_allclose(domain_affinities(EMBEDDINGS + 5), scores, atol=1e-12)
  assert not np.allclose(domain_affinities(10 * EMBEDDINGS), scores, rtol=0.1)
  lengths = np.array([[1], [10], [0.1], [2]])
  alike = [domain_affinities(e, normalise=True) for e in (EMBEDDINGS, lengths * EMBEDDINGS)]
  np.testing.assert_allclose(*alike, atol=1e-12)


def test_weights_are_the_published_softmaxes():
  scores = np.array([0.1, 0.3, 0.4])
  shares = scores / 0.8
  early, late = np.exp(1 / shares / 5), np.exp(shares / 0.2)
  np.testing.assert_allclose(pretraining_weights(scores), early / early.sum())
  np.testing.assert_allclose(finetuning_weights(scores), late / late.sum())
  # What is shared by all is good to begin with, what is distinct to end with.
  assert np.argmax(pretraining_weights(scores)) == 0 and np.argmax(finetuning_weights(scores)) == 2
  flat = np.exp(shares / 2)
  np.testing.assert_allclose(finetuning_weights(scores, temperature=2), flat / flat.sum())
  np.testing.assert_allclose(pretraining_weights([0.2, 0.2, 0.2, 0.2]), [0.25] * 4)


def test_a_domain_at_the_mean_of_all_takes_everything_as_published():
  others = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
  weights = pretraining_weights(domain_affinities(np.concatenate([others, [[0, 0]]])))
  np.testing.assert_allclose(weights, [0, 0, 0, 0, 1], atol=1e-9)


def test_the_policy_weighs_axes_with_embeddings_and_leaves_others_uniform():
  nothing = Observations.none(SPACE)
  for stage, weigh in ("pretraining", pretraining_weights), ("finetuning", finetuning_weights):
    policy = Chameleon(SPACE, NAMED, stage=stage)
    expected = [*weigh(domain_affinities(EMBEDDINGS)), 1 / 3, 1 / 3, 1 / 3]
    np.testing.assert_allclose(policy.ask(nothing, 2, 0), [expected] * 2)
    np.testing.assert_allclose(policy.recommend(nothing).mixture, expected)
  # By name: the order of the embeddings is without effect.
  backwards = dict(reversed(NAMED.items()))
  np.testing.assert_array_equal(Chameleon(SPACE, backwards).ask(nothing, 1, 0)[0, :4].argmax(), 3)
  floored = Space.product(CONCEPTS, TASKS, floor=0.9)
  assert (Chameleon(floored, NAMED, stage="finetuning").ask(nothing, 1, 0) >= 0.9 / 4).all()
  given = dict(maps=0.4, charts=0.3, faces=0.2, signs=0.1, caption=0.5, ocr=0.3, vqa=0.2)
  policy = Chameleon(SPACE, weights=given)
  np.testing.assert_allclose(policy.recommend(nothing).mixture, list(given.values()))


def test_what_cannot_be_weighed_says_why():
  with pytest.raises(ValueError, match="all embeddings are the same"):
    domain_affinities(np.ones((3, 4)))
  with pytest.raises(ValueError, match="embedding 1 is zero"):
    domain_affinities(np.array([[1.0, 2], [0, 0], [2, 1]]), normalise=True)
  with pytest.raises(ValueError, match="embedding 1 is not finite"):
    domain_affinities(np.array([[1.0, 2], [np.nan, 0]]))
  with pytest.raises(ValueError, match="not all 0"):
    pretraining_weights([0.0, 0.0])
  with pytest.raises(ValueError, match="stage is"):
    Chameleon(SPACE, NAMED, stage="middle")
  with pytest.raises(ValueError, match="either embeddings or weights"):
    Chameleon(SPACE)
  nothing = Observations.none(SPACE)
  with pytest.raises(ValueError, match=r"no embedding for \['signs'\]"):
    Chameleon(SPACE, {k: v for k, v in NAMED.items() if k != "signs"}).ask(nothing, 1, 0)
  with pytest.raises(ValueError, match=r"embeddings of \['hats'\]"):
    Chameleon(SPACE, NAMED | {"hats": [1.0]}).ask(nothing, 1, 0)
