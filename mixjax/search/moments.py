"""Mean and sd of a sum of processes at any points, with gradients, after runs have been told to it.

What `Total` and `Surrogate` answer in numpy, as one program that an optimizer can climb.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import tinygp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from mixjax.search import coordinates as coordinates_lib
from mixjax.search import posterior, process, warp
from mixjax.search.process import Form, Points
from mixjax.search.surrogate import Draw, Surrogate

# Logarithms and square roots have no gradient at 0: smaller weights count as this one.
LEAST = 1e-12

# Least variance of a score, in squared standard deviations of the scores.
SMALLEST = 1e-18


class Sum(eqx.Module):
  """A weighted sum of processes of the same runs, and the space it is over.

  `draws` are stacked along two axes, processes and draws; `noise` is a variance, in standardised
  scores; `axes` tells which weight is on which axis.
  """

  draws: Draw
  center: Float[Array, " b"]
  scale: Float[Array, " b"]
  noise: Float[Array, " b"]
  weights: Float[Array, " b"]
  correlation: Float[Array, "b b"]
  rows: Float[Array, "n d"]
  real: Float[Array, " n"]
  reference: Float[Array, "r d"]
  axes: Float[Array, "d a"]
  lower: Float[Array, " d"]
  form: Form = eqx.field(static=True)

  @classmethod
  def of(
    cls,
    parts: Sequence[Surrogate],
    weights: Float[np.ndarray, " b"] | None = None,
    correlation: Float[np.ndarray, "b b"] | None = None,
  ) -> "Sum":
    """`parts`, processes of the same runs, times `weights` (None: all 1); the errors of two at one
    mixture have `correlation` (None: independent). ValueError if they disagree."""
    space, data = parts[0].space, parts[0].data
    check_runs(parts)
    for place, part in enumerate(parts):
      if part.form != parts[0].form or len(part.draws.noise) != len(parts[0].draws.noise):
        raise ValueError(
          f"process {place} has another form or number of draws than process 0: fit alike"
        )
    weights, correlation = shares_and_correlation(len(parts), weights, correlation)
    return cls(
      jax.tree.map(lambda *leaves: jnp.stack(leaves), *(part.draws for part in parts)),
      np.array([part.data.center for part in parts]),
      np.array([part.data.scale for part in parts]),
      np.array([(part.noise_sd / part.data.scale) ** 2 for part in parts]),
      weights,
      correlation,
      data.rows,
      data.real,
      coordinates_lib.reference(space),
      np.eye(len(space.axes))[space.block],
      space.lower,
      parts[0].form,
    )

  def after(self, told: "Told") -> Callable[[Array], tuple[Array, Array]]:
    """`moments_of`."""
    return jax.tree_util.Partial(_moments_of_sum, self, parts_of(self, told))


class Model(Protocol):
  """What can be climbed: a `Sum`, or one with processes of other runs too (`mixed.py`).

  In score units it is `weights` times `scale` times what its processes say of standardised scores.
  """

  weights: Float[Array, " b"]
  center: Float[Array, " b"]
  scale: Float[Array, " b"]
  correlation: Float[Array, "b b"]
  axes: Float[Array, "d a"]
  lower: Float[Array, " d"]

  def after(self, told: "Told") -> Callable[[Array], tuple[Array, Array]]:
    """Mean and sd at any points once runs are told."""


def check_runs(parts: Sequence[Surrogate]) -> None:
  """ValueError unless all were fitted to the same mixtures."""
  for place, part in enumerate(parts):
    if part.count != parts[0].count or not np.array_equal(part.data.rows, parts[0].data.rows):
      raise ValueError(f"process {place} was fitted to other mixtures than process 0")


def shares_and_correlation(
  count: int,
  weights: Float[np.ndarray, " b"] | None,
  correlation: Float[np.ndarray, "b b"] | None,
) -> tuple[Float[np.ndarray, " b"], Float[np.ndarray, "b b"]]:
  """Both in float64, 1 for all and independent where not given. ValueError for other shapes."""
  weights = np.ones(count) if weights is None else np.asarray(weights, np.float64)
  correlation = np.eye(count) if correlation is None else np.asarray(correlation, np.float64)
  if weights.shape != (count,) or correlation.shape != (count, count):
    raise ValueError(
      f"{count} processes, but weights of shape {weights.shape} and a correlation of shape "
      f"{correlation.shape}"
    )
  return weights, correlation


class Told(eqx.Module):
  """Mixtures whose runs are taken to come out as predicted; those not `present` only fill up."""

  mixtures: Float[Array, "t d"]
  present: Float[Array, " t"]

  @classmethod
  def of(cls, told: Float[np.ndarray, "t d"], least: int = 0) -> "Told":
    """16 mixtures, 32, 64, and so on, that hold `told` and `least`."""
    size = max(16, 1 << (max(len(told), least, 1) - 1).bit_length())
    return cls(process.fill(told, size), process.fill(np.ones(len(told)), size))


class View(eqx.Module):
  """Points as one draw sees them: their mean score, and what whitens their covariance with the
  runs on the draw's warped scale."""

  points: Points
  mean: Float[Array, " m"]
  white: Float[Array, "n m"]


class Lens(eqx.Module):
  """One draw, with all that does not depend on the points that are asked about."""

  draw: Draw
  form: Form = eqx.field(static=True)
  middle: Float[Array, " columns"]
  spread: Float[Array, " columns"]
  runs: Points | None
  inverse: Float[Array, "n n"]  # of the Cholesky factor

  @classmethod
  def of(cls, draw: Draw, model: Sum) -> "Lens":
    reference = model.form.columns(model.reference)
    middle, spread = coordinates_lib.spread(reference, draw.exponent, draw.offset)
    inverse = solve_triangular(draw.factor, jnp.eye(len(model.rows)), lower=True)
    lens = cls(draw, model.form, middle, spread, None, inverse)
    return dataclasses.replace(lens, runs=lens.see(model.rows, model.real))

  @property
  def kernel(self) -> tinygp.kernels.Kernel:
    return self.form.kernel(self.draw.lengths, self.draw.amplitude)

  def see(self, mixtures, real) -> Points:
    weights = self.form.columns(jnp.maximum(mixtures, LEAST))
    seen = coordinates_lib.transform(weights, self.draw.exponent, self.draw.offset)
    return Points((seen - self.middle) / self.spread, real)

  def view(self, mixtures, real) -> View:
    points = self.see(mixtures, real)
    cross = self.kernel(points, self.runs)
    view = View(points, cross @ self.draw.weights, self.inverse @ cross.T)
    mean = warp.mean(view.mean, self.warped_variance(view), self.draw.warp)
    return dataclasses.replace(view, mean=mean)

  def warped_variance(self, view: View) -> Float[Array, " m"]:
    return posterior.variance(self.kernel, view.points, view.white)

  def variance(self, view: View) -> Float[Array, " m"]:
    return warp.covariance(self.warped_variance(view), view.mean, view.mean, self.draw.warp)

  def covariance(self, a: View, b: View) -> Float[Array, "m l"]:
    warped = posterior.covariance(self.kernel, a.points, b.points, a.white, b.white)
    return warp.covariance(warped, a.mean[:, None], b.mean, self.draw.warp)


class Part(eqx.Module):
  """One process of the sum, which has been told runs: lenses and views are stacked over draws."""

  lenses: Lens
  told: View
  root: Float[Array, "t t"]  # inverse Cholesky factor of the covariance of what was told

  @classmethod
  def of(cls, draws: Draw, noise, model: Sum, told: Told) -> "Part":
    lenses = jax.vmap(lambda draw: Lens.of(draw, model))(draws)
    views = jax.vmap(lambda lens: lens.view(told.mixtures, told.present))(lenses)
    diagonal = jnp.where(told.present > 0, noise, 1.0)
    covariance = _covariance(lenses, views, views) + jnp.diag(diagonal)
    factor = jnp.linalg.cholesky(covariance)
    return cls(lenses, views, solve_triangular(factor, jnp.eye(len(factor)), lower=True))

  def moments(self, points: Float[Array, "m d"]) -> tuple[Array, Array]:
    """Mean and sd `float[m]` in standardised scores."""
    views = jax.vmap(lambda lens: lens.view(points, jnp.ones(len(points))))(self.lenses)
    variances = jax.vmap(Lens.variance)(self.lenses, views)
    known = jnp.sum((self.root @ _covariance(self.lenses, self.told, views)) ** 2, axis=0)
    variance = variances.mean(0) + views.mean.var(0) - known
    return views.mean.mean(0), jnp.sqrt(jnp.maximum(variance, SMALLEST))


def _covariance(lenses: Lens, a: View, b: View) -> Float[Array, "m l"]:
  within = jax.vmap(Lens.covariance)(lenses, a, b).mean(0)
  return within + (a.mean - a.mean.mean(0)).T @ (b.mean - b.mean.mean(0)) / len(a.mean)


def moments_of(model: Model, told: Told) -> Callable[[Array], tuple[Array, Array]]:
  """Points `float[m, d]` to mean and sd `float[m]` of the sum, in score units; differentiable."""
  return model.after(told)


def parts_of(model: Sum, told: Told) -> Part:
  """Its processes after runs are told, stacked."""
  return jax.lax.map(lambda part: Part.of(*part, model, told), (model.draws, model.noise))


def each_of_sum(parts: Part, points: Float[Array, "m d"]) -> tuple[Array, Array]:
  """Mean and sd `float[b, m]` of each process, in standardised scores."""
  return jax.lax.map(lambda part: part.moments(points), parts)


def _moments_of_sum(model: Sum, parts: Part, points: Array) -> tuple[Array, Array]:
  return total_of(model, *each_of_sum(parts, points))


def total_of(
  model: Model, means: Float[Array, "b m"], sds: Float[Array, "b m"]
) -> tuple[Array, Array]:
  """Mean and sd `float[m]` of the sum in score units, from those of its processes."""
  shares = (model.weights * model.scale)[:, None] * sds
  variance = jnp.sum(shares * (model.correlation @ shares), axis=0)
  least = SMALLEST * jnp.sum(jnp.square(model.weights * model.scale))
  mean = model.weights @ (model.center[:, None] + model.scale[:, None] * means)
  return mean, jnp.sqrt(jnp.maximum(variance, least))


def moments_at(
  model: Model, told: Told, points: Float[np.ndarray, "m d"]
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
  """`moments_of` at any number of points, by one compiled program. For `process.exact()`."""
  parts = [
    _moments(model, told, process.fill(part, process.CHUNK))
    for part in np.split(points, range(process.CHUNK, len(points), process.CHUNK))
  ]
  mean, sd = (np.concatenate(column)[: len(points)] for column in zip(*parts, strict=True))
  return mean, sd


@jax.jit
def _moments(model: Model, told: Told, points: Array) -> tuple[Array, Array]:
  return moments_of(model, told)(points)
