"""Labels that labellers make: what is read, what is refused, and what is left after a kill."""

import dataclasses
import difflib
import importlib
import io
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from PIL import Image, ImageDraw, ImageFont

from mixjax.corpus import readers, tasks
from mixjax.corpus.example import Example
from mixjax.corpus.gallery import documents
from mixjax.corpus.labellers import boxes
from mixjax.corpus.labellers.labeller import Answer, Refusal, opened
from mixjax.corpus.labellers.ocr import SLIMMEST, Ocr, padded, raster_order
from mixjax.corpus.labellers.vlm import Vlm, digest
from mixjax.data import encode, tiles
from mixjax.jobs import label
from mixjax.models import clip as clip_lib
from mixjax.models import hf
from mixjax.models.llava import Llava, LlavaConfig
from mixjax.models.llava_next import LlavaNext, LlavaNextConfig
from mixjax.progress import Reporter

STANDINS = "mixjax/standins"
TOKENIZER = f"{STANDINS}/tokenizer"


def png(image):
  file = io.BytesIO()
  image.save(file, "PNG")
  return file.getvalue()


def picture(height, width, seed=0):
  pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
  return png(Image.fromarray(pixels))


# ---- boxes ----


@pytest.mark.parametrize(
  ("text", "wrong"),
  [
    ("cup <1><2><3><4>; tea pot <0><0><15><15>", ""),
    ("a cup <1><2><1><2> and a pot", ""),
    ("a cup", "no box at all"),
    ("cup <1><2><3>", "is 3 numbers, not the 4 of a box"),
    ("cup <1><2><3><4><5>", "is 5 numbers"),
    ("cup <1><2><16><4>", "leaves the picture"),
    ("cup <1><-2><6><4>", "leaves the picture"),
    ("cup <5><2><3><4>", "ends before it begins"),
    ("cup <1><4><3><2>", "ends before it begins"),
    ("cup <1><2><3><4>; <1><2><3><4>", "has no words before it"),
  ],
)
def test_boxes_that_are_none_are_told(text, wrong):
  assert (boxes.problem(text) == "") if not wrong else (wrong in boxes.problem(text))


def test_what_the_gallery_writes_is_well_formed():
  text = f"cup {tasks.write_box((0.1, 0.2, 0.3, 0.99))}; pot {tasks.write_box((0, 0, 1, 1))}"
  assert boxes.problem(text) == "" and len(tasks.read_boxes(text)) == 2


# ---- OCR ----


def test_snippets_come_in_raster_order():
  def box(x, y, width=30, height=10):
    return [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]

  # Two lines, the first a little askew, then one of small letters.
  corners = np.array([box(50, 4), box(5, 0), box(60, 21), box(0, 20), box(0, 33, height=4)], float)
  assert raster_order(corners) == [1, 0, 3, 2, 4]


@pytest.mark.parametrize("size", [(1, 300), (3000, 1), (40, 10), (7, 9)])
def test_a_strip_is_padded_and_stays_in_the_middle(size):
  pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
  wide = padded(Image.fromarray(pixels))
  assert max(wide.size) == max(size) and max(wide.size) <= SLIMMEST * min(wide.size)
  left, top = ((a - b) // 2 for a, b in zip(wide.size, size, strict=True))
  inside = np.asarray(wide)[top : top + size[1], left : left + size[0]]
  assert np.array_equal(inside, pixels)


@pytest.fixture(scope="module")
def ocr():
  pytest.importorskip("rapidocr", reason="pip install -r requirements-labellers.txt")
  return Ocr(threads=1)


def drawn(*lines, size=18):
  image = Image.new("RGB", (220, 12 + 30 * len(lines)), "white")
  for i, line in enumerate(lines):
    font = ImageFont.load_default(size)
    ImageDraw.Draw(image).text((8, 6 + 30 * i), line, fill="black", font=font)
  return png(image)


def test_text_is_read_and_its_absence_said(ocr):
  found = ocr.label([drawn("milk 3 bread 12", "Total: $45.20"), drawn(), b"", b"no picture"])
  assert found[:2] == [Answer("milk 3 bread 12 Total: $45.20"), Answer(tasks.NO_TEXT)]
  assert found[2] == Refusal("the picture cannot be read: zero bytes: the file is missing or empty")
  assert "cannot be read" in found[3].reason


def test_ocr_says_what_its_answers_depend_on(ocr):
  assert ocr.name == f"rapidocr {ocr.provenance['versions']['rapidocr']}"
  assert any("rec" in name for name in ocr.provenance["models"])
  assert "/" not in json.dumps(ocr.provenance)  # no path


def test_without_the_engine_one_line_says_how_to_get_it(monkeypatch):
  monkeypatch.setitem(sys.modules, "rapidocr", None)
  with pytest.raises(ValueError, match=r"pip install -r requirements-labellers\.txt"):
    label.make({"labeller": "ocr", "confidence": 0.5})


# ---- models ----


def save(kind, folder):
  """A tiny checkpoint with random weights, for the gallery's tokenizer."""
  image = encode.Encoder(encode.load_tokenizer(TOKENIZER)).image_id
  text = dataclasses.replace(tiny.TEXT, vocab_size=1024)
  if kind is Llava:
    model = Llava(LlavaConfig(text, tiny.VISION, image), rngs=nnx.Rngs(0))
    hf.save_llava(model, folder)
  else:
    pinpoints = ((28, 56), (56, 28), (56, 56))
    config = LlavaNextConfig(text, tiny.VISION, image, pinpoints=pinpoints)
    hf.save_llava_next(LlavaNext(config, rngs=nnx.Rngs(0)), folder)
  return folder


@pytest.fixture(scope="module")
def standin():
  return Vlm(f"{STANDINS}/target", tasks.OCR, TOKENIZER, batch=4, new_tokens=12)


def test_the_stand_in_reads_documents_and_a_batch_is_filled_up(standin):
  sources = [s for s in documents.DOMAIN.sources() if s.startswith("list")][:5]
  rng = np.random.default_rng(0)
  shown = [documents.DOMAIN.render(source, rng, False) for source in sources]
  images = [png(Image.fromarray(p.image)) for p in shown]
  found = standin.label([images[0], b"", *images[1:]])  # five pictures are two batches
  assert found.pop(1) == Refusal(
    "the picture cannot be read: zero bytes: the file is missing or empty"
  )
  said = [answer.text for answer in found]
  alike = [
    difflib.SequenceMatcher(None, text, picture.text).ratio()
    for text, picture in zip(said, shown, strict=True)
  ]
  assert np.mean(alike) > 0.7, (said, [p.text for p in shown])


def test_answers_that_are_none_are_refused(standin):
  def judged(text, task, end=True):
    ids = standin._encoder.tokenizer(text)["input_ids"] + [standin._encoder.end_id] * end
    labeller = object.__new__(Vlm)
    labeller.__dict__ |= vars(standin) | {"task": task}
    return labeller._judge(np.array(ids))

  assert judged("a cup", tasks.CAPTION) == Answer("a cup")
  assert "did not end within 12 tokens" in judged("a cup", tasks.CAPTION, end=False).reason
  assert judged("", tasks.CAPTION) == Refusal("the answer is empty")
  good = "cup <1><2><3><4>"
  assert judged(good, tasks.DETECTION) == Answer(good)
  assert "ends before it begins, in 'cup" in judged("cup <9><2><3><4>", tasks.GROUNDED).reason
  assert judged("cup <9><2><3><4>", tasks.OCR) == Answer("cup <9><2><3><4>")


def test_a_model_says_what_its_answers_depend_on(standin, tmp_path):
  whole = digest(f"{STANDINS}/target", ("config.json", "*.safetensors"))
  assert standin.provenance["checkpoint_sha256"] == whole and whole[:12] in standin.name
  with pytest.raises(ValueError, match="'vqa' has no instruction; caption, ocr, grounded"):
    Vlm(f"{STANDINS}/target", tasks.VQA, TOKENIZER)
  with pytest.raises(ValueError, match="holds a clip; a labeller is a llava or a llava_next"):
    Vlm(f"{STANDINS}/clip", tasks.OCR, TOKENIZER)
  with pytest.raises(FileNotFoundError, match=r"has no tokenizer\.json"):
    digest(tmp_path, ("tokenizer.json",))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Llava, LlavaNext])
def test_greedy_answers_are_those_of_transformers(kind, tmp_path):
  """In a batch of several sizes, against one picture at a time there."""
  torch = pytest.importorskip("torch")
  import transformers

  folder = save(kind, tmp_path / "model")
  labeller = Vlm(folder, tasks.CAPTION, TOKENIZER, batch=3, new_tokens=8)
  pictures = [
    opened(picture(*size, seed)) for seed, size in enumerate(((40, 90), (70, 30), (9, 9)))
  ]
  with jax.default_matmul_precision("highest"):
    ours = labeller._decode(pictures)
  config, encoder = labeller._model.config, labeller._encoder
  if kind is Llava:
    reference = transformers.LlavaForConditionalGeneration.from_pretrained(folder)
    resized = [tiles.resized(image, (28, 28))[None] for image in pictures]
    counts = [config.vision.num_patches] * 3
  else:
    reference = transformers.LlavaNextForConditionalGeneration.from_pretrained(folder)
    resized = [tiles.cut(image, config.anyres) for image in pictures]
    counts = [config.anyres.num_tokens(tiles.size_of(image)) for image in pictures]
  before, after = labeller._frame
  for row, image in enumerate(pictures):
    ids = torch.tensor([[*before, *[encoder.image_id] * counts[row], *after]])
    pixels = clip_lib.preprocess(jnp.asarray(resized[row]))
    pixels = torch.tensor(np.asarray(pixels)).permute(0, 3, 1, 2)
    shown = {"pixel_values": pixels}
    if kind is LlavaNext:
      shown = {"pixel_values": pixels[None], "image_sizes": torch.tensor([tiles.size_of(image)])}
    theirs = reference.generate(
      input_ids=ids,
      attention_mask=torch.ones_like(ids),
      max_new_tokens=8,
      do_sample=False,
      eos_token_id=encoder.end_id,
      pad_token_id=encoder.end_id,
      **shown,
    )[0, ids.shape[1] :].tolist()
    assert ours[row].tolist()[: len(theirs)] == theirs
  assert len({tuple(row) for row in ours.tolist()}) > 1  # what they say depends on the picture


# ---- the job ----


class Lengths:
  """Answers with the number of bytes; refuses odd ones. Dies before the picture `dies_at`."""

  name, task, prompt = "lengths 1", tasks.CAPTION, tasks.PROMPTS[tasks.CAPTION]

  def __init__(self, dies_at=None, version=1):
    self.seen, self._dies_at, self.provenance = 0, dies_at, {"version": version}

  def label(self, images):
    if self._dies_at is not None and self.seen + len(images) > self._dies_at:
      raise KeyboardInterrupt
    self.seen += len(images)
    sizes = [len(data) for data in images]
    return [Refusal(f"{n} is odd") if n % 2 else Answer(f"{n} bytes") for n in sizes]


def corpus(count=10):
  """Two rows a picture, of which the i-th has i bytes; every row after the first shows two."""
  for i in range(1, count + 1):
    single = Example.single(f"r{i}", f"pics/{i}.png", b"x" * i, tasks.VQA, "?", "!", domain="toys")
    yield single
    both = dict(image_keys=(f"pics/{i}.png", "pics/1.png"), images=(b"x" * i, b"x"))
    yield dataclasses.replace(single, key=f"s{i}", **both)


def run(folder, labeller, examples=None, **more):
  examples = corpus() if examples is None else examples
  return label.run(labeller, examples, folder, Reporter(io.StringIO()), part_size=4, **more)


def test_every_picture_is_labelled_once(tmp_path):
  labeller = Lengths()
  counts = run(tmp_path, labeller)
  assert labeller.seen == counts["pictures"] == 10 and counts["rows"] == counts["refused"] == 5
  rows = json.loads((tmp_path / "labels.json").read_text())
  assert [row["image"] for row in rows] == [f"pics/{i}.png" for i in (2, 4, 6, 8, 10)]
  assert rows[0]["label"] == "lengths 1" and rows[0]["domain"] == "toys"
  ledger = [json.loads(line) for line in (tmp_path / "refused.jsonl").read_text().splitlines()]
  assert ledger[1] == {"image": "pics/3.png", "task": "caption", "reason": "3 is odd"}


def test_a_kill_costs_a_part_at_most_and_changes_nothing(tmp_path):
  run(tmp_path / "whole", Lengths())
  with pytest.raises(KeyboardInterrupt):
    run(tmp_path / "killed", Lengths(dies_at=9))
  assert not (tmp_path / "killed" / "labels.json").exists()
  again = Lengths()
  run(tmp_path / "killed", again)
  assert again.seen == 2  # the first eight were there
  for name in ("labels.json", "refused.jsonl", "provenance.json"):
    assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_answers_of_another_labeller_or_corpus_are_not_mixed(tmp_path):
  run(tmp_path, Lengths())
  with pytest.raises(ValueError, match=r"another labeller: provenance was .*use another --workdir"):
    run(tmp_path, Lengths(version=2))
  changed = (e for e in corpus() if e.key not in ("r2", "s2"))
  with pytest.raises(ValueError, match="the corpus has changed"):
    run(tmp_path, Lengths(), changed)


def test_the_rows_are_a_corpus(tmp_path):
  run(tmp_path, Lengths(), copy=True)
  found = list(readers.read(tmp_path / "labels.json"))
  assert [len(example.image) for example in found] == [2, 4, 6, 8, 10]
  assert found[0].task == tasks.CAPTION and found[0].prompt == tasks.PROMPTS[tasks.CAPTION]
  assert found[0].answer == "2 bytes" and found[0].image_key == "pics/2.png"
  outside = Example.single("r", "../pic.png", b"xx", tasks.VQA, "?", "!")
  with pytest.raises(ValueError, match="lies outside of its corpus"):
    run(tmp_path / "other", Lengths(), iter([outside]), copy=True)


def test_the_door(tmp_path):
  config = importlib.import_module("configs.label").get_config
  with pytest.raises(ValueError, match="needs corpus=FILE"):
    config()
  with pytest.raises(ValueError, match="'human' is neither ocr nor vlm"):
    label.make(config("corpus=x.json,labeller=human").to_dict())
  with pytest.raises(ValueError, match="labeller=vlm needs model=FOLDER, a LLaVA"):
    config(f"corpus={tmp_path / 'train.json'},labeller=vlm,task=detection")
  (tmp_path / "card.json").write_text('{"mislabelled": {}}')  # as beside the gallery's files
  vlm = config(f"corpus={tmp_path / 'train.json'},labeller=vlm").to_dict()
  assert vlm["model"] == f"{STANDINS}/proxy" and vlm["tokenizer"] == TOKENIZER
  assert config("corpus=x.json,labeller=ocr").to_dict()["model"] == ""
  vlm = config("corpus=x.json,labeller=vlm,model=proxy").to_dict()
  assert vlm["model"] == f"{STANDINS}/proxy" and vlm["tokenizer"] == TOKENIZER
