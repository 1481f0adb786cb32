"""BoTorch's models and acquisitions, set up as its documentation does. Needs torch but not jax."""

import warnings

import numpy as np
import torch
from botorch.acquisition import (
  AcquisitionFunction,
  LogExpectedImprovement,
  UpperConfidenceBound,
  qLogExpectedImprovement,
  qUpperConfidenceBound,
)
from botorch.exceptions import InputDataWarning
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.models.transforms import Normalize
from botorch.optim import optimize_acqf, optimize_acqf_discrete
from botorch.sampling import SobolQMCNormalSampler
from gpytorch.constraints import GreaterThan
from gpytorch.kernels import MaternKernel, ScaleKernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.means import ZeroMean
from gpytorch.mlls import ExactMarginalLogLikelihood
from gpytorch.priors import LogNormalPrior
from jaxtyping import Float, Int


def tensor(values) -> torch.Tensor:
  return torch.as_tensor(np.array(values, np.float64))


def stock_model(
  mixtures: Float[np.ndarray, "n d"], scores: Float[np.ndarray, " n"]
) -> SingleTaskGP:
  """`SingleTaskGP` as in BoTorch's README: weights scaled to [0, 1], scores standardised; fitted.

  In 0.18 that is an RBF kernel with a length-scale a weight under priors that grow with dimension.
  """
  unit = Normalize(mixtures.shape[1])
  return _fitted(SingleTaskGP(tensor(mixtures), tensor(scores)[:, None], input_transform=unit))


def matched_model(
  features: Float[np.ndarray, "n d"],
  scores: Float[np.ndarray, " n"],
  lengths: tuple[float, float],
  amplitude: tuple[float, float],
  noise: tuple[float, float],
  least_noise: float,
) -> SingleTaskGP:
  """Zero mean, amplitude^2 ARD Matern-5/2 of `features` and noise; most probable values fitted.

  The pairs are the median and log-sd of a log-normal prior on each length-scale, on the amplitude
  and on the noise sd, in sds of the scores; `least_noise` is the least noise variance.
  """
  kernel = ScaleKernel(
    MaternKernel(2.5, ard_num_dims=features.shape[1], lengthscale_prior=_prior(*lengths)),
    outputscale_prior=_prior(amplitude[0] ** 2, 2 * amplitude[1]),
  )
  likelihood = GaussianLikelihood(
    noise_prior=_prior(noise[0] ** 2, 2 * noise[1]), noise_constraint=GreaterThan(least_noise)
  )
  model = SingleTaskGP(
    tensor(features),
    tensor(scores)[:, None],
    likelihood=likelihood,
    covar_module=kernel,
    mean_module=ZeroMean(),
  )
  kernel.base_kernel.lengthscale = lengths[0]
  kernel.outputscale = amplitude[0] ** 2
  likelihood.noise = noise[0] ** 2
  return _fitted(model)


def log_improvement(
  model: SingleTaskGP, scores, pending: Float[np.ndarray, "p d"], count: int, seed: int
) -> AcquisitionFunction:
  """LogEI over the best score; its Monte Carlo form for several choices or with `pending` ones."""
  best = float(np.max(scores))
  if count == 1 and not len(pending):
    return LogExpectedImprovement(model, best)
  return qLogExpectedImprovement(model, best, **_several(pending, seed))


def upper_bound(
  model: SingleTaskGP, kappa: float, pending: Float[np.ndarray, "p d"], count: int, seed: int
) -> AcquisitionFunction:
  """mu + kappa sigma, and its Monte Carlo form as above. BoTorch's beta is kappa squared."""
  if count == 1 and not len(pending):
    return UpperConfidenceBound(model, kappa**2)
  return qUpperConfidenceBound(model, kappa**2, **_several(pending, seed))


def choose_discrete(
  acquisition: AcquisitionFunction, choices: Float[np.ndarray, "m d"], count: int
) -> Int[np.ndarray, " count"]:
  """Which of `choices`, one after the other."""
  found, _ = optimize_acqf_discrete(acquisition, count, tensor(choices), return_acq_values=False)
  return np.array([int(np.abs(choices - row).sum(axis=1).argmin()) for row in found.numpy()])


def choose_continuous(
  acquisition: AcquisitionFunction, dim: int, count: int, restarts: int = 10, samples: int = 512
) -> Float[np.ndarray, "count dim"]:
  """Anywhere on the simplex, one after the other, with as many restarts as BoTorch's tutorials."""
  whole = (torch.arange(dim), torch.ones(dim, dtype=torch.float64), 1.0)
  bounds = torch.stack([torch.zeros(dim), torch.ones(dim)]).double()
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # starts that did not converge are retried and said at length
    found, _ = optimize_acqf(
      acquisition,
      bounds,
      count,
      restarts,
      samples,
      equality_constraints=[whole],
      sequential=True,
      return_acq_values=False,
    )
  inside = np.maximum(found.numpy(), 0)
  return inside / inside.sum(axis=1, keepdims=True)


def posterior(
  model: SingleTaskGP, points: Float[np.ndarray, "m d"]
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, "m m"]]:
  """Mean and covariance of the noise-free scores, in their own units."""
  with torch.no_grad():
    found = model.posterior(tensor(points))
    return found.mean[:, 0].numpy(), found.distribution.covariance_matrix.numpy()


def marginals(
  model: SingleTaskGP, points: Float[np.ndarray, "m d"]
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
  """Mean and sd of the noise-free score at each point alone."""
  with torch.no_grad():
    found = model.posterior(tensor(points)[:, None])
    return found.mean[:, 0, 0].numpy(), found.variance[:, 0, 0].sqrt().numpy()


def _several(pending, seed: int) -> dict:
  sampler = SobolQMCNormalSampler(torch.Size([512]), seed=seed)
  return {"sampler": sampler, "X_pending": tensor(pending) if len(pending) else None}


def _prior(median: float, spread: float) -> LogNormalPrior:
  """The prior whose most probable value in the logarithm is `median`.

  GPyTorch's is a density of the value itself, 1 / value times that of its logarithm.
  """
  return LogNormalPrior(np.log(median) + spread**2, spread)


def _fitted(model: SingleTaskGP) -> SingleTaskGP:
  with warnings.catch_warnings():
    # Columns that are zero in every run so far cannot be scaled.
    warnings.simplefilter("ignore", InputDataWarning)
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
  return model
