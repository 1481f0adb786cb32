"""Corpora as the other side writes them: by `datasets`, by `webdataset`, for Energon, by TFDS."""

import io
import json
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds
import yaml
from PIL import Image

from mixjax.corpus import readers
from mixjax.corpus.example import Example, Turn
from mixjax.corpus.readers.energon import expand
from mixjax.corpus.readers.reading import Reading

GOLDEN = pathlib.Path(__file__).parent / "golden"


def png(gray, side=6):
  out = io.BytesIO()
  Image.new("L", (side, side), gray).save(out, "PNG")
  return out.getvalue()


def seen(example):
  """What the row says, without the names that its pictures were given."""
  return example.key, example.task, example.turns, example.images


# ---- parquet ----


@pytest.fixture(scope="module")
def datasets():
  return pytest.importorskip("datasets", reason="pip install datasets==5.2.0")


def test_llava_onevision_written_by_datasets(tmp_path, datasets):
  said = [
    [{"from": "human", "value": "<image>\nWho?"}, {"from": "gpt", "value": "Ann"}],
    [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}],
    [{"from": "human", "value": "<image>\nAgain?"}, {"from": "gpt", "value": "Ann"}],
  ]
  table = {
    "id": ["a", "b", "c"],
    "image": [{"bytes": png(1), "path": "x.png"}, None, {"bytes": png(1), "path": None}],
    "conversations": said,
    "data_source": ["ocr_set", "text", "vqa"],
  }
  features = datasets.Features(
    {
      "id": datasets.Value("string"),
      "image": datasets.Image(),
      "conversations": [{"from": datasets.Value("string"), "value": datasets.Value("string")}],
      "data_source": datasets.Value("string"),
    }
  )
  rows = datasets.Dataset.from_dict(table, features=features)
  for name in ("train-00001-of-00002", "train-00000-of-00002", "validation-00000-of-00001"):
    rows.to_parquet(tmp_path / "sub" / f"{name}.parquet", batch_size=2)
  found = list(readers.read(tmp_path, Reading(tasks={"ocr_set": "ocr"})))
  assert len(found) == 6  # two shards of train, no validation
  first, text, again = found[:3]
  assert seen(first) == ("sub/a", "ocr", (Turn("Who?", "Ann"),), (png(1),))
  assert (text.images, text.turns) == ((), (Turn("2 + 2?", "4"),))
  assert first.image_key == again.image_key  # the same picture, whatever its path
  assert [e.key for e in readers.read(tmp_path, Reading(split="validation"))] == [
    "sub/a", "sub/b", "sub/c"
  ]  # fmt: skip
  with pytest.raises(ValueError, match="no split 'dev'; it has train, validation"):
    list(readers.read(tmp_path, Reading(split="dev")))


def test_finevision_and_cauldron_written_by_datasets(tmp_path, datasets):
  texts = [
    [{"user": "Who?", "assistant": "Ann", "source": "s"}],
    [{"user": "Left?", "assistant": "a", "source": "s"}, {"user": "Right?", "assistant": "b",
     "source": "s"}],
  ]  # fmt: skip
  images = [[png(1)], [png(2), png(3)]]
  features = datasets.Features(
    {
      "images": datasets.Sequence(datasets.Image()),
      "texts": [{n: datasets.Value("string") for n in texts[0][0]}],
    }
  )
  table = {"images": [[{"bytes": i, "path": None} for i in row] for row in images], "texts": texts}
  datasets.Dataset.from_dict(table, features=features).to_parquet(tmp_path / "part.parquet")
  one, two = readers.read(tmp_path / "part.parquet", Reading(tasks={"s": "ocr"}))
  assert seen(one) == ("part.parquet:0", "ocr", (Turn("Who?", "Ann"),), (png(1),))
  assert two.turns == (Turn("Left?", "a"), Turn("Right?", "b"))
  assert two.images == (png(2), png(3))


def test_parquet_with_faults(tmp_path):
  raw = pa.array([b"caf\xe9", b"cafe"], pa.binary())
  answers = pa.StringArray.from_buffers(2, *raw.buffers()[1:])  # as a careless writer leaves it
  table = pa.table({"question": ["Who?", "What?"], "answer": answers, "image": [png(1), png(2)]})
  pq.write_table(table, tmp_path / "a.parquet")
  (tmp_path / "b.parquet").write_bytes(b"PAR1 no more")
  faults = []
  (good,) = readers.read(tmp_path, on_fault=faults.append)
  assert (good.turns, good.images) == ((Turn("What?", "cafe"),), (png(2),))
  assert [(f.where, f.kind) for f in faults] == [
    ("a.parquet, row 0", "bad UTF-8"), ("b.parquet", "malformed row")
  ]  # fmt: skip


def test_what_to_parquet_did_not_write(tmp_path, datasets):
  datasets.Dataset.from_dict({"a": [1]}).save_to_disk(tmp_path / "saved")
  with pytest.raises(ValueError, match="written by save_to_disk: write it by to_parquet"):
    readers.detect(tmp_path / "saved")


# ---- tars ----


@pytest.fixture(scope="module")
def write_tar():
  wds = pytest.importorskip("webdataset", reason="pip install webdataset==1.0.2")

  def write(path, *samples):
    path.parent.mkdir(parents=True, exist_ok=True)
    with wds.TarWriter(str(path)) as out:
      for sample in samples:
        out.write(sample)

  return write


def test_webdataset(tmp_path, write_tar):
  talk = {"conversations": [{"from": "human", "value": "<image>\nA <image>?"}, {"from": "gpt",
          "value": "b"}], "image": "long/gone.jpg"}  # fmt: skip
  many = {f"img{i}.png": png(i) for i in range(11)}
  write_tar(tmp_path / "x-001.tar", {"__key__": "d/0", "png": png(7), "txt": "eine Katze"})
  write_tar(
    tmp_path / "x-000.tar",
    {"__key__": "0", "1.png": png(1), "2.png": png(2), "json": talk},
    {"__key__": "1", "json": {"question": "2 + 2?", "answer": "4", "id": "math"}},
    {"__key__": "2", "json": [{"role": "user", "content": "All?"}, {"role": "assistant",
     "content": "yes"}], **many},
  )  # fmt: skip
  pair, text, series, caption = readers.read(tmp_path)
  assert seen(pair) == ("0", "vqa", (Turn("<image>\nA <image>?", "b"),), (png(1), png(2)))
  assert seen(text) == ("math", "vqa", (Turn("2 + 2?", "4"),), ())
  assert series.images == tuple(png(i) for i in range(11))
  prompt = "Describe this image in detail."
  assert seen(caption) == ("d/0", "caption", (Turn(prompt, "eine Katze"),), (png(7),))
  assert caption.label == "data"
  assert list(readers.read(tmp_path, workers=2)) == [pair, text, series, caption]


def test_tars_with_faults(tmp_path, write_tar):
  good = {"__key__": "a", "png": png(1), "txt": "one"}
  write_tar(
    tmp_path / "0.tar",
    good,
    {"__key__": "b", "png": png(2), "json": b"{"},
    {"__key__": "c", "png": png(3), "txt": b"caf\xe9"},
    {"__key__": "d", "png": png(4)},
    good | {"__key__": "e"},
  )
  write_tar(tmp_path / "1.tar", good | {"__key__": "f"}, good | {"__key__": "g"})
  whole = (tmp_path / "1.tar").read_bytes()
  (tmp_path / "1.tar").write_bytes(whole[:5640])  # within g's picture
  (tmp_path / "2.tar").write_bytes(whole[:6144])  # after it: nothing tells but the missing end
  (tmp_path / "3.tar").write_bytes(b"no tar")
  faults = []
  assert [e.key for e in readers.read(tmp_path, on_fault=faults.append)] == ["a", "e", "f", "f"]
  assert [(f.where, f.kind) for f in faults] == [
    ("0, b", "malformed row"), ("0, c", "bad UTF-8"), ("0, d", "malformed row"),
    ("1, from g", "malformed row"), ("2, from g", "malformed row"),
    ("3, from its beginning", "malformed row"),
  ]  # fmt: skip


# ---- Energon ----


def energon(folder, dataset, split=None):
  meta = folder / ".nv-meta"
  meta.mkdir(parents=True, exist_ok=True)
  (meta / "dataset.yaml").write_text(yaml.safe_dump(dataset))
  (meta / "split.yaml").write_text(
    yaml.safe_dump(split or {"split_parts": {"train": ["shards/0.tar"]}, "exclude": []})
  )
  counts = {"shard_counts": {"shards/0.tar": 2}}
  (meta / ".info.yaml").write_text(yaml.safe_dump(counts))
  return folder


def sample_type(name, field_map):
  named = {"__module__": "megatron.energon", "__class__": name}
  return {"sample_type": named} | ({"field_map": field_map} if field_map else {})


def test_energon_sample_types(tmp_path, write_tar):
  shard = tmp_path / "shards" / "0.tar"

  def turn(dataset, **sample):
    write_tar(shard, {"__key__": "k", "png": png(1)} | sample)
    (example,) = readers.read(energon(tmp_path, dataset))
    assert (example.key, example.images[:1]) == ("k", (png(1),)[: len(example.images)])
    return example.task, example.turns[0]

  captioning = sample_type("CaptioningSample", {"image": "png", "caption": "txt"})
  asked = "Describe this image in detail."
  assert turn(captioning, txt="a cat") == ("caption", (asked, "a cat"))
  vqa = {"image": "png,jpg", "context": "json[0][value]", "answers": "json[1][value]"}
  pretrain = [{"value": "<image>\nWho?"}, {"value": "Ann"}]
  assert turn(sample_type("VQASample", vqa), json=pretrain) == ("vqa", ("Who?", "Ann"))
  # Of several answers the most frequent.
  several = vqa | {"context": "json[q]", "answers": "json[a]"}
  several = turn(sample_type("VQASample", several), json={"q": "Who?", "a": ["Bo", "Al", "Al"]})
  assert several == ("vqa", ("Who?", "Al"))
  words = {"image": "png", "text": "txt", "words_boxes": "json[words]"}
  read_out = turn(sample_type("OCRSample", words), txt="STOP", json={"words": [[0, 0, 1, 1]]})
  assert read_out == ("ocr", ("What text appears in this image?", "STOP"))
  choice = {"image": "png", "context": "json[q]", "choices": "json[c]",
            "correct_choice_idx": "json[i]"}  # fmt: skip
  chosen = turn(
    sample_type("MultiChoiceVQASample", choice), json={"q": "?", "c": ["x", "y"], "i": 1}
  )
  assert chosen == ("vqa", ("?\nA. x\nB. y", "B"))
  # LLaVA-OneVision-1.5's, whose loader is a program.
  mixed = sample_type("MultiMixQASample", None) | {
    "sample_loader": "sample_loader.py:sample_loader"
  }
  texts = [{"role": "user", "content": "<image>\nWho?"}, {"role": "assistant", "content": "Ann"}]
  assert turn(mixed, json={"texts": texts, "media": "image", "name": ["png"]})[1] == ("Who?", "Ann")
  older = {"__module__": "megatron.energon", "__class__": "CaptioningWebdataset",
           "field_map": {"image": "png", "caption": "json[c]"}}  # fmt: skip
  assert turn(older, json={"c": "a dog"}) == ("caption", (asked, "a dog"))


def test_energon_splits_and_exclusions(tmp_path, write_tar):
  for shard in range(3):
    rows = [{"__key__": f"{shard}{i}", "png": png(i), "txt": "x"} for i in range(2)]
    write_tar(tmp_path / "shards" / f"{shard}.tar", *rows)
  dataset = sample_type("CaptioningSample", {"image": "png", "caption": "txt"})
  parts = {"train": ["shards/{0..1}.tar"], "val": ["shards/2.tar"]}
  split = {"split_parts": parts, "exclude": ["shards/0.tar/01", "shards/1.tar"]}
  folder = energon(tmp_path, dataset, split)
  assert [e.key for e in readers.read(folder)] == ["00"]
  assert [e.key for e in readers.read(folder, Reading(split="val"))] == ["20", "21"]
  with pytest.raises(ValueError, match="has no split 'test'; it has train, val"):
    list(readers.read(folder, Reading(split="test")))
  energon(tmp_path, dataset, {"split_parts": {"train": ["shards/9.tar"]}})
  with pytest.raises(FileNotFoundError, match=r"lists shards/9\.tar"):
    list(readers.read(folder))
  (tmp_path / ".nv-meta" / "split.yaml").unlink()
  with pytest.raises(FileNotFoundError, match=r"no split\.yaml and no split\.json: run `energon"):
    list(readers.read(folder))


def test_energon_rows_that_only_a_program_knows(tmp_path, write_tar):
  row = {"q": "Who?", "a": "Ann"}
  write_tar(tmp_path / "shards" / "0.tar", {"__key__": "k", "png": png(1), "json": row})
  crude = {"__module__": "megatron.energon", "__class__": "CrudeWebdataset"}
  with pytest.raises(ValueError, match="is crude: only a program says"):
    list(readers.read(energon(tmp_path, crude)))
  stated = Reading(fields={"image": "png", "prompt": "json[q]", "answer": "json[a]"})
  (example,) = readers.read(tmp_path, stated)
  assert seen(example) == ("k", "vqa", (Turn("Who?", "Ann"),), (png(1),))
  loader = sample_type("VQASample", None) | {"sample_loader": "sample_loader.py:sample_loader"}
  with pytest.raises(ValueError, match="a sample loader, which is a program and is not run"):
    list(readers.read(energon(tmp_path, loader)))
  with pytest.raises(ValueError, match="holds InterleavedSample; known: CaptioningSample"):
    list(readers.read(energon(tmp_path, sample_type("InterleavedSample", {"sequence": "json"}))))


def test_braces_expand_as_in_a_shell():
  assert expand("a{08..10}b{x,y}") == ["a08bx", "a08by", "a09bx", "a09by", "a10bx", "a10by"]
  assert expand("a{9..11}") == ["a9", "a10", "a11"]
  assert expand("plain") == ["plain"]


# ---- TFDS ----


class Asked(tfds.core.GeneratorBasedBuilder):
  """Written by TFDS itself, in ArrayRecord."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    text = tfds.features.Text()
    features = {
      "image": tfds.features.Image(shape=(None, None, 3)),
      "question": text,
      "answers": tfds.features.Sequence(text),
      "objects": tfds.features.Sequence({"bbox": tfds.features.BBoxFeature(), "name": text}),
    }
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

  def _split_generators(self, dl_manager):
    box = {"bbox": tfds.features.BBox(0.1, 0.2, 0.3, 0.4), "name": "cat"}
    rows = [
      (i, {"image": io.BytesIO(png(i)), "question": f"Où {i}?", "answers": ["là", "b", "là"],
           "objects": [box] * i}) for i in range(3)
    ]  # fmt: skip
    return {"train": rows, "test": rows[:1]}

  def _generate_examples(self):
    raise NotImplementedError("the splits are given whole")


def test_a_tfds_builder(tmp_path):
  builder = Asked(data_dir=tmp_path, file_format="array_record")
  builder.download_and_prepare()
  found = list(readers.read(builder.data_dir))
  rows = sorted((e.prompt, e.answer, e.images) for e in found)  # TFDS shuffles what it writes
  assert rows == [(f"Où {i}?", "là", (png(i),)) for i in range(3)]
  assert len({e.key for e in found}) == 3
  assert len(list(readers.read(builder.data_dir, Reading(split="test")))) == 1
  with pytest.raises(ValueError, match="no split 'dev'; it has test, train"):
    list(readers.read(builder.data_dir, Reading(split="dev")))


def test_tfrecord_without_tensorflow(tmp_path):
  folder = GOLDEN / "tfrecord"  # written by TFDS with TensorFlow: make_tfrecord.py
  rows = {e.key: e for e in readers.read(folder)}
  assert rows["row1"].turns == (Turn("Wo ist München 0?", "dort 0"),)
  assert rows["row2"].turns[1] == Turn("Wo ist München 1?", "dort 1")
  assert [len(rows[key].images) for key in ("row1", "row2")] == [1, 2]
  assert Image.open(io.BytesIO(rows["row2"].images[1])).getpixel((0, 0)) == (9, 9, 9)
  (tmp_path / "cut").mkdir()
  for file in folder.iterdir():
    data = file.read_bytes()
    (tmp_path / "cut" / file.name).write_bytes(data[:-9] if "tfrecord" in file.name else data)
  faults = []
  assert len(list(readers.read(tmp_path / "cut", on_fault=faults.append))) == 1
  assert [f.detail for f in faults] == ["the file ends within a record"]


def test_our_own_cells_are_a_tfds_folder(tmp_path):
  from mixjax.atlas import shards

  row = Example(
    "k",
    "ocr",
    (Turn("a <image>", "b"), Turn("c", "d")),
    ("one", "two"),
    (png(1), png(2)),
    "signs",
    label="rapidocr 3.4",
  )
  shards.write_cells([row], lambda e: "signs", tmp_path / "cells")
  (back,) = readers.read(tmp_path / "cells" / "signs" / "ocr" / "1.0.0")
  assert back == row


def test_json_of_ours_is_llavas(tmp_path):
  rows = [{"id": "x", "image": "a.png", "conversations": [{"from": "human", "value": "<image>\nq"},
          {"from": "gpt", "value": "a"}]}]  # fmt: skip
  (tmp_path / "a.png").write_bytes(png(3))
  (tmp_path / "t.json").write_text(json.dumps(rows))
  (example,) = readers.read(tmp_path / "t.json")
  assert seen(example) == ("x", "vqa", (Turn("q", "a"),), (png(3),))
