"""The mode of a posterior of hyper-parameters, and draws around it (Laplace's approximation).

Hyper-parameters are moved in z, prior sds from their medians: there the prior is a standard normal.
An objective gives the negative log posterior at z and its gradient.
"""

from collections.abc import Callable

import numpy as np
import scipy.optimize
from jaxtyping import Float

Objective = Callable[[Float[np.ndarray, " z"]], tuple[float, Float[np.ndarray, " z"]]]

# The search stays within this many prior sds of the medians.
REACH = 5.0

# Between gradients whose difference is the curvature.
STEP = 1e-3


def finite(objective: Objective) -> Objective:
  """`objective`, but very high and flat where it or its gradient is not finite."""

  def guarded(z):
    value, gradient = objective(z)
    if not (np.isfinite(value) and np.isfinite(gradient).all()):
      return 1e25, np.zeros_like(z)
    return float(value), np.asarray(gradient)

  return guarded


def lowest(
  objective: Objective,
  starts: Float[np.ndarray, "s z"],
  *,
  ftol: float | None = None,
  reach: float = REACH,
) -> scipy.optimize.OptimizeResult:
  """The lowest of the ends of L-BFGS from each of `starts`, the first of equals.

  `ftol` is SciPy's, None for its default. No entry of z goes beyond `reach`.
  """
  bounds = [(-reach, reach)] * starts.shape[1]
  options = {} if ftol is None else {"ftol": ftol}
  ends = [
    scipy.optimize.minimize(
      objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options
    )
    for start in starts
  ]
  return min(ends, key=lambda end: end.fun)


def curvature(
  mode: Float[np.ndarray, " z"], objective: Objective
) -> tuple[Float[np.ndarray, " z"], Float[np.ndarray, "z z"]]:
  """Eigenvalues and eigenvectors of the curvature of the objective at its mode."""
  shifts = STEP * np.eye(len(mode))
  found = np.array([objective(mode + s)[1] - objective(mode - s)[1] for s in shifts])
  values, vectors = np.linalg.eigh((found + found.T) / (4 * STEP))
  # The prior has curvature 1: data that bend the other way make the posterior no wider.
  return np.maximum(values, 1.0), vectors


def around(
  mode: Float[np.ndarray, " z"],
  values: Float[np.ndarray, " z"],
  vectors: Float[np.ndarray, "z z"],
  count: int,
) -> Float[np.ndarray, "count z"]:
  """Draws, in mirrored pairs, from the normal distribution with this curvature at its mode."""
  root = vectors / np.sqrt(values) @ vectors.T
  half = np.random.default_rng(0).standard_normal((count // 2, len(mode))) @ root
  return np.clip(mode + np.concatenate([half, -half]), -REACH, REACH)
