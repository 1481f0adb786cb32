"""LLaVA-NeXT (and LLaVA-OneVision): the YAML that --data_path names.

    datasets:
    - {json_path: charts/caption.json, sampling_strategy: all}
    - {json_path: charts/caption.json, sampling_strategy: first:13}

It knows no weights: a file's rows are taken `all`, or so many of the `first`, or at `random`, and
everything is shuffled together once. So a mixture goes out as counts for a stated number of samples
(whole ones, none off by one), and a cell that is wanted more often than it has rows is listed again
for every further round. Train for one epoch.

`first` is the default: `random` shuffles by each process's own generator before any seed is set, so
that processes may each see other rows. Then a file's rows should stand in no order.
(llava/train/train.py, LazySupervisedDataset)
"""

from collections.abc import Sequence

import yaml

from mixjax.data.schedule import Schedule
from mixjax.recipes.exporters.sources import SAMPLES, Export, Source

FILE = "llava_next.yaml"
PATH = "{folder}.json"
UNIT = SAMPLES


def export(
  sources: Sequence[Source], samples: int | None = None, strategy: str = "first"
) -> Export:
  """The list's YAML; its weights are each cell's count. `strategy` is "first" or "random".

  Raises ValueError without `samples`, for another strategy, and for a path that is neither .json
  nor .jsonl, which LLaVA-NeXT refuses.
  """
  if samples is None or samples < 1:
    raise ValueError("LLaVA-NeXT takes numbers of rows, not weights: give samples, at least 1")
  if strategy not in ("first", "random"):
    raise ValueError(f"strategy {strategy!r} is neither first nor random")
  if other := [s.path for s in sources if not s.path.endswith((".json", ".jsonl"))]:
    raise ValueError(f"LLaVA-NeXT reads .json and .jsonl files, not {other[0]!r}: change path")
  counts = Schedule([source.weight for source in sources]).counts(samples).tolist()
  datasets = []
  for source, count in zip(sources, counts, strict=True):
    rounds, rest = divmod(count, source.rows)
    datasets += [{"json_path": source.path, "sampling_strategy": "all"}] * rounds
    if rest:
      datasets.append({"json_path": source.path, "sampling_strategy": f"{strategy}:{rest}"})
  notes = ("train for one epoch: the list is the whole run",)
  if none := [s.cell for s, count in zip(sources, counts, strict=True) if not count]:
    notes += (f"{samples} samples have none of {', '.join(none)}",)
  # Anchors for the repeated entries would be right and unreadable.
  text = yaml.safe_dump({"datasets": [dict(entry) for entry in datasets]}, sort_keys=False)
  return Export(text, {s.cell: n for s, n in zip(sources, counts, strict=True)}, notes)
