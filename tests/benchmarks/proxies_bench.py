"""How to train many tiny proxies on a CPU: in turn, as one batch of proxies, or one process a core.

  python tests/benchmarks/proxies_bench.py [--proxies 4] [--steps 20] [--repeats 3]

Prints samples a second of each way and its ratio to `in turn`, from interleaved repeats (median,
range). Compilation is not counted; batches are random tokens of the gallery's shapes.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

# The repository, where mixjax is not installed.
sys.path.append(str(pathlib.Path(__file__).parents[2]))

from mixjax.jobs.pool import KEEP_MEMORY
from mixjax.jobs.workers import ONE_THREAD


def work(way: str, proxies: int, steps: int) -> float:
  """Samples a second of `proxies` proxies trained for `steps` steps in this process."""
  import jax
  import numpy as np
  from flax import nnx

  from mixjax.jobs.atlas import STANDINS
  from mixjax.models import hf
  from mixjax.training.optimizer import OptimizerConfig, make_optimizer
  from mixjax.training.population import population_step, stack
  from mixjax.training.step import init_state, train_step

  graphdef, params = nnx.split(hf.load_llava(STANDINS / "proxy", tower=False, unroll=True))
  tx = make_optimizer(OptimizerConfig(), steps)
  rng = np.random.default_rng(0)
  batch = {
    "ids": np.where(np.arange(84) < 39, 3, rng.integers(4, 1000, (32, 84))).astype(np.int32),
    "loss_mask": np.tile(np.arange(84) >= 60, (32, 1)),
    "mask": np.ones((32, 84), bool),
    "features": rng.normal(size=(32, 36, 128)).astype(np.float32),
  }
  batch["ids"][:, 36:39] = 4
  states = [init_state(params, tx) for _ in range(proxies)]
  if way == "batched":
    step = population_step(graphdef, tx, 37)
    batch = {k: np.stack([v] * proxies) for k, v in batch.items()}
    states = [stack(states)]
  else:
    step = jax.jit(train_step(graphdef, tx, 37), donate_argnums=0)
  states = [step(state, batch)[0] for state in states]
  jax.block_until_ready(states)
  began = time.time()
  for i, state in enumerate(states):
    for _ in range(steps):
      state, _ = step(state, batch)
    states[i] = jax.block_until_ready(state)
  return proxies * steps * 32 / (time.time() - began)


def launch(way: str, proxies: int, steps: int, core: int | None = None) -> subprocess.Popen:
  env = os.environ | KEEP_MEMORY | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": sys.path[-1]}
  if core is not None:
    env |= ONE_THREAD | {"MIXJAX_CORE": str(core)}
  command = [sys.executable, __file__, "--way", way, f"--proxies={proxies}", f"--steps={steps}"]
  return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)


def measure(way: str, proxies: int, steps: int) -> float:
  if way != "pinned":
    jobs = [launch(way, proxies, steps)]
  else:
    cores = sorted(os.sched_getaffinity(0))
    jobs = [launch("in turn", proxies // len(cores), steps, core) for core in cores]
  return sum(json.loads(job.communicate()[0]) for job in jobs)


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--way")
  parser.add_argument("--proxies", type=int, default=4)
  parser.add_argument("--steps", type=int, default=20)
  parser.add_argument("--repeats", type=int, default=3)
  args = parser.parse_args()
  if args.way:
    if core := os.environ.get("MIXJAX_CORE"):
      os.sched_setaffinity(0, {int(core)})
    print(json.dumps(work(args.way, args.proxies, args.steps)))
    return
  ways = ("in turn", "batched", "pinned")
  found = [{w: measure(w, args.proxies, args.steps) for w in ways} for _ in range(args.repeats)]
  for way in ways:
    speeds = sorted(f[way] for f in found)
    ratios = sorted(f[way] / f["in turn"] for f in found)
    middle = len(found) // 2
    print(
      f"{way:8} {speeds[middle]:7.0f} samples/s   {ratios[middle]:.2f} x in turn "
      f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
    )


if __name__ == "__main__":
  main()
