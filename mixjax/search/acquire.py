"""Which candidates to run next: upper confidence bounds, many at once (paper, section 3.4)."""

import numpy as np
from jaxtyping import Float, Int

from mixjax.search.surrogate import Surrogate

# The paper names no kappa. On recorded runs 2 is as good as 1 without noise and better with it.
KAPPA = 2.0


def upper_confidence_bound(
  mean: Float[np.ndarray, " m"], sd: Float[np.ndarray, " m"], kappa: float = KAPPA
) -> Float[np.ndarray, " m"]:
  """The paper's acquisition a(h) = mu(h) + kappa sigma(h)."""
  return mean + kappa * sd


def choose_batch(
  surrogate: Surrogate,
  candidates: Float[np.ndarray, "m d"],
  count: int,
  *,
  kappa: float = KAPPA,
  pending: Float[np.ndarray, "p d"] | None = None,
) -> Int[np.ndarray, " count"]:
  """Indices of `count` different candidates, best first (GP-BUCB; Desautels et al., 2014).

  After each choice the process is told that the run came out exactly as predicted: the mean stays,
  the uncertainty around the choice shrinks, and the next choice goes elsewhere. `pending` mixtures,
  whose runs are under way, are told first. The first choice without any is the paper's own.
  """
  if not 1 <= count <= len(candidates):
    raise ValueError(f"cannot choose {count} of {len(candidates)} candidates")
  told = np.zeros((0, candidates.shape[1])) if pending is None else np.asarray(pending)
  points = np.concatenate([candidates, told])
  mean, sd = surrogate.predict(points)
  variance, noise = sd**2, surrogate.noise_sd**2
  updates: list[np.ndarray] = []

  def tell(index: int) -> None:
    nonlocal variance
    covariance = surrogate.covariance(points, points[index])
    covariance = covariance - sum(update * update[index] for update in updates)
    updates.append(covariance / np.sqrt(variance[index] + noise))
    variance = np.maximum(variance - updates[-1] ** 2, 0)

  for index in range(len(candidates), len(points)):
    tell(index)
  chosen: list[int] = []
  free = np.ones(len(candidates), bool)
  while True:
    bound = upper_confidence_bound(mean, np.sqrt(variance), kappa)[: len(candidates)]
    chosen.append(int(np.argmax(np.where(free, bound, -np.inf))))
    if len(chosen) == count:
      return np.array(chosen)
    free[chosen[-1]] = False
    tell(chosen[-1])
