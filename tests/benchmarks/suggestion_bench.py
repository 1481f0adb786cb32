"""How long a suggestion takes: 60 runs, 15 weights, a pool of 2000.

  python tests/benchmarks/suggestion_bench.py

Prints seconds of the first call (with compilation) and the median and range of those after it.
"""

import time

import numpy as np

from mixjax.search.policies import Observations
from mixjax.search.policies.mixatlas import MixAtlas
from mixjax.search.space import Space, candidates


def main() -> None:
  concepts, tasks = [f"concept{i}" for i in range(10)], list("abcde")
  space = Space.product(concepts, tasks)
  space = space.with_pool(candidates(space, 2000, 0))
  mixtures = candidates(space, 60, 1)
  scores = np.random.default_rng(0).normal(size=60) - np.sum((mixtures - 0.1) ** 2, axis=1)
  policy = MixAtlas(space)
  for count in (1, 8):
    seconds = []
    for _ in range(6):
      began = time.perf_counter()
      policy.ask(Observations(mixtures, scores), count, 0)
      seconds.append(time.perf_counter() - began)
    rest = sorted(seconds[1:])
    print(
      f"{count} mixtures: first {seconds[0]:.2f} s, then {rest[2]:.3f} s "
      f"({rest[0]:.3f} to {rest[-1]:.3f})"
    )


if __name__ == "__main__":
  main()
