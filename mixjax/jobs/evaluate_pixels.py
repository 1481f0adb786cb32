"""The evaluate job of a real model: a Hugging Face folder's scores on questions, from pixels."""

import dataclasses
import json

import jax
from etils import epath

from mixjax.data.encode import load_tokenizer
from mixjax.evals import benchmarks, examine
from mixjax.evals.asked import Asker, ends_of, template_of
from mixjax.jobs.pretrained import Pretrained
from mixjax.jobs.train_pixels import make_mesh
from mixjax.jobs.workdir import claim, write_whole
from mixjax.models import layers
from mixjax.progress import Reporter


def main(config: dict, workdir: str) -> None:
  """The job as the front door calls it: leaves scores.json, and answers.jsonl with each answer."""
  layers.check_running(None, dtype=config["dtype"])
  questions = benchmarks.read(epath.Path(config["questions"]) / f"{config['split']}.json")
  tokenizer = load_tokenizer(config["tokenizer"] or config["model"])
  pretrained = Pretrained(config["model"])
  model = pretrained.config(tokenizer, dtype=config["dtype"])
  asker = Asker(tokenizer, model.anyres, template_of(config["model"], tokenizer))
  reporter = Reporter()
  reporter.stage("read pictures")
  asked = asker.ask(questions, config["questions"])
  mesh = make_mesh(config["tensor"])
  folder = claim(workdir, config)  # a config that cannot run has claimed nothing
  ends = ends_of(config["model"], tokenizer)
  with jax.set_mesh(mesh):
    reporter.stage("load")
    loaded = pretrained.load(model, seed=0)
    examiner = examine.Examiner(loaded, asker, ends, config["batch"])
    reporter.stage("evaluate", examine.work(questions))
    results = examine.examine(examiner, questions, asked, config["new_tokens"], reporter.advance)
  lines = [json.dumps(dataclasses.asdict(one), ensure_ascii=False) for one in results]
  write_whole(folder / "answers.jsonl", "\n".join(lines) + "\n")
  found = examine.scores(results)
  write_whole(folder / "scores.json", json.dumps(found, indent=1))
  for name, entry in found.items():
    reporter.say(
      f"  {name:12} {entry['metric']:6.2f} +- {entry['metric_stderr']:.2f}   "
      f"answer likelihood {entry['score']:6.2f}   n={entry['n']}"
    )
  reporter.close()
