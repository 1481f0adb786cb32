"""The export job: a recipe in another trainer's format, with what that trainer makes of it."""

import json
import os
from types import ModuleType

from etils import epath

from mixjax.atlas import shards
from mixjax.jobs.mixtures import named_mixture
from mixjax.jobs.workdir import write_whole
from mixjax.recipes.exporters import (
  energon,
  hugging_face,
  levanter,
  llava_next,
  maxtext,
  olmix,
  streaming,
)
from mixjax.recipes.exporters import sources as sources_lib

TRAINERS: dict[str, ModuleType] = {
  "maxtext": maxtext,
  "energon": energon,
  "streaming": streaming,
  "llava_next": llava_next,
  "hugging_face": hugging_face,
  "levanter": levanter,
}


def main(config: dict, workdir: str) -> None:
  """The job as the front door calls it: leaves the trainer's file and FILE.about.json.

  Raises ValueError for an unknown `to`, and what the exporters raise.
  """
  folder = epath.Path(workdir)
  if config["to"] == "olmix":
    if not config["study"]:
      raise ValueError("to=olmix exports a study: give study=RUN/study")
    left_out = olmix.export(config["study"], folder)
    print(f"export: {folder / 'ratios.csv'} and metrics.csv, {len(left_out)} trials left out")
    return
  if config["to"] not in TRAINERS:
    raise ValueError(f"to={config['to']!r} is none of {', '.join((*TRAINERS, 'olmix'))}")
  if not (config["recipe"] and config["cells"]):
    raise ValueError(
      "configs/export.py needs recipe=FILE, as configs/search.py leaves it, and cells=DIR, the "
      "folder atlas/cells of the same run"
    )
  trainer = TRAINERS[config["to"]]
  samples = config["samples"] or None
  sources_lib.check_samples(samples)
  cells = config["cells"] if "://" in config["cells"] else os.path.abspath(config["cells"])
  manifest = shards.read_manifest(cells)
  rows = {cell: entry["rows"] for cell, entry in manifest["cells"].items()}
  found = sources_lib.sources(
    named_mixture(config["recipe"], rows),
    manifest,
    config["path"] or trainer.PATH,
    folder=cells,
    extra_tokens=config["extra_tokens"],
  )
  options = {"strategy": config["strategy"]} if trainer is llava_next else {}
  export = trainer.export(found, samples, **options)
  used = {source.cell for source in found}
  about = {
    "to": config["to"],
    "unit": trainer.UNIT,
    "weights": export.weights,
    "samples_weights": {source.cell: source.weight for source in found},
    "epochs": {s.cell: round(s.epochs(samples), 4) for s in found} if samples else None,
    "left_out": [cell for cell in rows if cell not in used],
    "notes": list(export.notes),
    "cells_sha256": manifest["sha256"],
  }
  write_whole(folder / trainer.FILE, export.text)
  write_whole(folder / f"{trainer.FILE}.about.json", json.dumps(about, indent=1) + "\n")
  print(f"export: {folder / trainer.FILE}, {len(found)} cells of {len(rows)} as {trainer.UNIT}")
  for note in export.notes:
    print(f"  {note}")
