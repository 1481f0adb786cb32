"""The lint job: what a corpus holds and what is wrong with it, as lint.json and one page.

    parts of the corpus ─► processes ─► surveys, added up in order ─► lint.json, lint.html

It stops at no record, and the same corpus gives the same report whatever the number of workers.
"""

import dataclasses
import json
import time

from etils import epath

from mixjax.corpus import readers
from mixjax.corpus.corpus import CLASSIFIER, Corpus
from mixjax.corpus.lint import lookalike, report, survey
from mixjax.corpus.parallel import ordered_map
from mixjax.corpus.readers import reading as reading_lib
from mixjax.jobs.workdir import write_whole
from mixjax.progress import Reporter
from mixjax.recipes import lint_page


@dataclasses.dataclass(frozen=True)
class LintConfig:
  """corpus: any that the readers know; questions: a folder of pictures that must not be in it.

  reading: a YAML file with what the corpus cannot say about itself; split, images: for two of its
  fields, that file or none. labels: who gives a task to rows without one; "classifier" first reads
  the corpus once to learn from those that have one.
  """

  corpus: str
  questions: str = ""
  reading: str = ""
  split: str = ""
  images: str = ""
  labels: str = "rules"
  bound: int = lookalike.BOUND
  workers: int = 2

  def __post_init__(self):
    if self.corpus in ("", "gallery"):
      raise ValueError("lint needs corpus=PATH: the gallery is written by this code, and whole")


def main(config: dict, workdir: str) -> None:
  """The job as the front door calls it."""
  reporter = Reporter()
  run(LintConfig(**{k: v for k, v in config.items() if k != "job"}), workdir, reporter)
  reporter.close()


def run(config: LintConfig, workdir: epath.PathLike, reporter: Reporter) -> dict:
  """Writes `workdir/lint.json` and `workdir/lint.html`; returns what the first holds."""
  began = time.time()
  reading = reading_lib.load(
    config.reading, **{k: v for k in ("split", "images") if (v := getattr(config, k))}
  )
  kind = readers.detect(config.corpus)
  forbidden = None
  if config.questions:
    reporter.stage("benchmark pictures")
    forbidden = report.benchmark(epath.Path(config.questions))
  corpus = Corpus(epath.Path(config.corpus), reading, config.labels, config.workers)
  if config.labels == CLASSIFIER:
    reporter.stage("learning tasks")
  parts, label = list(readers.parts(config.corpus, reading)), corpus.label
  total = survey.Survey()
  reporter.stage("lint", total=len(parts))
  surveyor = survey.Surveyor(reading, label)
  for one in ordered_map(surveyor, parts, config.workers):
    total.add(one)
    reporter.advance(note=f"rows={total.rows}")
  reporter.stage("duplicates")
  found = {"corpus": str(config.corpus), "kind": kind, "parts": len(parts)}
  found |= report.report(total, config.labels, corpus.accuracy, forbidden, config.bound)
  found["seconds"] = round(time.time() - began, 1)
  workdir = epath.Path(workdir)
  write_whole(workdir / "lint.json", json.dumps(found, indent=1))
  write_whole(workdir / "lint.html", lint_page.render(found, total.shown))
  broken = sum(entry["count"] for entry in found["broken"].values())
  reporter.say(
    f"lint: {total.usable} of {total.rows} rows can be used, {broken} faults: {workdir}/lint.html"
  )
  return found
