"""MaxText: the JSON that `grain_train_mixture_config_path` names.

    {"charts/caption": {"path": "/cells/charts/caption/*/*.array_record-*", "weight": 0.25}, ...}

A weight is a share of records, drawn before MaxText packs them: of samples, so they go out as they
are. MaxText divides them by their sum and mixes with grain, whose counts follow the shares without
chance; weights are rounded to a hundredth of the smallest one.

With dataset_type=grain and grain_file_type=arrayrecord it reads tf.train.Example records, which
those of our cells are: `PATH` needs no conversion, and train_data_columns may name turns/prompt and
turns/answer. What becomes of the pictures is up to the pipeline.

The mixture ends where the first cell does: `num_epoch` repeats every cell, and a note says how
large it must be. (maxtext/input_pipeline/grain_data_processing.py, get_datasets)
"""

import json
import math
from collections.abc import Sequence

from mixjax.recipes.exporters.sources import SAMPLES, Export, Source, check_samples, first_to_end

FILE = "maxtext.json"
PATH = "{cells}/{folder}/*/*.array_record-*"
UNIT = SAMPLES


def export(sources: Sequence[Source], samples: int | None = None) -> Export:
  """The mixture's JSON; see the module."""
  check_samples(samples)
  text = json.dumps({s.cell: {"path": s.path, "weight": s.weight} for s in sources}, indent=1)
  source, length = first_to_end(sources)
  note = (
    f"with num_epoch=1 the mixture ends after about {length:.0f} samples, where {source.cell} does"
  )
  if samples is not None:
    # One more than the least: every host mixes its own share of a cell, rounded down.
    epochs = max(math.ceil(samples / length), 1) + 1
    note += f"; for {samples} samples set num_epoch={epochs}"
  return Export(text + "\n", {s.cell: s.weight for s in sources}, (note,))
