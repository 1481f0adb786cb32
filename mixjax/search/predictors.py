"""The surrogates that a replay compares, all as one function: runs in, predictions out."""

import functools
import warnings
from collections.abc import Callable

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.linear_model import Ridge

from mixjax.search import surrogate
from mixjax.search.coordinates import LOG, RAW, SQRT
from mixjax.search.policies import Observations
from mixjax.search.policies.modomodo import fit_quadratic
from mixjax.search.policies.olmix import fit_log_linear
from mixjax.search.policies.regmix import fit_trees
from mixjax.search.space import Space

# Scores `float[m]` of points `float[m, d]`, and their sds, None where the method states none.
Predict = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]


def fit_process(runs: Observations, space: Space, **options) -> Predict:
  """MixAtlas's own surrogate; its sd is that of a new run, noise included."""
  fitted = surrogate.fit(runs, space, **options)

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


def _without_sd(law_of: Callable[[Observations], Callable]):
  def fitted(runs: Observations, space: Space) -> Predict:
    law = law_of(runs)
    return lambda points: (law(points), None)

  return fitted


SURROGATES: dict[str, Callable[[Observations, Space], Predict]] = {
  "gp": fit_process,
  # The same kernel without what ours learns besides: the coordinates given, and the mode alone.
  "gp-sqrt": functools.partial(fit_process, coordinates=SQRT, draws=1),
  "gp-log": functools.partial(fit_process, coordinates=LOG, draws=1),
  "gp-raw": functools.partial(fit_process, coordinates=RAW, draws=1),
  "lightgbm": _without_sd(fit_trees),
  # A constant below 40 runs.
  "lightgbm-published": _without_sd(functools.partial(fit_trees, leaf=20)),
  "sklearn-gp": fit_olmix_process,
  "linear": fit_linear,
  "quadratic": _without_sd(fit_quadratic),
  "log-linear": _without_sd(fit_log_linear),
}
