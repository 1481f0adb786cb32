"""A Gaussian process after its runs: what every surrogate of the search says of points.

`white` is the covariance of runs and points `float[n, m]`, whitened by the Cholesky factor of the
covariance of the runs. In float64, inside `process.exact()`.
"""

import jax
import jax.numpy as jnp
import tinygp
from jaxtyping import Array, Float

from mixjax.search import process as process_lib
from mixjax.search.process import Points


def weights(process: tinygp.GaussianProcess, residuals: Array) -> Float[Array, " n"]:
  """(K + noise)^-1 residuals: a mean is the covariance with the runs times these."""
  whitened = process.solver.solve_triangular(residuals)
  return process.solver.solve_triangular(whitened, transpose=True)


def variance(kernel: tinygp.kernels.Kernel, points: Points, white: Array) -> Float[Array, " m"]:
  """Of the noise-free score at each point."""
  return kernel(points) - jnp.sum(white**2, axis=0)


def covariance(
  kernel: tinygp.kernels.Kernel, a: Points, b: Points, white_a: Array, white_b: Array
) -> Float[Array, "m l"]:
  """Of the noise-free scores at m points and at l others."""
  return kernel(a, b) - white_a.T @ white_b


@jax.jit
def condition(process: tinygp.GaussianProcess, residuals: Array) -> tuple[Array, Array]:
  """The weights of the runs, and the log density of the real ones."""
  return weights(process, residuals), process_lib.log_marginal(process, residuals)


@jax.jit
def predict(process: tinygp.GaussianProcess, points: Points, weights: Array) -> tuple[Array, Array]:
  """Mean and variance `float[m]` of the noise-free scores."""
  cross = process.kernel(points, process.X)
  white = process.solver.solve_triangular(cross.T)
  return cross @ weights, variance(process.kernel, points, white)


@jax.jit
def joint(process: tinygp.GaussianProcess, points: Points, weights: Array) -> tuple[Array, Array]:
  """Mean `float[m]` and covariance `float[m, m]` of the noise-free scores."""
  cross = process.kernel(points, process.X)
  white = process.solver.solve_triangular(cross.T)
  return cross @ weights, covariance(process.kernel, points, points, white, white)


@jax.jit
def between(process: tinygp.GaussianProcess, points: Points, other: Points) -> tuple[Array]:
  """Covariance `float[m]` of the scores at points and at one other."""
  here, there = (
    process.solver.solve_triangular(process.kernel(process.X, p)) for p in (points, other)
  )
  return (covariance(process.kernel, points, other, here, there)[:, 0],)
