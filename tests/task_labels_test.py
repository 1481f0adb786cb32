"""Tasks from words, and from the rows whose task is known."""

import dataclasses

import pytest

from mixjax.corpus import boxes, task_classifier, task_rules
from mixjax.corpus.example import Example, Turn

LONG = "A man in a red coat walks his dog along the pier while two boats pass behind him."
BOX = "[0.12, 0.30, 0.55, 0.81]"

# (prompt, answer, task): instructions as they are worded in the corpora that people train on.
WORDED = [
  # LLaVA's own lists, for captions
  ("Describe the image concisely.", "dog on pier", "caption"),
  ("Provide a brief description of the given image.", "dog on pier", "caption"),
  ("Share a concise interpretation of the image provided.", "dog on pier", "caption"),
  ("Write a terse but informative summary of the picture.", "dog on pier", "caption"),
  ("Can you describe the main features of this image for me?", LONG, "caption"),
  ("What do you see happening in this image?", LONG, "caption"),
  ("What is this photo about?", LONG, "caption"),
  ("Analyze the image in a comprehensive and detailed manner.", LONG, "caption"),
  (f"Provide a one-sentence caption for the provided image.\nReference OCR token: {LONG}", "a sign",
   "caption"),
  # VQAv2, GQA, OCR-VQA, TextVQA, A-OKVQA, LLaVA's conversations
  ("What color is the coat?\nAnswer the question using a single word or phrase.", "red", "vqa"),
  ("Who wrote this book?\nAnswer the question using a single word or phrase.", "Ann", "vqa"),
  ("What is the brand?\nReference OCR token: text, in, the, image\nAnswer briefly.", "x", "vqa"),
  ("Is it?\nA. yes\nB. no\nAnswer with the option's letter from the given choices directly.", "A",
   "vqa"),
  ("Why might the man walk here?", LONG, "vqa"),
  ("What is in the picture?", "rocket", "vqa"),
  # RefCOCO and Visual Genome
  ("Please provide the bounding box coordinate of the region this sentence describes: the dog.",
   BOX, "detection"),
  (f"Please provide a short description for this region: {BOX}.", "the dog", "grounded"),
  # grounding and detection in several dialects
  ("Describe the scene with grounded objects.", f"A man {BOX} walks a dog {BOX}.", "grounded"),
  ("Detect all cats.", '[{"bbox_2d": [10, 20, 30, 40], "label": "cat"}]', "detection"),
  ("detect cat", "<loc0010><loc0020><loc0300><loc0400> cat", "detection"),
  ("Locate every boat.", "boat <1><2><3><4>; boat <5><6><7><8>", "detection"),
  # reading
  ("OCR this image.", "STOP", "ocr"),
  ("Transcribe the handwritten note.", "milk, eggs", "ocr"),
  ("Please extract all visible text from this receipt.", "total 3.20", "ocr"),
  ("What does the sign say?", "STOP", "ocr"),
  ("Read the text in the image.", "STOP", "ocr"),
  ("Can you recognize the text in this document?", "STOP", "ocr"),
]  # fmt: skip


@pytest.mark.parametrize(("prompt", "answer", "task"), WORDED)
def test_rules_know_the_wordings_in_use(prompt, answer, task):
  assert task_rules.label([Turn(prompt, answer)], True) == (task, "rule")


def test_where_nothing_tells_it_is_vqa_by_default():
  assert task_rules.label([Turn("Colour", "red")], True) == ("vqa", "default")
  assert task_rules.label([Turn("Write a poem.", LONG)], False) == ("vqa", "default")


def test_most_turns_decide():
  turns = [Turn("What does it say?", "a"), Turn("Detect the cat", BOX), Turn("Detect a dog", BOX)]
  assert task_rules.label(turns, True) == ("detection", "rule")


def test_a_list_of_numbers_is_no_box_unless_asked_for():
  assert task_rules.of_turn(Turn("Sort them?", "[1, 2, 3, 4]"), True) == "vqa"
  assert task_rules.of_turn(Turn("Where is the cat", "[1, 2, 3, 4]"), True) == "detection"


def test_boxes_are_found_and_judged():
  text = "a <1><2><3><4> b [0, nan, 1, 1] c (3,4),(5,6) d <loc0001><loc0002><loc1030><loc0004>"
  found = boxes.find(text)
  assert [box.form for box in found] == [
    boxes.BINS, boxes.BRACKETS, boxes.CORNERS, boxes.LOCATIONS
  ]  # fmt: skip
  assert [box.problem for box in found] == ["", "not finite", "", "beyond 1023"]
  assert [b.problem for b in boxes.find("[0.1, 0.2, 1.7, 0.9] [-1, 0, 3, 4] [0.5, 0.5, 1, 1]")] == [
    "beyond 1", "below 0", ""
  ]  # fmt: skip
  assert [part.strip() for part in boxes.without(text)] == ["a", "b", "c", "d", ""]


def labelled(count=60):
  """Rows in words that the rules do not know, two tasks in turn."""
  rows = []
  for i in range(count):
    task, prompt, answer = (
      ("ocr", f"Zeichen {i}", f"STOP {i}"), ("caption", f"Inhalt {i}", f"ein Hund am Meer, {i}")
    )[i % 2]  # fmt: skip
    rows.append(Example(f"k{i}", task, (Turn(prompt, answer),), ("a",), (b"x",)))
  return rows


def test_a_classifier_learns_what_rules_do_not_know():
  rows = labelled()
  classifier, accuracy = task_classifier.train(rows)
  assert accuracy.classifier == 1 and accuracy.rules < 0.2 and accuracy.rows > 3
  assert classifier([Turn("Zeichen 99", "STOP 99")], True) == ("ocr", "classifier")
  # Abstaining leaves it to the rules.
  unsure = dataclasses.replace(classifier, confident=1.1)
  assert unsure([Turn("What does the sign say?", "HALT")], True) == ("ocr", "rule")


def test_the_sample_depends_on_the_rows_alone():
  rows = labelled()
  guessed = [dataclasses.replace(e, key=e.key + "r", label="rule") for e in rows]
  some = task_classifier.sample(rows + guessed, 10)
  assert some == task_classifier.sample(rows[::-1], 10)
  assert len(task_classifier.sample(rows + rows)) == 2 * len(rows)  # keys may repeat
  assert len(some) == 10 and some[0].images == (b"",) and {e.label for e in some} == {"data"}


def test_too_few_labelled_rows_are_refused():
  with pytest.raises(ValueError, match=r"9 rows have a task of their own .*use labels=rules"):
    task_classifier.train(labelled(9))
  alike = [dataclasses.replace(e, task="ocr") for e in labelled()]
  with pytest.raises(ValueError, match=r"60 rows have a task of their own \(ocr\)"):
    task_classifier.train(alike)
