"""Chameleon: weights from the geometry of domain embeddings, without runs (arXiv 2505.24844)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import scipy.special
from jaxtyping import Float

from mixjax.search.observations import Observations
from mixjax.search.policies import Recommendation
from mixjax.search.space import Key, Space

# Published settings.
RIDGE = 10.0
PRETRAINING_TEMPERATURE, FINETUNING_TEMPERATURE = 5.0, 0.2


def domain_affinities(
  embeddings: Float[np.ndarray, "k e"], *, ridge: float = RIDGE, normalise: bool = False
) -> Float[np.ndarray, " k"]:
  """Kernel ridge leverage scores S_i = [K (K + ridge k I)^-1]_ii, between 0 and 1.

  K is the double-centred Gram matrix of `embeddings`, the mean embedding of each of k domains; a
  domain unlike all others has a high score. As published, `ridge` has the units of K, so the same
  embeddings in another scale give other weights. `normalise` (ours) first gives every embedding
  length 1. ValueError if a number is not finite, or if all embeddings are the same.
  """
  embeddings = np.array(embeddings, np.float64)
  if embeddings.ndim != 2:
    raise ValueError(f"embeddings have shape (k, e), not {embeddings.shape}")
  if not (finite := np.isfinite(embeddings).all(axis=1)).all():
    raise ValueError(f"embedding {int(np.argmin(finite))} is not finite")
  if not ridge > 0:
    raise ValueError(f"ridge is above 0, not {ridge}")
  if normalise:
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    if not norms.all():
      raise ValueError(f"embedding {int(np.argmin(norms))} is zero and has no direction")
    embeddings = embeddings / norms
  # K has the squared singular values of the centred embeddings, with the same left vectors.
  left, singular, _ = np.linalg.svd(embeddings - embeddings.mean(axis=0), full_matrices=False)
  if not singular.max(initial=0) > 1e-12 * np.abs(embeddings).max(initial=0):
    raise ValueError("all embeddings are the same: there is no domain to tell from another")
  shares = singular**2 / (singular**2 + ridge * len(embeddings))
  return np.sum(left**2 * shares, axis=1)


def pretraining_weights(
  affinities: Float[np.ndarray, " k"], temperature: float = PRETRAINING_TEMPERATURE
) -> Float[np.ndarray, " k"]:
  """softmax((1 / S) / temperature) of the scores S, divided by their sum: favours shared content.

  As published, 1 / S explodes for a domain near the mean of all, which then gets all the weight.
  """
  scores = np.maximum(_normalised(affinities), np.finfo(np.float64).tiny)
  return scipy.special.softmax(1 / scores / temperature)


def finetuning_weights(
  affinities: Float[np.ndarray, " k"], temperature: float = FINETUNING_TEMPERATURE
) -> Float[np.ndarray, " k"]:
  """softmax(S / temperature) of the scores S, divided by their sum: favours distinct content."""
  return scipy.special.softmax(_normalised(affinities) / temperature)


@dataclasses.dataclass(frozen=True)
class Chameleon:
  """A fixed mixture from `{coordinate: embedding}`, or from `weights` computed elsewhere.

  Each axis is weighed by itself. An axis without embeddings is uniform, as tasks are where only
  concepts have them; the published method embeds text domains by a proxy, MixAtlas runs it on the
  mean CLIP embedding of each concept. Weights are then raised to the bounds of the space.
  """

  space: Space
  embeddings: Mapping[str, Sequence[float]] | None = None
  weights: Mapping[str, float] | None = None
  stage: Literal["pretraining", "finetuning"] = "pretraining"
  ridge: float = RIDGE
  normalise: bool = False

  def __post_init__(self):
    if self.stage not in ("pretraining", "finetuning"):
      raise ValueError(f"stage is 'pretraining' or 'finetuning', not {self.stage!r}")
    if (self.embeddings is None) == (self.weights is None):
      raise ValueError("Chameleon takes either embeddings or weights")

  def ask(self, observations: Observations, count: int, key: Key) -> Float[np.ndarray, "count d"]:
    return np.tile(self._mixture(), (count, 1))

  def recommend(self, observations: Observations) -> Recommendation:
    return Recommendation.from_runs(self._mixture(), observations.at_target())

  def _mixture(self) -> Float[np.ndarray, " d"]:
    weights = self._weigh(self.embeddings) if self.weights is None else self.weights
    return self.space.raise_to_floor(self.space.from_dict(weights)[None])[0]

  def _weigh(self, embeddings: Mapping[str, Sequence[float]]) -> dict[str, float]:
    if unknown := [name for name in embeddings if name not in self.space.names]:
      raise ValueError(f"embeddings of {unknown}, which are no coordinates of {self.space.name}")
    weigh = pretraining_weights if self.stage == "pretraining" else finetuning_weights
    weights = {}
    for axis in self.space.axes:
      names = axis.coordinates
      missing = [name for name in names if name not in embeddings]
      if len(missing) == len(names) and embeddings:
        weights |= dict.fromkeys(names, 1 / len(names))
        continue
      if missing:
        raise ValueError(f"no embedding for {missing} of the {axis.name} axis")
      stacked = np.array([embeddings[name] for name in names], np.float64)
      scores = domain_affinities(stacked, ridge=self.ridge, normalise=self.normalise)
      weights |= dict(zip(names, weigh(scores).tolist(), strict=True))
    return weights


def _normalised(affinities: Float[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
  scores = np.asarray(affinities, np.float64)
  if not (np.isfinite(scores).all() and (scores >= 0).all() and scores.sum() > 0):
    raise ValueError(f"affinities are finite, not negative and not all 0: {scores.tolist()}")
  return scores / scores.sum()
