import json

import pytest

from mixjax.corpus import readers


def write(folder, rows):
  (folder / "a.png").write_bytes(b"png bytes")
  path = folder / "train.json"
  path.write_text(json.dumps(rows))
  return path


def row(**changes):
  said = [{"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": "a cat"}]
  return {"id": 7, "image": "a.png", "conversations": said} | changes


def test_reads_a_llava_row(tmp_path):
  (example,) = readers.llava(write(tmp_path, [row()]))
  assert (example.key, example.prompt, example.answer) == ("7", "What is this?", "a cat")
  assert (example.task, example.image, example.image_key) == ("vqa", b"png bytes", "a.png")


def test_the_task_follows_from_the_field_or_the_instruction(tmp_path):
  said = [
    {"from": "human", "value": "<image>\nDetect all objects."},
    {"from": "gpt", "value": "cat"},
  ]
  path = write(tmp_path, [row(task="ocr"), row(conversations=said)])
  assert [e.task for e in readers.llava(path)] == ["ocr", "detection"]


def test_a_missing_image_is_an_empty_one(tmp_path):
  (example,) = readers.llava(write(tmp_path, [row(image="gone.png")]))
  assert example.image == b""


@pytest.mark.parametrize("broken", [{"conversations": []}, {"image": None, "conversations": 3}])
def test_a_malformed_row_is_named(tmp_path, broken):
  with pytest.raises(ValueError, match="row 1 is not a LLaVA row"):
    list(readers.llava(write(tmp_path, [row(), row(**broken)])))


def test_an_unknown_task_is_named_with_the_known_ones(tmp_path):
  with pytest.raises(ValueError, match=r"task 'chat'; known: caption, ocr"):
    list(readers.llava(write(tmp_path, [row(task="chat")])))


def test_a_missing_corpus_says_what_to_give(tmp_path):
  with pytest.raises(FileNotFoundError, match="give the path of a LLaVA json"):
    list(readers.llava(tmp_path / "none.json"))
