"""The scale on which scores are learnt, stretched at one end as far as the runs ask for.

Scores of mixtures are rarely even about their mean: of losses, a few bad mixtures have very high
ones, and near the optimum all are nearly alike. A process learns z = -log(1 - w y) / w of the
standardised scores y instead, a logarithm that is the identity at w = 0, stretches the top where w
is positive and the bottom where it is negative, and has slope 1 at the mean. What it believes of z
it believes of y as a shifted log-normal, whose moments are below. Differentiable. The noise of a
run is alike in z: with 512 of RegMix's runs, alike in y had a fifth more squared error.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

# The median of the prior is the identity; at a share of 1 the best score, or the worst, would be
# infinitely far away.
LARGEST_SHARE, SPREAD = 0.9, 0.3

# Scores count as at least so far from their mean when the largest w is found, in their sds.
NEAREST = 0.5

# Below this w the logarithm is its series.
SMALL = 1e-6

# No log-normal is e^30 sds away: where nothing is known, exponentials of beliefs could overflow.
FARTHEST = 30.0


def from_normal(z, scores: Float[Array, " n"], real: Float[Array, " n"]) -> Float[Array, ""]:
  """The w for `z`, prior sds from the identity; `real` is 0 for scores that only fill up."""
  share = LARGEST_SHARE * jnp.tanh(SPREAD * z)
  top, bottom = (jnp.max(jnp.where(real > 0, s, 0.0)) for s in (scores, -scores))
  return share / jnp.maximum(jnp.where(share > 0, top, bottom), NEAREST)


def apply(scores: Float[Array, " n"], real, w) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
  """Standardised scores on the warped scale, and its slope there."""
  small, safe = _small(w)
  left = jnp.where(real > 0, 1 - w * scores, 1.0)
  return jnp.where(small, scores + w * scores**2 / 2, -jnp.log(left) / safe), 1 / left


def mean(warped_mean: Float[Array, " m"], variance: Float[Array, " m"], w) -> Float[Array, " m"]:
  """The mean of standardised scores that are normal, with these moments, on the warped scale."""
  small, safe = _small(w)
  exponent = jnp.minimum(w**2 * variance / 2 - w * warped_mean, FARTHEST)
  series = warped_mean - w * (warped_mean**2 + variance) / 2
  return jnp.where(small, series, -jnp.expm1(exponent) / safe)


def covariance(warped_covariance: Float[Array, "*m"], a, b, w) -> Float[Array, "*m"]:
  """Covariances of such scores, whose means, by `mean`, are `a` and `b` (shaped to broadcast)."""
  small, safe = _small(w)
  logarithm = jnp.expm1(jnp.minimum(w**2 * warped_covariance, FARTHEST)) / safe**2
  return (1 - w * a) * (1 - w * b) * jnp.where(small, warped_covariance, logarithm)


def _small(w):
  small = jnp.abs(w) < SMALL
  return small, jnp.where(small, 1.0, w)
