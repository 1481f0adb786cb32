"""Mean and sd of a sum of processes of which some are `Linked` to cheaper runs, at any points.

`moments.Sum` stacks processes of the same runs; a linked one has runs of all fidelities, and doubt
about its slopes. What `Linked` answers in numpy, here as a program that an optimizer can climb.
"""

from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import tinygp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from mixjax.search import posterior
from mixjax.search.fidelities import Linked
from mixjax.search.moments import (
  LEAST,
  SMALLEST,
  Lens,
  Sum,
  Told,
  check_runs,
  each_of_sum,
  parts_of,
  shares_and_correlation,
  total_of,
)
from mixjax.search.process import Points
from mixjax.search.surrogate import Surrogate


class Seen(eqx.Module):
  """Points as a linked process sees them at the target. `apart: float[k, m]` is how far what is
  believed of the cheaper fidelities is from what runs of the target expect of them."""

  points: Points
  white: Float[Array, "n m"]
  apart: Float[Array, "k m"]


class Link(eqx.Module):
  """A linked process. `cheap` and `expected` are single processes, one for each fidelity."""

  process: tinygp.GaussianProcess
  weights: Float[Array, " n"]
  error: Float[Array, "k k"]
  cheap: tuple[Sum, ...]
  expected: tuple[Sum, ...]
  scale: float
  noise: float  # a variance, as `error` in squared `scale`

  @classmethod
  def of(cls, linked: Linked) -> "Link":
    return cls(
      linked.process,
      linked.weights,
      linked.error / linked.scale**2,
      tuple(Sum.of([one]) for one in linked.cheap),
      tuple(Sum.of([one]) for one in linked.expected),
      linked.scale,
      (linked.noise_sd / linked.scale) ** 2,
    )

  def see(self, mixtures: Float[Array, "m d"], real: Float[Array, " m"]) -> Seen:
    level = jnp.full((len(mixtures), 1), float(len(self.cheap)))
    points = Points(jnp.concatenate([jnp.maximum(mixtures, LEAST), level], axis=1), real)
    white = self.process.solver.solve_triangular(self.process.kernel(self.process.X, points))
    both = zip(self.cheap, self.expected, strict=True)
    apart = [_mean(here, mixtures) - _mean(runs, mixtures) for here, runs in both]
    return Seen(points, white, real * jnp.stack(apart))

  def covariance(self, a: Seen, b: Seen) -> Float[Array, "m l"]:
    between = posterior.covariance(self.process.kernel, a.points, b.points, a.white, b.white)
    return between + a.apart.T @ self.error @ b.apart

  def tell(self, told: Told) -> tuple[Seen, Array]:
    """What is told, and the inverse Cholesky factor of its covariance."""
    seen = self.see(told.mixtures, told.present)
    diagonal = jnp.where(told.present > 0, self.noise, 1.0)
    factor = jnp.linalg.cholesky(self.covariance(seen, seen) + jnp.diag(diagonal))
    return seen, solve_triangular(factor, jnp.eye(len(factor)), lower=True)

  def moments(self, told: Seen, root: Array, mixtures: Float[Array, "m d"]) -> tuple[Array, Array]:
    """Mean and sd `float[m]` in units of `scale`, from the center."""
    seen = self.see(mixtures, jnp.ones(len(mixtures)))
    variance = posterior.variance(self.process.kernel, seen.points, seen.white)
    variance += jnp.einsum("km,kl,lm->m", seen.apart, self.error, seen.apart)
    known = jnp.sum((root @ self.covariance(told, seen)) ** 2, axis=0)
    mean = self.process.kernel(seen.points, self.process.X) @ self.weights
    return mean, jnp.sqrt(jnp.maximum(variance - known, SMALLEST))


class Mixed(eqx.Module):
  """A weighted sum of processes of the same runs of the target: those `alone`, then `links`.

  It can be climbed like a `Sum`; what there is of each process is in this order.
  """

  alone: Sum | None
  links: tuple[Link, ...]
  center: Float[Array, " b"]
  scale: Float[Array, " b"]
  weights: Float[Array, " b"]
  correlation: Float[Array, "b b"]
  axes: Float[Array, "d a"]
  lower: Float[Array, " d"]

  def after(self, told: Told) -> Callable[[Array], tuple[Array, Array]]:
    """`moments.moments_of`."""
    alone = None if self.alone is None else parts_of(self.alone, told)
    links = tuple(link.tell(told) for link in self.links)
    return jax.tree_util.Partial(_moments_of_mixed, self, alone, links)


def model_of(
  parts: Sequence[Surrogate | Linked],
  weights: Float[np.ndarray, " b"] | None = None,
  correlation: Float[np.ndarray, "b b"] | None = None,
) -> Sum | Mixed:
  """As `Sum.of`, which it is where no part is linked."""
  if not any(isinstance(part, Linked) for part in parts):
    return Sum.of(parts, weights, correlation)
  # The process over mixtures of a linked part was fitted to the target's runs, as the others were.
  check_runs([of_target(part) for part in parts])
  weights, correlation = shares_and_correlation(len(parts), weights, correlation)
  order = sorted(range(len(parts)), key=lambda place: isinstance(parts[place], Linked))
  single = [part for part in parts if isinstance(part, Surrogate)]
  linked = [part for part in parts if isinstance(part, Linked)]
  space = parts[0].space
  return Mixed(
    Sum.of(single) if single else None,
    tuple(Link.of(part) for part in linked),
    np.array([*(part.data.center for part in single), *(part.center for part in linked)]),
    np.array([*(part.data.scale for part in single), *(part.scale for part in linked)]),
    weights[order],
    correlation[np.ix_(order, order)],
    np.eye(len(space.axes))[space.block],
    space.lower,
  )


def of_target(part: Surrogate | Linked) -> Surrogate:
  """The process whose rows are the target's runs."""
  return part.rest if isinstance(part, Linked) else part


def _mean(model: Sum, points: Float[Array, "m d"]) -> Float[Array, " m"]:
  """The mean of a single process with one draw, on scores as they are: `slopes.fit_linear`."""
  lens = Lens.of(jax.tree.map(lambda leaf: leaf[0, 0], model.draws), model)
  seen = lens.see(points, jnp.ones(len(points)))
  return model.center[0] + model.scale[0] * (lens.kernel(seen, lens.runs) @ lens.draw.weights)


def _moments_of_mixed(model: Mixed, alone, links, points: Array) -> tuple[Array, Array]:
  found = [] if alone is None else [each_of_sum(alone, points)]
  linked = [link.moments(*told, points) for link, told in zip(model.links, links, strict=True)]
  found.append(tuple(jnp.stack(column) for column in zip(*linked, strict=True)))
  means, sds = (jnp.concatenate(column) for column in zip(*found, strict=True))
  return total_of(model, means, sds)
