"""Levanter: the `data` block of a training config, with `components` and `train_weights`.

    data:
      components:
        charts_caption: {source: {type: url, train_urls: [charts/caption.jsonl]}}
      train_weights: {charts_caption: 0.31}
      mixture_block_size: 32768

A weight is a share of sequences, and each of these is `max_seq_len` tokens of concatenated rows: so
shares of samples are multiplied by a cell's mean tokens a sample and divided by their sum. That is
right for its text format, and for its chat format as well, which packs by default; with `pack: pad`
a sequence is a sample, and the recipe's own weights are the right ones.

Each block of `mixture_block_size` sequences has `weight * block` of a component, rounded down, and
the largest takes the rest; a component whose share is below one gets none at all. So the block is
the largest power of two that Levanter takes, and a note names those that get none. Components
repeat for ever. `format` and `tokenizer` are for the user to add.
(levanter/data/mixture.py, levanter/data/text/datasets.py: LmDataConfig)
"""

from collections.abc import Sequence

import yaml

from mixjax.recipes.exporters.sources import SEQUENCES, Export, Source, token_shares

FILE = "levanter.yaml"
PATH = "{folder}.jsonl"
UNIT = SEQUENCES
BLOCK = 1 << 15  # a block must have fewer than 2**16 sequences


def export(sources: Sequence[Source], samples: int | None = None) -> Export:
  """The block's YAML. Raises ValueError where the manifest has no token lengths."""
  shares = token_shares(sources)
  content = {
    "components": {s.name: {"source": {"type": "url", "train_urls": [s.path]}} for s in sources},
    "train_weights": {s.name: shares[s.cell] for s in sources},
    "mixture_block_size": BLOCK,
  }
  notes = ()
  if none := [cell for cell, share in shares.items() if share * BLOCK < 1]:
    notes = (f"a block of {BLOCK} sequences has none of {', '.join(none)}: Levanter skips them",)
  text = yaml.safe_dump({"data": content}, sort_keys=False, allow_unicode=True)
  return Export(text, shares, notes)
