"""What a policy answers, and the two questions it is asked."""

import dataclasses
from typing import Protocol

import numpy as np
from jaxtyping import Float

from mixjax.search.observations import Observations, matches
from mixjax.search.space import Key, Space, generator


@dataclasses.dataclass(frozen=True, eq=False)
class Recommendation:
  """The mixture `float[d]` to use, with what is believed of it.

  `mean` and `sd` are the expected score and its uncertainty (None where the method has none);
  `observed` is the mean score of the runs on exactly this mixture, None if there was none.
  """

  mixture: Float[np.ndarray, " d"]
  mean: float | None
  sd: float | None
  observed: float | None = None

  @classmethod
  def from_runs(
    cls, mixture: Float[np.ndarray, " d"], observations: Observations
  ) -> "Recommendation":
    """A recommendation judged by the runs on it alone, as methods without a model do."""
    mean, error = observations.mean_at(mixture)
    return cls(mixture, mean, error, observed=mean)


class Policy(Protocol):
  """A way to choose mixtures. Both answers depend on the arguments alone."""

  def ask(self, observations: Observations, count: int, key: Key) -> Float[np.ndarray, "count d"]:
    """The next `count` mixtures to run. Use one `key` for a whole search."""

  def recommend(self, observations: Observations) -> Recommendation:
    """The mixture to train the target on."""


def pool_of(space: Space) -> Float[np.ndarray, "m d"]:
  """The candidates of `space`; ValueError if it has none."""
  if space.pool is None:
    raise ValueError(
      f"the {space.name} axis has no pool: use space.with_pool(candidates(space, 2000, seed))"
    )
  return space.pool


def random_unseen(
  space: Space, known: Float[np.ndarray, "n d"], count: int, key: Key
) -> Float[np.ndarray, "count d"]:
  """The next `count` of the pool in the random order that `key` fixes, past those `known`.

  Asking for eight at once or one at a time thus gives the same eight.
  """
  pool = pool_of(space)
  order = generator(key).permutation(len(pool))
  fresh = order[~matches(pool[order], known)]
  check_enough(len(fresh), count)
  return pool[fresh[:count]]


def check_enough(left: int, count: int) -> None:
  if count < 1:
    raise ValueError(f"asked for {count} mixtures: ask for at least one")
  if left < count:
    raise ValueError(
      f"asked for {count} mixtures, but the pool has only {left} not yet run: "
      "enlarge the pool or lower the budget"
    )
