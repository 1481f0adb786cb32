"""Labels every picture of a corpus for one task: rows for the cells of that task, made, not found.

  python -m mixjax.main --config=configs/label.py:corpus=train.json,labeller=ocr --workdir=OUT
  python -m mixjax.main \
    --config=configs/label.py:corpus=train.json,labeller=vlm,task=detection,model=DIR --workdir=OUT

The first needs requirements-labellers.txt, and about a second a picture on one core.
OUT/labels.json is a LLaVA json with a row a picture; refused.jsonl says which pictures got none,
and why, and provenance.json what the rows depend on. The same command goes on where it was stopped.
"""

import json

from etils import epath
from ml_collections import ConfigDict

from configs.common import parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
  """`labeller`: ocr, or vlm with the folder of a LLaVA or LLaVA-NeXT checkpoint as `model`.

  Only the gallery itself is labelled by its own small model where none is named; model=proxy and
  model=target name its two. `task`: caption, ocr, grounded or detection, for vlm. `tokenizer`:
  where the checkpoint has none.
  `confidence`: of the text that ocr keeps. `reading`, `split`, `images`: as in configs/atlas.py.
  `copy`: the labelled pictures go into OUT as well, for a corpus that holds them inside its files;
  otherwise rows name them as the corpus does, to be read with images=FOLDER of the corpus.
  """
  args = parse_arg(
    arg,
    corpus="",
    reading="",
    split="",
    images="",
    labeller="ocr",
    task="caption",
    model="",
    tokenizer="",
    confidence=0.5,
    batch=32,
    new_tokens=256,
    copy=False,
  )
  if not args["corpus"]:
    raise ValueError("configs/label.py needs corpus=FILE, whose pictures are to be labelled")
  if args["labeller"] == "vlm" and not args["model"]:
    if not of_gallery(epath.Path(args["corpus"])):
      raise ValueError(
        "labeller=vlm needs model=FOLDER, a LLaVA or LLaVA-NeXT checkpoint: the gallery's own, "
        "model=proxy and model=target, know the gallery's pictures alone"
      )
    args["model"] = "proxy"
  if args["model"] in ("proxy", "target"):
    args["tokenizer"] = args["tokenizer"] or "mixjax/standins/tokenizer"
    args["model"] = f"mixjax/standins/{args['model']}"
  return ConfigDict(args | dict(job="label"))


def of_gallery(corpus: epath.Path) -> bool:
  """Whether a corpus lies beside the card that the gallery's files have."""
  card = corpus.parent / "card.json"
  return card.exists() and "mislabelled" in json.loads(card.read_text())
