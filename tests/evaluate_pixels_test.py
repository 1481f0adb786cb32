"""The evaluate job of a real model, beside transformers on the same folder and questions."""

import dataclasses
import json
import os
import pathlib
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from tiny import CONFIG

from configs import evaluate as evaluate_config
from mixjax.data import encode
from mixjax.evals import asked, examine
from mixjax.evals.benchmarks import ANLS, BENCHMARKS, CHOICE, IOU
from mixjax.jobs import evaluate_pixels
from mixjax.jobs.pretrained import Pretrained
from mixjax.models import hf
from mixjax.models import mesh as mesh_lib
from mixjax.models.llava_next import LlavaNext

MODEL = dataclasses.replace(CONFIG, pinpoints=((28, 56), (56, 28), (56, 56), (84, 28)))
SIZES = ((28, 56), (61, 30), (57, 53), (90, 9), (20, 20))  # height, width
NEW, ENDS_TOO = 8, "z"  # the model says it often
GOLDEN = pathlib.Path(__file__).parent / "golden" / "evaluate_pixels.json"
PROMPTS = ("What is this?", "How many small things are there in it?")


def question(name, number):
  """One of a benchmark, about a picture of odd size."""
  metric = BENCHMARKS[name].metric
  answer = {CHOICE: "a thing", IOU: "<3><10><9><12>", ANLS: "small things"}.get(metric, "12")
  return {
    "id": f"{name}-{number}",
    "benchmark": name,
    "image": f"images/{number % len(SIZES)}.png",
    "prompt": PROMPTS[number % 2],
    "answer": answer,
    "choices": ["What", "a thing", "small is it"] if metric == CHOICE else [],
    "domain": "noise",
  }


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
  """The folder of benchmark.json and its pictures."""
  folder = tmp_path_factory.mktemp("questions")
  write_questions(folder)
  return folder


def write_questions(folder):
  (folder / "images").mkdir()
  for number, (height, width) in enumerate(SIZES):
    noise = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(noise).save(folder / f"images/{number}.png")
  every = [question(name, number) for number, name in enumerate(BENCHMARKS)]
  (folder / "benchmark.json").write_text(json.dumps(every))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  """A folder as configs/train.py:pixels leaves it, where a word ends an answer too."""
  frame, folder = (tmp_path_factory.mktemp(name) for name in ("frame", "model"))
  write_model(frame, folder)
  return folder


def write_model(frame, folder):
  words = "What is this? A small thing. How many small things are there in it?"
  tokenizer = encode.train_tokenizer([words] * 3, 400, frame)
  (frame / "config.json").write_text(json.dumps(MODEL.to_hf()))
  ends = tokenizer.convert_tokens_to_ids([encode.END, ENDS_TOO])
  (frame / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
  Pretrained(str(frame)).lay_out(MODEL, tokenizer, frame / "out")
  graph, like = nnx.split(nnx.eval_shape(lambda: LlavaNext(MODEL, rngs=nnx.Rngs(0))))
  chance = np.random.default_rng(0)

  def drawn(path, leaf):
    noise = 0.15 * chance.standard_normal(leaf.shape, np.float32)
    return jnp.asarray(noise + mesh_lib.dotted(path).endswith("scale"))

  params = jax.tree_util.tree_map_with_path(drawn, like)
  hf.save_llava_next(nnx.merge(graph, params), folder, source=frame / "out")


def config_of(source, questions, **options):
  options = dict(model=source, questions=questions, new_tokens=NEW, dtype="float32") | options
  arg = ",".join(["pixels", *(f"{name}={value}" for name, value in options.items())])
  return evaluate_config.get_config(arg).to_dict()


def evaluated(source, questions, folder, **options):
  """(scores, answers by id) of the job."""
  evaluate_pixels.main(config_of(source, questions, **options), str(folder))
  answers = [json.loads(line) for line in (folder / "answers.jsonl").open()]
  return json.loads((folder / "scores.json").read_text()), {one["id"]: one for one in answers}


def transformers_says(source, questions):
  """Its greedy answer to each question, and the NLL a token of each answer and choice."""
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  processor = transformers.AutoProcessor.from_pretrained(source)
  kind = transformers.LlavaNextForConditionalGeneration
  model = kind.from_pretrained(source, attn_implementation="eager").eval()
  found = {}
  for record in json.loads((questions / "benchmark.json").read_text()):
    parts = [{"type": "image"}, {"type": "text", "text": record["prompt"]}]
    text = processor.apply_chat_template(
      [{"role": "user", "content": parts}], add_generation_prompt=True
    )
    image = Image.open(questions / record["image"])
    inputs = processor(images=image, text=text, return_tensors="pt")
    length = inputs["input_ids"].shape[1]
    with torch.no_grad():
      said = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)[0, length:]
      nll = {}
      for candidate in {record["answer"], *record["choices"]}:
        ids = processor.tokenizer(f"{candidate}<|im_end|>", return_tensors="pt").input_ids
        row = torch.cat([inputs["input_ids"], ids], axis=1)
        images = {name: inputs[name] for name in ("pixel_values", "image_sizes")}
        logits = model(input_ids=row, attention_mask=torch.ones_like(row), **images).logits
        shares = torch.log_softmax(logits[0, length - 1 : -1], axis=-1)
        nll[candidate] = -float(shares.gather(1, ids.T).mean())
    said = [token for token in said.tolist() if token not in model.generation_config.eos_token_id]
    said = processor.tokenizer.decode(said, skip_special_tokens=True).strip()
    found[record["id"]] = {"said": said, "nll": nll, "tokens": length}
  return found


def assert_parity(answers, reference, questions):
  for record in json.loads((questions / "benchmark.json").read_text()):
    ours, theirs = answers[record["id"]], reference[record["id"]]
    assert ours["nll"] == pytest.approx(theirs["nll"][record["answer"]], abs=1e-5), ours
    wanted = min(record["choices"], key=theirs["nll"].get) if record["choices"] else theirs["said"]
    assert ours["said"] == wanted, ours


def test_answers_and_likelihoods_are_those_of_transformers(
  source, questions, tmp_path, monkeypatch
):
  """On one device, in two batches of two lengths, beside the golden."""
  monkeypatch.setattr(evaluate_pixels, "make_mesh", lambda tensor: mesh_lib.make_mesh(1, 1))
  scores, answers = evaluated(source, questions, tmp_path, batch=16)
  assert_parity(answers, json.loads(GOLDEN.read_text()), questions)
  assert list(scores) == list(BENCHMARKS)
  for key, one in answers.items():
    found = scores[one["benchmark"]]
    assert found["score"] == pytest.approx(100 * np.exp(-one["nll"])) and found["n"] == 1, key
    assert found["metric"] == 100 * one["metric"] and found["stderr"] == 0


@pytest.mark.slow
def test_on_a_mesh_they_are_the_same(source, questions, tmp_path):
  _, answers = evaluated(source, questions, tmp_path, batch=6, tensor=2)  # 8, as 4 chips divide
  assert_parity(answers, json.loads(GOLDEN.read_text()), questions)


@pytest.mark.slow
def test_the_golden_is_what_transformers_says(source, questions):
  """With MIXJAX_GOLDEN=write it is written anew."""
  found = transformers_says(source, questions)
  if os.environ.get("MIXJAX_GOLDEN") == "write":
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
  golden = json.loads(GOLDEN.read_text())
  assert golden.keys() == found.keys()
  for key, one in golden.items():
    assert (one["said"], one["tokens"]) == (found[key]["said"], found[key]["tokens"]), key
    assert one["nll"] == pytest.approx(found[key]["nll"], abs=1e-5), key


def test_a_broken_picture_is_named_with_all_others_that_are_wrong(source, questions, tmp_path):
  shutil.copytree(questions, tmp_path / "questions")
  every = json.loads((questions / "benchmark.json").read_text())
  torn = tmp_path / "questions" / every[1]["image"]
  torn.write_bytes(torn.read_bytes()[:400])
  every[3]["image"] = "images/nowhere.png"
  every[4]["prompt"] = "<image> What is this?"
  (tmp_path / "questions" / "benchmark.json").write_text(json.dumps(every))
  with pytest.raises(ValueError) as raised:
    evaluated(source, tmp_path / "questions", tmp_path / "out")
  message = str(raised.value)
  assert re.search(r"scenes-1: .*images/1.png: truncated", message)
  assert "images/nowhere.png: No such file" in message
  assert "charts-4: a text holds <image>, which is reserved" in message
  assert not (tmp_path / "out").exists()  # nothing is claimed, and nothing was loaded


def test_questions_are_asked_in_the_template_of_the_folder(source, tmp_path):
  tokenizer = encode.load_tokenizer(source)
  ours = asked.Asker(tokenizer, MODEL.anyres, asked.template_of(source, tokenizer)).framed("Why?")
  assert ours == "<|im_start|>user\n<image>\nWhy?<|im_end|>\n<|im_start|>assistant\n"
  spoken = "{% for m in messages %}{{ 'Q: ' + m['content'] + '\\nA: ' }}{% endfor %}"
  (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": spoken}))
  template = asked.template_of(tmp_path, tokenizer)
  framed = asked.Asker(tokenizer, MODEL.anyres, template).framed("Why?")
  assert framed == "Q: <image>\nWhy?\nA: "
  with pytest.raises(ValueError, match="does not place <image> once before the prompt 'Why"):
    asked.Asker(tokenizer, MODEL.anyres, "Hello.").framed("Why?")
  assert asked.ends_of(tmp_path, tokenizer) == (2,)
  assert asked.ends_of(source, tokenizer) == (2, tokenizer.convert_tokens_to_ids(ENDS_TOO))


def test_lengths_have_few_programs_and_little_padding():
  lengths = np.arange(17, 4000)
  rooms = np.array([examine.room(int(length)) for length in lengths])
  assert np.all(rooms >= lengths) and np.all(rooms <= 1.25 * lengths)
  assert len(np.unique(rooms)) <= 32


def test_what_is_missing_is_asked_for():
  with pytest.raises(ValueError, match="needs questions=DIR, the folder of"):
    evaluate_config.get_config("pixels,model=here")
  with pytest.raises(ValueError, match="needs atlas=DIR"):
    evaluate_config.get_config("run=here")


def test_a_benchmarks_scores_are_means_over_its_questions():
  answered = [
    examine.Answered("1", "maps", "7", nll, exact, metric)
    for nll, exact, metric in ((0.5, True, 1.0), (2.0, False, 0.0), (1.0, False, 1.0))
  ]
  found = examine.scores(answered)["maps"]
  likely = np.exp([-0.5, -2.0, -1.0])
  wanted = dict(
    score=100 * likely.mean(),
    stderr=100 * likely.std(ddof=1) / np.sqrt(3),
    n=3,
    nll=3.5 / 3,
    exact=100 / 3,
    metric=200 / 3,
    metric_stderr=100 * np.std([1, 0, 1], ddof=1) / np.sqrt(3),
  )
  assert found == pytest.approx(wanted)
