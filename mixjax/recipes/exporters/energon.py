"""Megatron-Energon: a metadataset (MetadatasetV2) that blends the cells.

    __module__: megatron.energon
    __class__: MetadatasetV2
    splits:
      train:
        blend:
        - {weight: 0.25, path: charts/caption, subflavors: {cell: charts/caption}}

Each sample's cell is drawn with the weights as probabilities, divided by their sum: they are shares
of samples and go out as they are. Realised shares are those only on average. A weight must be
above 0. A path is that of a prepared dataset (`energon prepare`), relative to the YAML file, and
`subflavors` lets the task encoder see a sample's cell. In training every dataset repeats for ever.
(megatron/energon/metadataset/metadataset_v2.py, megatron/energon/wrappers/blend_dataset.py)
"""

from collections.abc import Sequence

import yaml

from mixjax.recipes.exporters.sources import SAMPLES, Export, Source

FILE = "energon.yaml"
PATH = "{folder}"
UNIT = SAMPLES


def export(sources: Sequence[Source], samples: int | None = None) -> Export:
  """The metadataset's YAML, with a train split only; see the module."""
  blend = [
    {"weight": source.weight, "path": source.path, "subflavors": {"cell": source.cell}}
    for source in sources
  ]
  content = {
    "__module__": "megatron.energon",
    "__class__": "MetadatasetV2",
    "splits": {"train": {"blend": blend}},
  }
  note = "cells are drawn by chance: after n samples a share w is off by about sqrt(w (1 - w) / n)"
  text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
  return Export(text, {source.cell: source.weight for source in sources}, (note,))
