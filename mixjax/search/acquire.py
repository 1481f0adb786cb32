"""Which candidates to run next: upper confidence bounds, many at once (paper, section 3.4)."""

import numpy as np
from jaxtyping import Float, Int

from mixjax.search.surrogate import Surrogate

# The paper names no kappa. On recorded runs 2 is as good as 1 without noise and better with it.
KAPPA = 2.0

# Candidates whose covariances are looked at first; more only where the choice could need them.
SHORTLIST = 128


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
  bounds = upper_confidence_bound(*surrogate.predict(candidates), kappa)
  order = np.argsort(-bounds, kind="stable")
  size = max(SHORTLIST, 2 * count)
  while True:
    short = order[:size]
    chosen, lowest = _greedy(surrogate, candidates[short], told, count, kappa)
    # What is told only lowers bounds: a candidate left out can be no better than it was at first.
    if size >= len(order) or lowest >= bounds[order[size]]:
      return short[chosen]
    size *= 4


def _greedy(surrogate, candidates, told, count, kappa) -> tuple[np.ndarray, float]:
  """Positions of the choices, and the lowest bound at which one was made."""
  mean, covariance = surrogate.joint(np.concatenate([candidates, told]))
  noise = surrogate.noise_sd**2

  def tell(index: int) -> None:
    nonlocal covariance
    column = covariance[:, index]
    covariance = covariance - np.outer(column, column) / (column[index] + noise)

  for index in range(len(candidates), len(mean)):
    tell(index)
  chosen: list[int] = []
  lowest = np.inf
  free = np.ones(len(candidates), bool)
  while True:
    sd = np.sqrt(np.maximum(np.diag(covariance), 0))
    bound = upper_confidence_bound(mean, sd, kappa)[: len(candidates)]
    chosen.append(int(np.argmax(np.where(free, bound, -np.inf))))
    lowest = min(lowest, bound[chosen[-1]])
    if len(chosen) == count:
      return np.array(chosen), lowest
    free[chosen[-1]] = False
    tell(chosen[-1])
