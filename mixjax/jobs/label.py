"""The label job: a labeller over every picture of a corpus, in parts that outlive a kill."""

import json
from collections.abc import Iterator
from typing import NamedTuple

from etils import epath

from mixjax.corpus.corpus import Corpus
from mixjax.corpus.example import IMAGE, Example
from mixjax.corpus.labellers.labeller import Answer, Labeller
from mixjax.corpus.readers import Fault, reading
from mixjax.jobs.workdir import claim, write_whole
from mixjax.progress import Reporter

PART = 256  # pictures labelled between two files


class Picture(NamedTuple):
  """A picture of the corpus under its name there."""

  name: str
  data: bytes
  domain: str


def main(config: dict, workdir: str) -> None:
  """The job as the front door calls it: leaves labels.json, refused.jsonl and provenance.json."""
  folder = claim(workdir, config)
  stated = {name: config[name] for name in ("split", "images") if config[name]}
  corpus = Corpus(epath.Path(config["corpus"]), reading.load(config["reading"], **stated))
  reporter, faults = Reporter(), list[Fault]()
  run(make(config), corpus.examples(faults.append), folder, reporter, copy=config["copy"])
  if faults:
    reporter.say(f"{len(faults)} rows cannot be used, the first {faults[0]}: lint lists them")
  reporter.close()


def make(config: dict) -> Labeller:
  """The labeller of a config. Raises ValueError for an unknown one and one not installed."""
  if config["labeller"] == "ocr":
    from mixjax.corpus.labellers.ocr import Ocr

    try:
      return Ocr(config["confidence"])
    except ImportError as error:
      raise ValueError(str(error)) from error
  if config["labeller"] == "vlm":
    from mixjax.corpus.labellers.vlm import Vlm

    names = ("task", "tokenizer", "batch", "new_tokens")
    return Vlm(config["model"], **{name: config[name] for name in names})
  raise ValueError(f"labeller {config['labeller']!r} is neither ocr nor vlm")


def run(
  labeller: Labeller,
  examples: Iterator[Example],
  folder: epath.PathLike,
  reporter: Reporter,
  *,
  copy: bool = False,
  part_size: int = PART,
) -> dict:
  """Labels each picture once, in the order of the corpus; returns what provenance.json holds.

  A part that is there is kept. A row's "label" is the labeller's name, which readers put into
  `Example.label`; its image has the name that it has in the corpus, so that it falls under the same
  concept as the corpus's own rows of it.

  Raises ValueError if the folder holds the answers of another labeller or of other pictures.
  """
  folder = epath.Path(folder)
  about = {"provenance": dict(labeller.provenance), "part_size": part_size}
  _begin(folder / "provenance.json", about)
  reporter.stage(f"label {labeller.task}")
  parts = []
  for number, pictures in enumerate(_parts(examples, part_size)):
    path = folder / "parts" / f"{number:06d}.json"
    if copy:
      for picture in pictures:
        _copy(folder, picture)
    if path.exists():
      _check(path, pictures)
    else:
      write_whole(path, json.dumps(_label(labeller, pictures), ensure_ascii=False))
    parts.append(path)
    reporter.advance(len(pictures))
  counts = _join(folder, parts)
  write_whole(folder / "provenance.json", json.dumps(about | counts, indent=1))
  reporter.say(
    f"{counts['rows']} rows by {labeller.name} in {folder / 'labels.json'}, "
    f"{counts['refused']} pictures refused: {folder / 'refused.jsonl'}"
  )
  return about | counts


def _begin(path: epath.Path, about: dict) -> None:
  if path.exists():
    old = json.loads(path.read_text())
    for name, value in about.items():
      if old[name] != value:
        raise ValueError(
          f"{path.parent} holds the answers of another labeller: {name} was {old[name]}, it is "
          f"{value}; use another --workdir"
        )
  else:
    write_whole(path, json.dumps(about, indent=1))


def _parts(examples: Iterator[Example], size: int) -> Iterator[list[Picture]]:
  seen: set[str] = set()
  part: list[Picture] = []
  for example in examples:
    for name, data in zip(example.image_keys, example.images, strict=True):
      if name not in seen:
        seen.add(name)
        part.append(Picture(name, data, example.domain))
        if len(part) == size:
          yield part
          part = []
  if part:
    yield part


def _label(labeller: Labeller, pictures: list[Picture]) -> dict:
  rows, refused = [], []
  found = labeller.label([picture.data for picture in pictures])
  for (name, _, domain), answer in zip(pictures, found, strict=True):
    if not isinstance(answer, Answer):
      refused.append({"image": name, "task": labeller.task, "reason": answer.reason})
      continue
    row = {
      "id": f"{name}#{labeller.task}",
      "image": name,
      "task": labeller.task,
      "label": labeller.name,
      "conversations": [
        {"from": "human", "value": f"{IMAGE}\n{labeller.prompt}"},
        {"from": "gpt", "value": answer.text},
      ],
    }
    rows.append(row | ({"domain": domain} if domain else {}))
  return {"pictures": [p.name for p in pictures], "rows": rows, "refused": refused}


def _check(path: epath.Path, pictures: list[Picture]) -> None:
  if json.loads(path.read_text())["pictures"] != [p.name for p in pictures]:
    raise ValueError(
      f"{path} labels other pictures than the corpus now has there: the corpus has changed, use "
      "another --workdir"
    )


def _copy(folder: epath.Path, picture: Picture) -> None:
  name, data, _ = picture
  path = folder / name
  if epath.Path(name).is_absolute() or ".." in epath.Path(name).parts:
    raise ValueError(f"picture {name!r} lies outside of its corpus: label it without copy")
  if data and not path.exists():
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f".{path.name}.partial"  # or a kill would leave half a picture for good
    partial.write_bytes(data)
    partial.replace(path)


def _join(folder: epath.Path, parts: list[epath.Path]) -> dict:
  """Writes labels.json and refused.jsonl whole, a part in memory at a time."""
  counts = dict(pictures=0, rows=0, refused=0)
  labels, refused = folder / ".labels.json.partial", folder / ".refused.jsonl.partial"
  with labels.open("w") as kept, refused.open("w") as left:
    kept.write("[")
    for path in parts:
      part = json.loads(path.read_text())
      for row in part["rows"]:
        kept.write((",\n" if counts["rows"] else "\n") + json.dumps(row, ensure_ascii=False))
        counts["rows"] += 1
      for line in part["refused"]:
        left.write(json.dumps(line, ensure_ascii=False) + "\n")
      counts["pictures"] += len(part["pictures"])
      counts["refused"] += len(part["refused"])
    kept.write("\n]\n")
  labels.replace(folder / "labels.json")
  refused.replace(folder / "refused.jsonl")
  return counts
