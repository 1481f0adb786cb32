"""Questions files: the gallery's as they always were, a user's own, and what is wrong with one."""

import dataclasses
import json

import pytest
from PIL import Image

from configs.search import get_config
from mixjax.atlas.parts import Origin
from mixjax.data.encode import Encoder, load_tokenizer
from mixjax.evals import benchmarks
from mixjax.evals.evaluate import answer_prior, check_fits
from mixjax.jobs import atlas as atlas_job
from mixjax.jobs.embedding import embed_corpus
from mixjax.jobs.search_config import parse
from mixjax.progress import Reporter
from mixjax.search.records import fingerprint

INVOICE = {
  "id": "i1", "benchmark": "invoices", "image": "a.png", "prompt": "What is the total?",
  "answer": "12.50", "metric": "relaxed accuracy",
}  # fmt: skip
PART = {
  "id": "p1", "benchmark": "parts", "image": "a.png", "prompt": "Which part is it?",
  "answer": "bolt", "choices": ["nut", "bolt"], "metric": "multiple choice",
}  # fmt: skip
CHART = {"id": "c1", "benchmark": "charts", "image": "a.png", "prompt": "How many?", "answer": "3"}


def written(folder, validation, benchmark=None):
  """A folder of questions; ids may repeat over the splits."""
  folder.mkdir(exist_ok=True)
  Image.new("RGB", (8, 8)).save(folder / "a.png")
  (folder / "validation.json").write_text(json.dumps(validation))
  (folder / "benchmark.json").write_text(json.dumps(validation if benchmark is None else benchmark))
  return folder


def test_the_gallerys_questions_are_read_as_they_always_were(tmp_path):
  records = [
    {
      "id": f"{name}/0", "benchmark": name, "image": "a.png", "prompt": "What?",
      "answer": "<2><2><9><9>", "choices": ["<2><2><9><9>", "b"], "domain": "emoji",
    }
    for name in benchmarks.BENCHMARKS
  ]  # fmt: skip
  questions = benchmarks.read(written(tmp_path, records[::-1]) / "validation.json")
  for record, question in zip(records[::-1], questions, strict=True):
    kept = dataclasses.asdict(question)
    assert kept.pop("metric") == benchmarks.BENCHMARKS[question.benchmark].metric
    assert kept | {"choices": list(question.choices)} == record
  # Scores stand in the order that they always had, whatever that of the file.
  assert list(benchmarks.metrics_of(questions)) == list(benchmarks.BENCHMARKS)
  assert list(answer_prior(questions)) == list(benchmarks.BENCHMARKS)


def test_the_gallerys_search_has_the_fingerprint_that_it_had():
  config = parse(get_config().to_dict() | {"objective": {"maths": 1.0, "charts": 3.0}})
  study = {"budget": dataclasses.asdict(config.proxy), "seed": config.seed}
  assert fingerprint(study) == "2adece9ce2cdcacb"
  assert config.benchmarks == tuple(benchmarks.BENCHMARKS)
  assert config.weights.tolist() == [0, 0, 0, 0, 0.75, 0, 0, 0.25, 0, 0]


def test_own_benchmarks_are_the_names_in_the_files_in_one_order_for_both(tmp_path):
  folder = written(tmp_path, [PART, CHART, INVOICE], [INVOICE, CHART, PART, PART])
  asked = benchmarks.read_splits(folder)
  assert [len(asked[split]) for split in benchmarks.SPLITS] == [3, 4]
  for questions in asked.values():
    scored = benchmarks.metrics_of(questions)
    assert list(scored) == ["charts", "invoices", "parts"]  # the gallery's first
    assert list(scored.values()) == ["exact match", "relaxed accuracy", "multiple choice"]
  told = benchmarks.read(written(tmp_path, [CHART | {"metric": "ANLS"}]) / "validation.json")
  assert benchmarks.metrics_of(told) == {"charts": "ANLS"}


@pytest.mark.parametrize(
  ("records", "message"),
  [
    ([INVOICE | {"metric": ""}], "question i1: .*'invoices' is none of .* give one of exact match"),
    ([INVOICE | {"metric": "F1"}], "question i1: its metric is 'F1': it is one of exact match, mu"),
    (
      [INVOICE, INVOICE | {"id": "i2", "metric": "ANLS"}],
      "'invoices' has two metrics, 'relaxed accuracy' in question i1 and 'ANLS' in i2",
    ),
    ([CHART, CHART | {"id": "c2", "metric": "ANLS"}], "'charts' has two metrics, 'exact match'"),
    ([PART | {"choices": []}], "question p1: .*answer is 'bolt' and it gives none: give choices"),
    ([PART | {"choices": ["nut"]}], "question p1: .* it has .'nut'.: give choices, the answer am"),
    ([PART | {"choices": "nut"}], "question p1: choices is 'nut', not a list"),
    ([PART | {"choices": ["bolt", 3]}], "question p1: choices holds 3, which is no text: put it"),
    ([INVOICE | {"answer": 12.5}], "question i1: answer holds 12.5, which is no text: put it in"),
    ([INVOICE | {"metrics": "ANLS"}], "question i1: metrics means nothing: a question is .*metric"),
    ([{"id": "x", "prompt": "?"}], "question x: it lacks benchmark, image, answer"),
    ([INVOICE, "what?"], "question 1: it is 'what.', not an object of .id, benchmark"),
    (
      [INVOICE | {"metric": "IoU accuracy"}],
      "question i1: its answer '12.50' holds no box: ",
    ),
    (
      [INVOICE | {"benchmark": "average"}],
      "question i1: .* called 'average': give it another",
    ),
    ([], "holds no questions: it is a JSON list of"),
    ({"questions": []}, "holds no questions: it is a JSON list of"),
  ],
)
def test_what_is_wrong_is_said_of_the_question_with_the_remedy(tmp_path, records, message):
  with pytest.raises(ValueError, match=message):
    benchmarks.read(written(tmp_path, records) / "validation.json")


@pytest.mark.parametrize(
  ("validation", "benchmark", "message"),
  [
    ([INVOICE], [INVOICE, PART], "validation.json has no question of benchmark 'parts'"),
    ([INVOICE, PART], [INVOICE], "benchmark.json has no question of benchmark 'parts'"),
    ([CHART], [CHART | {"metric": "ANLS"}], "'charts' is scored by 'exact match' in validation.js"),
    ([INVOICE | {"image": "b.png"}], None, "question i1 asks about b.png, which is not in"),
  ],
)
def test_both_splits_ask_for_the_same_about_pictures_that_are_there(
  tmp_path, validation, benchmark, message
):
  with pytest.raises(ValueError, match=message):
    benchmarks.read_splits(written(tmp_path, validation, benchmark))


def test_what_is_no_file_and_no_json_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"no questions at .*: a JSON list of .id, benchmark"):
    benchmarks.read(tmp_path / "validation.json")
  (tmp_path / "validation.json").write_text("[{")
  with pytest.raises(ValueError, match=r"validation.json is no JSON"):
    benchmarks.read(tmp_path / "validation.json")


def test_a_question_or_a_choice_that_does_not_fit_is_named():
  tokenizer = load_tokenizer(atlas_job.STANDINS / "tokenizer")
  encoder = Encoder(tokenizer, image_tokens=4, text_length=24, truncate=True)
  fits = benchmarks.Question("q", "b", "a.png", "What?", "a", ("a", "b"), "", benchmarks.CHOICE)
  check_fits(encoder, [fits])
  for change in (dict(prompt="What? " * 20), dict(choices=("a", "b " * 20))):
    long = dataclasses.replace(fits, id="long", **change)
    with pytest.raises(ValueError, match=r"row 'long' .* raise text_length"):
      check_fits(encoder, [fits, long])


def own(folder, **changes):
  config = get_config(f"tiny,corpus=train.json,questions={folder}").to_dict()
  return config | changes


def test_weights_follow_the_names_in_the_files(tmp_path):
  folder = written(tmp_path, [PART, INVOICE])
  assert parse(own(folder)).benchmarks == ("invoices", "parts")
  config = parse(own(folder, objective={"parts": 1.0, "invoices": 3.0}))
  assert config.weights.tolist() == [0.75, 0.25]
  with pytest.raises(ValueError, match=r"\['charts'\], .*; known are invoices, parts"):
    _ = parse(own(folder, objective={"charts": 1.0})).weights
  with pytest.raises(ValueError, match="needs questions=FOLDER"):
    _ = parse(own("", objective={"charts": 1.0})).weights


def test_questions_that_would_be_ignored_are_refused(tmp_path):
  config = atlas_job.AtlasConfig(questions=str(tmp_path))
  with pytest.raises(ValueError, match="the gallery brings its own questions"):
    atlas_job.run(config, tmp_path / "w", Reporter())


def test_questions_that_changed_since_they_were_embedded_are_refused(tmp_path):
  folder = written(tmp_path / "q", [PART])
  made = tmp_path / "atlas"
  (made / "questions").mkdir(parents=True)
  origin = Origin("corpus", "tower")
  index = {"corpus_sha256": origin.corpus, "encoder": origin.encoder}
  (made / "embedded.json").write_text(json.dumps(index))
  for split in benchmarks.SPLITS:
    kept = (folder / f"{split}.json").read_text()
    (made / "questions" / f"{split}.json").write_text(kept)
  written(folder, [PART], [PART, PART])
  with pytest.raises(ValueError, match=r"made from other questions: .*benchmark.json has cha"):
    embed_corpus(None, origin, None, made, Reporter(), folder)
