"""An acquisition as a height over the simplex, and the way up along constraints."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Array, Float
from scipy import optimize

from mixjax.search import acquire
from mixjax.search.acquire import Acquisition
from mixjax.search.constraints import Constraints
from mixjax.search.moments import Model, Told, moments_at, moments_of

# Coordinates have no useful gradient at 0: along constraints no weight is taken below this.
EDGE = 1e-6


@dataclasses.dataclass(frozen=True, eq=False)
class Height:
  """An acquisition after some runs are told."""

  model: Model
  told: Told
  acquisition: Acquisition
  parameter: np.ndarray

  def __call__(self, points: Float[np.ndarray, "m d"]) -> Float[np.ndarray, " m"]:
    moments = moments_at(self.model, self.told, points)
    return acquire.rate_candidates(self.acquisition, *moments, self.parameter)

  def follow(
    self, constraints: Constraints, start: Float[np.ndarray, " d"]
  ) -> Float[np.ndarray, " d"]:
    """Where it leads from `start` along the constraints, to rounding; with at_most zeros stay."""
    # Bounds are in units of the scores, the others in nats; the solver takes 1 for much.
    scales = np.abs(self.model.weights * self.model.scale)
    unit = scales.sum() if self.acquisition == "ucb" else 1.0

    def fall(point):
      value, slope = _slope(self.acquisition, self._moments, self.parameter, point)
      return -float(value) / unit, -np.asarray(slope) / unit

    def spare(point):
      drawn = space.base * point[space.member].prod(axis=1)
      return constraints.caps * drawn.sum() - drawn

    space, polytope = constraints.space, constraints.polytope
    upper = polytope.upper
    if constraints.at_most is not None:
      upper = np.where(start > 0, upper, 0)
    lower = np.clip(polytope.lower, EDGE, upper)
    kept = [optimize.LinearConstraint(polytope.blocks, 1, 1)]
    if len(polytope.sums):
      kept.append(optimize.LinearConstraint(polytope.sums, polytope.low, polytope.high))
    if constraints.product is not None:
      kept.append(optimize.NonlinearConstraint(spare, 0, np.inf))
    found = optimize.minimize(
      fall,
      np.clip(start, lower, upper),
      jac=True,
      method="SLSQP",
      bounds=optimize.Bounds(lower, upper),
      constraints=kept,
      options={"ftol": 1e-9},
    ).x
    return found if np.isfinite(found).all() else start

  @functools.cached_property
  def _moments(self) -> Callable[[Array], tuple[Array, Array]]:
    return _settled(self.model, self.told)


_settled = jax.jit(moments_of)


@jax.jit(static_argnums=0)
def _slope(acquisition: Acquisition, moments, parameter, point: Array) -> tuple[Array, Array]:
  """The acquisition at `point: float[d]`, and its gradient."""
  return jax.value_and_grad(
    lambda point: acquire.rate(acquisition, *moments(point[None]), parameter)[0]
  )(point)
