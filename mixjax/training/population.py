"""Many proxies, one program: the batch-of-proxies axis, for accelerators.

On a CPU one pinned process a core is faster (tests/benchmarks/proxies_bench.py measures both), so
the local pool does that instead; on a TPU or GPU a lone tiny proxy leaves the chip idle.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from mixjax.training import step as step_lib


def population_step(
  graphdef: nnx.GraphDef, tx: optax.GradientTransformation, loss_from: int
) -> Callable:
  """`train_step` over stacked states and batches: every leaf has a leading axis, one a proxy."""
  return jax.jit(jax.vmap(step_lib.train_step(graphdef, tx, loss_from)), donate_argnums=0)


def stack(states: Sequence[step_lib.TrainState]) -> step_lib.TrainState:
  """Single states -> one state whose leaves have a leading proxy axis."""
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def unstack(state: step_lib.TrainState) -> list[step_lib.TrainState]:
  """The inverse of `stack`."""
  return [jax.tree.map(lambda leaf, i=i: leaf[i], state) for i in range(state.step.shape[0])]
