"""How full packed rows are, how full they could be, and what finding them costs.

  python tests/benchmarks/packing_bench.py [--samples 1000000] [--block 2048]

Lengths are drawn for mixtures of pictures and text (see `samples` in tests/packing_test.py) and
packed block by block. Prints a line of JSON for each mixture and length of row: `fill` is the share
of tokens' places used, `bound` the most that any packing of the same blocks could reach (the bound
L2 of Martello and Toth, 1990, on tokens alone), `tiles` the share of tiles' slots used, and
`seconds` of processor time a million samples.
"""

import argparse
import json
import pathlib
import sys
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from packing_test import samples, shape_of

from mixjax.data.packing import BLOCK, pack

MIXTURES = {
  "576 tokens a picture, 6% text": dict(text=0.06, fixed=True),
  "tiles, 14% text": dict(text=0.14),
  "tiles, 40% text": dict(text=0.40),
  "tiles, 65% text": dict(text=0.65),
}


def least_rows(tokens, length):
  """L2: samples over half a row are apart, and the small ones fill what those leave."""
  best = 0
  for small in range(0, length // 2, 32):
    alone = np.sum(tokens > length - small)
    large = tokens[(tokens > length // 2) & (tokens <= length - small)]
    middle = tokens[(tokens >= small) & (tokens <= length // 2)].sum()
    over = middle - (len(large) * length - large.sum())
    best = max(best, alone + len(large) + max(0, -(-over // length)))
  return best


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--samples", type=int, default=1_000_000)
  parser.add_argument("--block", type=int, default=BLOCK)
  options = parser.parse_args()
  for name, mixture in MIXTURES.items():
    for length in (4096, 8192):
      shape = shape_of(length, tiles=length // 256)
      lengths = samples(options.samples, **mixture)
      lengths[:, 0] = np.minimum(lengths[:, 0], length)
      blocks = [lengths[i : i + options.block] for i in range(0, len(lengths), options.block)]
      start = time.process_time()
      rows = [pack(block, shape)[1] for block in blocks]
      seconds = time.process_time() - start
      judged = slice(0, 20)  # the bound takes longer than the packing
      bound = sum(least_rows(block[:, 0], length) for block in blocks[judged])
      line = {
        "mixture": name,
        "length": length,
        "fill": lengths[:, 0].sum() / sum(rows) / length,
        "bound": sum(block[:, 0].sum() for block in blocks[judged]) / bound / length,
        "tiles": lengths[:, 2].sum() / sum(rows) / shape.tiles,
        "seconds": seconds / len(lengths) * 1e6,
      }
      print(json.dumps({k: round(v, 4) if v.__class__ is not str else v for k, v in line.items()}))


if __name__ == "__main__":
  main()
