"""Reads a corpus, embeds it, clusters it into named concepts and writes the cells.

  python -m mixjax.main --config=configs/atlas.py --workdir=RUN
  python -m mixjax.main --config=configs/atlas.py:corpus=train.json,questions=DIR --workdir=RUN
  python -m mixjax.main --config=configs/atlas.py:corpus=train.json,lint --workdir=RUN
  python -m mixjax.main --config=configs/atlas.py:corpus=new.json,apply=RUN --workdir=NEW
  python -m mixjax.main --config=configs/atlas.py:corpus=new.json,apply=RUN,beam=DirectRunner \
      --config.beam.options="--direct_num_workers=2 --direct_running_mode=multi_processing" \
      --workdir=NEW

The first takes the gallery and about a minute; the second a corpus of your own: a LLaVA json or
jsonl, a LLaVA-NeXT list, parquet, WebDataset, Energon or TFDS. The third builds nothing, but writes
lint.json and lint.html: what the corpus holds, and what is wrong with it. The fourth builds no
atlas either: it places a new corpus in a finished one and writes drift.json; with source=NAME its
rows are added to the cells of RUN. The last has Apache Beam's workers do so and write cells of the
new corpus, in the environment of requirements-beam.txt: docs/corpora.md.
Afterwards RUN/atlas/atlas.json holds the names: edit them there, before any search.
"""

from ml_collections import ConfigDict

from configs.common import parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
  """`checkpoints`: a folder with tokenizer/ and clip/; empty takes the gallery's stand-ins.

  `text_length`: tokens of a row beside its picture's; longer answers are cut, and rows whose
  prompt alone is longer give way to others of their cell. Both are counted.
  `choose`: numbers of concepts to compare before, as in choose=10/20/50: RUN/atlas/choose.json.
  `reading`: a YAML file with what the corpus cannot say about itself (split, images, fields,
  tasks); `split` and `images` (the folder that image paths are relative to) may also be given here.
  `labels`: who gives a task to rows without one, rules or classifier. To lint, `questions` is any
  folder of pictures that must not be in the corpus.
  """
  args = parse_arg(
    arg,
    corpus="gallery",
    questions="",
    checkpoints="",
    concepts=10,
    seed=0,
    tiny=False,
    text_length=48,
    choose="",
    apply="",
    source="",
    beam="",
    lint=False,
    reading="",
    split="",
    images="",
    labels="rules",
  )
  tiny = args.pop("tiny")
  described = ("corpus", "reading", "split", "images", "labels")
  if args["lint"]:
    kept = (*described, "questions")
    return ConfigDict({name: args[name] for name in kept} | dict(job="lint", workers=2))
  if args["apply"]:
    kept = (*described, "apply", "checkpoints", "seed", "source")
    config = ConfigDict({name: args[name] for name in kept} | dict(job="apply"))
    if args["beam"]:
      config.job = "beam"
      config.beam = dict(runner=args["beam"], options="", shards=0)
    return config
  if args["beam"]:
    raise ValueError("beam= goes with apply=RUN: workers place a corpus in an atlas that is there")
  del args["lint"], args["apply"], args["source"], args["beam"]
  return ConfigDict(
    args
    | dict(
      job="atlas", gallery_scale=0.05 if tiny else 1.0, per_benchmark=8 if tiny else 150, workers=2
    )
  )
