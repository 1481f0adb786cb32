import importlib
import pathlib

import pytest

from configs.common import parse_arg
from mixjax.jobs import search_config, standins


def test_arguments_take_the_type_of_their_default():
  values = parse_arg("full,samples=12,rate=0.5", full=False, samples=1, rate=1.0, name="x")
  assert values == {"full": True, "samples": 12, "rate": 0.5, "name": "x"}


@pytest.mark.parametrize(
  ("arg", "message"),
  [
    ("sampels=3", "unknown config argument 'sampels'; known: full, samples"),
    ("samples=many", "is not of type int"),
    ("full=maybe", "true or false"),
  ],
)
def test_a_typo_is_named(arg, message):
  with pytest.raises(ValueError, match=message):
    parse_arg(arg, samples=1, full=False)


@pytest.mark.parametrize("arg", [None, "full", "tiny"])
def test_the_search_config_becomes_dataclasses(arg):
  config = importlib.import_module("configs.search").get_config(arg)
  assert search_config.parse(config.to_dict()).headline in config.axes


def test_the_standins_config_becomes_dataclasses():
  parsed = standins.parse(importlib.import_module("configs.standins").get_config("tiny").to_dict())
  assert parsed.target.hidden_size > parsed.proxy.hidden_size


def test_every_config_opens_with_its_command():
  for path in pathlib.Path("configs").glob("*.py"):
    if path.stem not in ("common", "__init__"):
      assert f"--config=configs/{path.name}" in path.read_text().split('"""')[1], path


def test_a_search_reads_a_corpus_as_the_atlas_does():
  arg = "corpus=a.json,questions=q,images=p,split=val,labels=classifier,concepts=20,reading=r.yaml"
  of = {
    job: importlib.import_module(f"configs.{job}").get_config(arg) for job in ("atlas", "search")
  }
  parsed = search_config.parse(of["search"].to_dict()).atlas
  for name in ("corpus", "questions", "images", "split", "labels", "concepts", "reading"):
    assert getattr(parsed, name) == of["atlas"][name]
