"""Hugging Face datasets: the arguments of `interleave_datasets`, as JSON.

    {"paths": ["charts/caption.parquet", ...], "cells": ["charts/caption", ...],
     "interleave": {"probabilities": [0.25, ...], "seed": 0, "stopping_strategy": ...}}

    spec = json.load(open("hugging_face.json"))
    parts = [load_dataset("parquet", data_files=path, split="train") for path in spec["paths"]]
    rows = interleave_datasets(parts, **spec["interleave"])

A probability is that of an example, a share of samples, so it goes out as it is; realised shares
are those only on average. A part of probability 0 is never exhausted: "all_exhausted" refuses it
(older versions hang), so such cells are left out.

"first_exhausted" ends where the first part does and repeats nothing. "all_exhausted" goes back to
the first row of a part whenever it ends, in the same order each time, until every part was seen
whole: a part is repeated as often as the one with the most rows for its weight demands, and the
length is that of this one. The first is written where it holds the samples that are asked for, the
second otherwise. (datasets/arrow_dataset.py, _interleave_map_style_datasets)
"""

import json
import math
from collections.abc import Sequence

from mixjax.recipes.exporters.sources import SAMPLES, Export, Source, check_samples, first_to_end

FILE = "hugging_face.json"
PATH = "{folder}.parquet"
UNIT = SAMPLES


def export(sources: Sequence[Source], samples: int | None = None) -> Export:
  """The arguments' JSON; see the module."""
  check_samples(samples)
  ending, shortest = first_to_end(sources)
  longest = max(source.rows / source.weight for source in sources)
  # A part runs out by chance, a few standard deviations of its count before it should.
  safe = shortest * (1 - 4 / math.sqrt(ending.rows))
  stopping = "first_exhausted" if samples is not None and samples <= safe else "all_exhausted"
  content = {
    "paths": [source.path for source in sources],
    "cells": [source.cell for source in sources],
    "interleave": {
      "probabilities": [source.weight for source in sources],
      "seed": 0,
      "stopping_strategy": stopping,
    },
  }
  note = (
    f"{stopping} was chosen: first_exhausted ends near {shortest:.0f} samples, all_exhausted near "
    f"{longest:.0f}, whose indices a map-style dataset keeps in memory"
  )
  if stopping == "all_exhausted":
    repeats = (
      "all_exhausted begins a part again at its first row, in the same order, whenever it ends: "
      f"{ending.cell} about {ending.epochs(longest):.1f} times by then"
    )
  else:
    repeats = "first_exhausted repeats no row"
  weights = {source.cell: source.weight for source in sources}
  return Export(json.dumps(content, indent=1) + "\n", weights, (note, repeats))
