"""Reading corpora of json and YAML; what becomes of a row, and of one that is wrong."""

import json

import pytest
import yaml
from etils import epath

from mixjax.corpus import readers
from mixjax.corpus.corpus import Corpus
from mixjax.corpus.example import Turn
from mixjax.corpus.parallel import ordered_map, ordered_stream
from mixjax.corpus.readers import llava_json, reading
from mixjax.corpus.readers.reading import Reading


def said(*texts):
  return [
    {"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)
  ]  # fmt: skip


def row(**changes):
  return {
    "id": 7, "image": "a.png", "conversations": said("<image>\nWhat is this?", "a cat")
  } | changes  # fmt: skip


def write(folder, rows, name="train.json"):
  (folder / "a.png").write_bytes(b"png bytes")
  (folder / "b.png").write_bytes(b"more bytes")
  path = folder / name
  if name.endswith("l"):
    path.write_text("\n".join(json.dumps(r) for r in rows) + "\n")
  else:
    path.write_text(json.dumps(rows))
  return path


def one(folder, **changes):
  (example,) = readers.read(write(folder, [row(**changes)]))
  return example


@pytest.mark.parametrize("name", ["train.json", "train.jsonl"])
def test_reads_a_llava_row(tmp_path, name):
  (example,) = readers.read(write(tmp_path, [row()], name))
  assert (example.key, example.prompt, example.answer) == ("7", "What is this?", "a cat")
  assert (example.task, example.image, example.image_key) == ("vqa", b"png bytes", "a.png")


def test_several_turns_and_pictures_are_kept(tmp_path):
  turns = said("<image>\nBefore and <image> after?", "rain", "And then?", "snow")
  example = one(tmp_path, image=["a.png", "b.png"], conversations=turns)
  assert example.images == (b"png bytes", b"more bytes")
  assert example.image_keys == ("a.png", "b.png")
  first, second = example.turns
  assert first == Turn("<image>\nBefore and <image> after?", "rain")
  assert second == Turn("And then?", "snow")


def test_markers_before_everything_are_dropped_and_later_ones_kept(tmp_path):
  both = {"image": ["a.png", "b.png"]}
  leading = one(tmp_path, **both, conversations=said("<image> <image>\nDo they differ?", "yes"))
  assert leading.prompt == "Do they differ?"
  later = one(tmp_path, conversations=said("Hello.", "Hi.", "What is in <image>?", "a cat"))
  assert [t.prompt for t in later.turns] == ["Hello.", "What is in <image>?"]


def test_text_alone_has_no_pictures(tmp_path):
  bare = row(conversations=said("What is 2 + 2?", "4"))
  del bare["image"]
  (example,) = readers.read(write(tmp_path, [bare]))
  assert (example.images, example.image_keys, example.image_key) == ((), (), "")
  (example,) = readers.read(write(tmp_path, [bare | {"image": ""}]))
  assert example.image_keys == ()


def test_a_system_message_stands_before_the_first_prompt(tmp_path):
  turns = [{"from": "system", "value": "Be brief."}, *said("<image>Who?", "Ann")]
  assert one(tmp_path, conversations=turns).prompt.startswith("Be brief.")


def test_the_task_follows_from_the_field_the_source_or_the_instruction(tmp_path):
  detect = said("<image>\nDetect all objects.", "cat <0><0><3><3>")
  rows = [row(task="ocr"), row(source="docvqa"), row(conversations=detect), row(source="other")]
  found = readers.read(write(tmp_path, rows), Reading(tasks={"docvqa": "ocr"}))
  assert [(e.task, e.label) for e in found] == [
    ("ocr", "data"), ("ocr", "data"), ("detection", "rule"), ("vqa", "rule")
  ]  # fmt: skip


def test_image_paths_may_be_relative_to_another_folder(tmp_path):
  (tmp_path / "pictures").mkdir()
  (tmp_path / "pictures" / "c.png").write_bytes(b"elsewhere")
  path = write(tmp_path, [row(image="c.png")])
  (example,) = readers.read(path, Reading(images=str(tmp_path / "pictures")))
  assert example.image == b"elsewhere"


def test_a_missing_image_is_an_empty_one(tmp_path):
  assert one(tmp_path, image="gone.png").image == b""


FAULTS = {
  "no conversations": (row(conversations=None), "a row is known by one of: conversations"),
  "empty conversation": (row(conversations=[]), "missing text: 'conversations' holds nothing"),
  "not a conversation": (row(conversations=3), "a conversation is a list of mappings"),
  "stranger": (row(conversations=[{"from": "bob", "value": "hi"}]), "'bob' speaks; known: human"),
  "empty answer": (row(conversations=said("<image>Who?", " ")), "missing text: the answer to"),
  "no answer": (row(conversations=said("<image>Who?")), "the last prompt has no answer"),
  "null answer": (row(conversations=said("<image>Who?", None)), "missing text: text is None"),
  "too many markers": (row(conversations=said("<image><image>?", "a")), "2 markers .*1 images"),
  "marker in answer": (row(conversations=said("Who?", "<image>")), "more markers than images"),
  "unknown task": (row(task="chat"), "task 'chat'; known: caption, ocr"),
  "image is a number": (row(image=3), "image 0 is int: not bytes, not a path"),
  "half a character": (row(conversations=said("Who?", "caf\udcc3")), "bad UTF-8: after 'caf'"),
  "turns of another kind": (
    {"image": "a.png", "turns": [{"role": "user", "content": "hi"}]},
    "missing text: text is None",
  ),
  "a letter for a choice": (
    {"context": "Who?", "choices": ["Ann", "Bob"], "correct_choice_idx": "B"},
    "choice B of",
  ),
  "not a mapping": ([1, 2], "is not a row of LLaVA's"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_row_that_cannot_be_used_is_named_or_handed_over(tmp_path, fault):
  wrong, message = FAULTS[fault]
  path = write(tmp_path, [row(), wrong, row()])
  with pytest.raises(ValueError, match=f"train.json, row 1: .*{message}"):
    list(readers.read(path))
  faults = []
  assert len(list(readers.read(path, on_fault=faults.append))) == 2
  assert [f.where for f in faults] == ["train.json, row 1"]


def test_bytes_that_are_no_utf8_spoil_their_row_only(tmp_path):
  path = write(tmp_path, [row(), row(conversations=said("Who?", "cafX")), row()])
  path.write_bytes(path.read_bytes().replace(b"cafX", b"caf\xe9"))
  faults = []
  assert len(list(readers.read(path, on_fault=faults.append))) == 2
  assert (faults[0].kind, faults[0].where) == ("bad UTF-8", "train.json, row 1")


def test_a_broken_line_and_a_broken_end_are_faults(tmp_path):
  lines = write(tmp_path, [row(), row()], "rows.jsonl")
  lines.write_text('{"id": \n' + lines.read_text())
  faults = []
  assert len(list(readers.read(lines, on_fault=faults.append))) == 2
  whole = write(tmp_path, [row(id=i) for i in range(5)])
  whole.write_text(whole.read_text()[:-60])
  assert [e.key for e in readers.read(whole, on_fault=faults.append)] == ["0", "1", "2", "3"]
  assert [f.detail for f in faults[1:]] == ["no JSON from here to the end"]


@pytest.mark.parametrize("name", ["train.json", "train.jsonl"])
def test_blocks_and_workers_change_nothing(tmp_path, monkeypatch, name):
  monkeypatch.setattr(llava_json, "BLOCK", 3)
  monkeypatch.setattr(llava_json, "_CHUNK", 64)  # rows are cut by chunks
  rows = [row(id=i, conversations=said("<image>Wo?", "München " * i + "x")) for i in range(11)]
  path = write(tmp_path, rows, name)
  alone = list(readers.read(path))
  assert [e.key for e in alone] == [str(i) for i in range(11)]
  assert alone[10].answer == "München " * 10 + "x"
  parts = list(readers.parts(path))
  assert len(parts) == 4
  assert [e for part in reversed(parts) for e in readers.part_examples(part)][-1] == alone[2]


def test_processes_give_results_in_order_and_pass_errors_on():
  results = []
  with pytest.raises(TypeError, match="'str' object"):
    for result in ordered_stream(range, [3, 0, 70, "fail"], 2):
      results.append(result)
  assert results == [*range(3), *range(70)]
  assert list(ordered_map(abs, [-2, 1], 1)) == [2, 1]


def next_list(folder, *entries):
  path = folder / "list.yaml"
  path.write_text(yaml.safe_dump({"datasets": list(entries)}))
  return path


def test_llava_next_lists_sample_as_they_say(tmp_path, monkeypatch):
  monkeypatch.setattr(llava_json, "BLOCK", 4)
  for name in ("one.json", "two.jsonl"):
    write(tmp_path, [row(id=i) for i in range(10)], name)

  def ids(strategy, name="one.json"):
    path = next_list(tmp_path, {"json_path": name, "sampling_strategy": strategy})
    return [int(e.key.split("/")[1]) for e in readers.read(path)]

  assert ids("all") == list(range(10))
  assert ids("first:3") == [0, 1, 2]
  assert ids("end:3", "two.jsonl") == [7, 8, 9]
  assert ids("first:11%") == [0, 1]  # rounded up
  assert ids("end:50%") == [5, 6, 7, 8, 9]
  drawn = ids("random:4")
  assert drawn == sorted(set(drawn)) == ids("random:4") and len(drawn) == 4
  assert len(ids("random:30%", "two.jsonl")) == 3
  assert ids("first:99") == list(range(10))
  both = next_list(tmp_path, {"json_path": "one.json"}, {"json_path": "two.jsonl"})
  keys = [e.key for e in readers.read(both)]
  assert keys[:1] + keys[-1:] == ["one/0", "two/9"] and len(set(keys)) == 20


def test_the_same_path_beside_two_files_of_a_list_is_two_pictures(tmp_path):
  for name in ("one", "two"):
    (tmp_path / name / "pics").mkdir(parents=True)
    (tmp_path / name / "pics" / "a.png").write_bytes(name.encode())
    (tmp_path / name / "rows.json").write_text(json.dumps([row(image="pics/a.png")]))
  path = next_list(tmp_path, {"json_path": "one/rows.json"}, {"json_path": "two/rows.json"})
  found = {e.image_key: e.image for e in readers.read(path)}
  assert found == {"one/pics/a.png": b"one", "two/pics/a.png": b"two"}
  # The names are paths from the list's folder, which images= may name for rows made from them.
  absolute = str(tmp_path / "one" / "pics" / "a.png")
  (tmp_path / "two" / "rows.json").write_text(json.dumps([row(image=absolute)]))
  assert [e.image_key for e in readers.read(path)] == ["one/pics/a.png", absolute]
  (first, _) = readers.read(path, Reading(images=str(tmp_path / "two")))
  assert (first.image_key, first.image) == ("pics/a.png", b"two")


@pytest.mark.parametrize(
  ("entry", "message"),
  [
    ({"json_path": "one.json", "sampling_strategy": "some"}, "known: all, first:N, end:N"),
    ({"json_path": "one.json", "sampling_strategy": "first:1.5"}, "sampling_strategy 'first:1.5'"),
    ({"json_path": "one.csv"}, "neither a .json nor a .jsonl"),
    ({"path": "one.json"}, "has no json_path"),
  ],
)
def test_a_wrong_list_is_named(tmp_path, entry, message):
  write(tmp_path, [row()], "one.json")
  with pytest.raises(ValueError, match=message):
    list(readers.read(next_list(tmp_path, entry)))


def test_a_list_of_what_is_not_there(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"lists .*gone.json, which is not there"):
    list(readers.read(next_list(tmp_path, {"json_path": "gone.json"})))


def test_what_is_no_corpus_says_what_is_known(tmp_path):
  def refused(name, text, message, kind=ValueError):
    (tmp_path / name).write_text(text)
    with pytest.raises(kind, match=message):
      list(readers.read(tmp_path / name))

  with pytest.raises(FileNotFoundError, match=r"no corpus at .*: give the path"):
    list(readers.read(tmp_path / "none.json"))
  with pytest.raises(ValueError, match="holds nothing; known formats: LLaVA json"):
    readers.detect(tmp_path)
  refused("rows.csv", "a,b", r"is a .csv; known formats: LLaVA json .*TFDS folder")
  refused("dict.json", '{"data": []}', "is not a list of rows: it begins with")
  refused("mix.yaml", "splits: {train: {}}", "Energon metadataset, which mixes data sets")
  refused("other.yaml", "rows: 3", "has no `datasets:` with a list under it, but rows")
  refused("bad.yaml", "datasets: 3", "has no `datasets:` with a list under it")
  refused("torn.yaml", "datasets: [{", "is no YAML")
  refused("text.yaml", "words", "with a list under it, but str")
  refused("lines.json", '{"id": 1}\n{"id": 2}', "a file with a row a line is called .jsonl")
  with pytest.raises(ValueError, match=r"holds bad.yaml, dict.json, .*give the path of one"):
    readers.detect(tmp_path)


def test_a_reading_is_checked(tmp_path):
  with pytest.raises(ValueError, match="'x' is given the task 'chat'; known: caption"):
    Reading(tasks={"x": "chat"})
  with pytest.raises(ValueError, match=r"fields of \['picture'\]: a row has key, image"):
    Reading(fields={"picture": "jpg"})
  path = tmp_path / "reading.yaml"
  path.write_text("split: val\nfields: {prompt: 'q[text]', answer: a, image: img}\n")
  loaded = reading.load(path, images="here")
  assert (loaded.split, loaded.images) == ("val", "here")
  rows = [{"q": {"text": "Who?"}, "a": "Ann", "img": "a.png"}]
  (example,) = readers.read(write(tmp_path, rows), reading.load(path))
  assert (example.turns, example.image) == ((Turn("Who?", "Ann"),), b"png bytes")
  path.write_text("splits: val")
  with pytest.raises(ValueError, match=r"holds \['splits'\]; a reading is a mapping of split"):
    reading.load(path)


def test_a_corpus_tells_when_it_has_changed(tmp_path):
  def digest(path, **options):
    return Corpus(epath.Path(path), **options).sha256()

  path = write(tmp_path, [row()])
  first = digest(path)
  assert digest(path) == first and digest(path, labels="classifier") != first
  assert digest(path, reading=Reading(images="x")) != first
  write(tmp_path, [row(id=8)])
  assert digest(path) != first
  listed = next_list(tmp_path, {"json_path": "train.json"})
  first = digest(listed)
  write(tmp_path, [row(id=9)])
  assert digest(listed) != first
  folder = tmp_path / "tars"
  (folder / ".nv-meta").mkdir(parents=True)
  (folder / "0.tar").write_bytes(b"12")
  (folder / ".nv-meta" / "split.yaml").write_text("a")
  first = digest(folder)
  (folder / ".nv-meta" / "split.yaml").write_text("b")
  second = digest(folder)
  (folder / "0.tar").write_bytes(b"123")
  assert len({first, second, digest(folder)}) == 3


def test_a_corpus_learns_its_labels_once(tmp_path):
  known = [row(id=i, task=("ocr", "caption")[i % 2]) for i in range(60)]
  for i, one_row in enumerate(known):
    one_row["conversations"] = said(f"{('Zeichen', 'Inhalt')[i % 2]} {i}", f"{i}")
  corpus = Corpus(
    epath.Path(write(tmp_path, [*known, row(conversations=said("Zeichen 7", "7"))])),
    labels="classifier",
  )
  assert corpus.label is corpus.label and corpus.accuracy.classifier == 1
  assert [(e.task, e.label) for e in corpus.examples()][-1] == ("ocr", "classifier")
