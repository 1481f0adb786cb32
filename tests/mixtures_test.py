"""Mixtures that configs name: one, or stages of them, and what a run keeps and says of its own."""

import io
import json

import pytest

from configs import train as train_config
from mixjax.data import supply
from mixjax.data.stages import Stages
from mixjax.jobs import mixtures
from mixjax.progress import Reporter

ROWS = {"maps/vqa": 30, "maps/ocr": 10, "charts/vqa": 60}
EVEN = {"maps/vqa": 0.5, "maps/ocr": 0.0, "charts/vqa": 0.5}
OCR = {"maps/vqa": 0.0, "maps/ocr": 1.0, "charts/vqa": 0.0}


@pytest.fixture
def write(tmp_path):
  def write(name, content):
    (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return str(tmp_path / name)

  return write


def staged(*stages):
  return {"stages": [{"step": step, "mixture": mixture} for step, mixture in stages]}


def test_stages_name_weights_files_and_mixtures_of_all_cells(write):
  write("early.json", {"mixture": {"maps/ocr": 1.0}})
  write("recipe.json", {"format": 1, "weights": {"maps/vqa": 0.5, "charts/vqa": 0.5}})
  listed = staged((0, "early.json"), (20, "recipe.json"), (30, "natural"), (40, {"maps/ocr": 1.0}))
  found = mixtures.named_stages(write("stages.json", listed), ROWS)
  natural = {"maps/vqa": 0.3, "maps/ocr": 0.1, "charts/vqa": 0.6}
  assert found == {0: OCR, 20: EVEN, 30: natural, 40: OCR}


def test_one_mixture_is_a_run_of_one_stage(write):
  path = write("mixture.json", {"maps/ocr": 1.0})
  assert mixtures.named_stages(path, ROWS) == {0: OCR}
  assert mixtures.named_stages("uniform", ROWS) == {0: mixtures.named_mixture("uniform", ROWS)}


def test_what_a_run_kept_is_read_to_the_bit(write, tmp_path):
  stages = Stages.of(EVEN).then(77, OCR)
  mixtures.keep(tmp_path, stages)
  assert mixtures.named_stages(str(tmp_path / "stages.json"), ROWS) == stages
  mixtures.check_kept(tmp_path, stages)
  with pytest.raises(ValueError, match="of a run of other stages"):
    mixtures.check_kept(tmp_path, Stages.of(EVEN).then(78, OCR))


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (staged((5, EVEN)), "no stage begins at step 0"),
    (staged(), "no stage begins at step 0"),
    (staged((0, EVEN), (9, OCR), (9, EVEN)), "has the step 9; steps are"),
    (staged((0, EVEN), (9, OCR), (4, EVEN)), "has the step 4; steps are"),
    (staged((0, EVEN), ("9", OCR)), "has the step '9'"),
    ({"stages": [{"step": 0}]}, "the stage of step 0 has no mixture"),
    ({"stages": {"0": EVEN}}, "no list of objects"),
    (staged((0, EVEN), (9, {"maps/oce": 1.0})), "from step 9 on: no cell is called 'maps/oce'"),
    (staged((0, EVEN), (9, ["maps/ocr"])), r"from step 9 on: weights are \{cell: weight\}"),
    (
      staged((0, EVEN), (9, {"maps/ocr": "1"})),
      "from step 9 on: the weight of cell 'maps/ocr' is '1'",
    ),
    (staged((0, EVEN), (9, "none.json")), "from step 9 on: mixture .*none.json"),
    (staged((0, EVEN), (True, OCR)), "has the step True"),
    ({"stages": [{"start": 0, "weights": EVEN}]}, "is no list of stages as"),
    ({"format": 1, "stages": [{"start": 0.0, "weights": EVEN}]}, "starts at 0.0: samples"),
  ],
)
def test_what_is_wrong_with_a_list_is_named(write, content, message):
  with pytest.raises(ValueError, match=message):
    mixtures.named_stages(write("stages.json", content), ROWS)


def test_where_one_mixture_is_wanted_stages_are_refused(write):
  with pytest.raises(ValueError, match=r"stages\.json lists stages, and this takes one"):
    mixtures.named_mixture(write("stages.json", staged((0, EVEN))), ROWS)


def test_stages_and_cells_that_run_out_are_said_with_their_steps():
  plan = supply.plan(Stages.of(EVEN).then(32, OCR), ROWS, 64, {"maps/ocr": 2.0}, "repeat")
  described = mixtures.describe(plan, lambda sample: sample // 8 if sample < 64 else None)
  assert described == {
    "stages": [{"start": 0, "step": 0}, {"start": 32, "step": 4}],
    "run_out": {"maps/ocr": {"sample": 52, "step": 6}},
  }
  stream = io.StringIO()
  mixtures.say(Reporter(stream), plan, described, "repeat")
  assert stream.getvalue().splitlines() == [
    "2 stages:",
    "  from sample 0 (step 0): 50.0% maps/vqa, 50.0% charts/vqa",
    "  from sample 32 (step 4): 100.0% maps/ocr",
    "  maps/ocr runs out at sample 52 (step 6) and is read on",
  ]


def test_both_forms_of_the_config_take_them():
  arg = "mixture=stages.json,repetition=4,exhausted=redistribute"
  for config in (
    train_config.get_config(f"atlas=a,{arg}"),
    train_config.get_config(f"pixels,model=m,cells=c,{arg}"),
  ):
    assert (config.mixture, config.repetition, config.exhausted) == (
      "stages.json",
      4.0,
      "redistribute",
    )
