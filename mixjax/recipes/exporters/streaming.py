"""MosaicML streaming: the arguments of a StreamingDataset's streams, as JSON.

    {"epoch_size": 4096, "streams": [{"local": "charts/caption", "proportion": 0.25}, ...]}

    spec = json.load(open("streaming.json"))
    streams = [Stream(**stream) for stream in spec["streams"]]
    StreamingDataset(streams=streams, epoch_size=spec["epoch_size"], batch_size=...)

A proportion is a share of samples, so it goes out as it is. An epoch takes
`epoch_size * proportion` samples of a stream, rounded down; what is left over goes to streams by
chance, one sample each. Rows repeat where a stream has fewer, and are left out where it has more.
A path with "://" is written as `remote`. (streaming/base/stream.py, Stream.apply_weights)
"""

import json
from collections.abc import Sequence

from mixjax.recipes.exporters.sources import SAMPLES, Export, Source, check_samples

FILE = "streaming.json"
PATH = "{folder}"
UNIT = SAMPLES


def export(sources: Sequence[Source], samples: int | None = None) -> Export:
  """The streams' JSON, in epochs of `samples`, or of as many as the cells have rows."""
  check_samples(samples)
  epoch = sum(source.rows for source in sources) if samples is None else samples
  streams = [
    {"remote" if "://" in source.path else "local": source.path, "proportion": source.weight}
    for source in sources
  ]
  notes = ()
  if none := [source.cell for source in sources if source.weight * epoch < 1]:
    notes = (f"an epoch of {epoch} samples has less than one of {', '.join(none)}",)
  text = json.dumps({"epoch_size": epoch, "streams": streams}, indent=1)
  return Export(text + "\n", {source.cell: source.weight for source in sources}, notes)
