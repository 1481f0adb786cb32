"""The surrogates that a replay compares, all as one function: runs in, predictions out."""

import functools
import warnings
from collections.abc import Callable

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.linear_model import Ridge

from mixjax.search import surrogate, total
from mixjax.search.coordinates import LOG, RAW, SQRT
from mixjax.search.observations import Observations
from mixjax.search.policies.modomodo import fit_quadratic
from mixjax.search.policies.olmix import fit_log_linear
from mixjax.search.policies.regmix import fit_trees
from mixjax.search.space import Space
from mixjax.search.surrogate import Surrogate

# Scores `float[m]` of points `float[m, d]`, and their sds, None where the method states none.
Predict = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]


def fit_total(runs: Observations, space: Space) -> Predict:
  """MixAtlas's own surrogate, a process for each part of the scores; its sd includes the noise."""
  return _with_noise(total.fit(runs, space))


def fit_process(runs: Observations, space: Space, **options) -> Predict:
  """One process of the scores themselves; its sd is that of a new run, noise included."""
  return _with_noise(surrogate.fit(runs, space, **options))


def _with_noise(fitted: Surrogate | total.Total) -> Predict:
  def predict(points):
    mean, sd = fitted.predict(points)
    return mean, np.hypot(sd, fitted.noise_sd)

  return predict


def fit_olmix_process(runs: Observations, space: Space) -> Predict:
  """Olmix's `gp`: one isotropic RBF length-scale on raw weights, 10 restarts."""
  kernel = ConstantKernel() * RBF() + WhiteKernel()
  model = GaussianProcessRegressor(
    kernel, normalize_y=True, n_restarts_optimizer=10, random_state=0
  )
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", ConvergenceWarning)  # a hyper-parameter at its bound
    model.fit(runs.mixtures, runs.scores)
  return lambda points: model.predict(points, return_std=True)  # includes the white noise


def fit_linear(runs: Observations, space: Space) -> Predict:
  """Ridge regression on the weights."""
  model = Ridge(1e-3).fit(runs.mixtures, runs.scores)
  return lambda points: (model.predict(points), None)


def _each_part(fit: Callable[[Observations, Space], Predict]) -> Callable:
  """`fit` to each part of the scores, predictions added up; no sd, as parts err together."""

  def fitted(runs: Observations, space: Space) -> Predict:
    laws = [fit(part, space) for part in runs.by_part()]
    return lambda points: (np.sum([law(points)[0] for law in laws], axis=0), None)

  return fitted


def _without_sd(law_of: Callable[[Observations], Callable]):
  def fitted(runs: Observations, space: Space) -> Predict:
    law = law_of(runs)
    return lambda points: (law(points), None)

  return fitted


SURROGATES: dict[str, Callable[[Observations, Space], Predict]] = {
  "gp": fit_total,
  # Without the parts; then without what ours learns besides: scores and coordinates as they are
  # given, and the mode alone.
  "gp-whole": fit_process,
  "gp-unwarped": functools.partial(fit_process, warp=0.0),
  "gp-sqrt": functools.partial(fit_process, coordinates=SQRT, warp=0.0, draws=1),
  "gp-log": functools.partial(fit_process, coordinates=LOG, warp=0.0, draws=1),
  "gp-raw": functools.partial(fit_process, coordinates=RAW, warp=0.0, draws=1),
  "lightgbm": _without_sd(fit_trees),
  # A constant below 40 runs.
  "lightgbm-published": _without_sd(functools.partial(fit_trees, leaf=20)),
  "sklearn-gp": fit_olmix_process,
  "linear": fit_linear,
  "quadratic": _without_sd(fit_quadratic),
  "log-linear": _without_sd(fit_log_linear),
  # Where scores have parts, the others may learn from them too.
  "lightgbm-parts": _each_part(_without_sd(fit_trees)),
  "sklearn-gp-parts": _each_part(fit_olmix_process),
  "log-linear-parts": _each_part(_without_sd(fit_log_linear)),
}
