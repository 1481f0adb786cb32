"""Conversations as tokens: the chat format with pictures, what is cut, what cannot be used."""

import numpy as np
import pytest
from PIL import Image

from mixjax.corpus.example import Example, Turn
from mixjax.data import encode
from mixjax.data.bad_records import BadRecord
from mixjax.data.conversation import ConversationEncoder
from mixjax.data.packed import PackedShape
from mixjax.models.anyres import Anyres

GEOMETRY = Anyres(tile=28, patch=7, pinpoints=((28, 56), (56, 28), (56, 56)))
TEXTS = ["What is shown here?", "a red bus near the park", "Compare both pictures.", "And now?"]
SIZES = [(30, 40), (61, 29)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  return encode.train_tokenizer(TEXTS, 320, tmp_path_factory.mktemp("tokenizer"))


def encoder_of(tokenizer, length=600, image_tokens=400, tiles=20):
  return ConversationEncoder(tokenizer, GEOMETRY, length, image_tokens, tiles)


def example(*turns, pictures=0, task="vqa"):
  keys = tuple(f"image{i}" for i in range(pictures))
  turns = tuple(Turn(*turn) for turn in turns)
  return Example("row-1", task, turns, keys, (b"png",) * pictures)


TALK = (("What is shown here?", "a red bus"), ("And now?", "the park"), ("What?", "a bus"))


def templated(tokenizer, turns, pictures):
  """The conversation's text as the chat template writes it, pictures before the first prompt."""
  messages = []
  for i, (prompt, answer) in enumerate(turns):
    content = [{"type": "image"}] * (0 if i else pictures) + [{"type": "text", "text": prompt}]
    messages += [
      {"role": "user", "content": content},
      {"role": "assistant", "content": answer},
    ]
  return tokenizer.apply_chat_template(messages, tokenize=False).removesuffix("\n")


@pytest.mark.parametrize("pictures", [0, 1, 2])
def test_ids_equal_those_of_the_references_processor(tokenizer, pictures):
  llava_next = pytest.importorskip("transformers.models.llava_next")
  side, tile = GEOMETRY.tile, GEOMETRY.patch
  slow = pytest.importorskip("transformers.models.llava_next.image_processing_pil_llava_next")
  processor = llava_next.LlavaNextProcessor(
    image_processor=slow.LlavaNextImageProcessorPil(
      size={"shortest_edge": side},
      crop_size={"height": side, "width": side},
      image_grid_pinpoints=[list(size) for size in GEOMETRY.pinpoints],
    ),
    tokenizer=tokenizer,
    patch_size=tile,
    vision_feature_select_strategy="default",
    image_token=encode.IMAGE,
    num_additional_image_tokens=1,
  )
  text = templated(tokenizer, TALK, pictures)
  images = [Image.new("RGB", size[::-1]) for size in SIZES[:pictures]]
  theirs = processor(images=images or None, text=[text], return_tensors="np")
  ours = encoder_of(tokenizer).encode(example(*TALK, pictures=pictures), SIZES[:pictures])
  assert ours.ids.tolist() == theirs["input_ids"][0].tolist()
  assert ours.sizes == tuple(SIZES[:pictures])


def test_one_turn_equals_the_single_rows_encoder(tokenizer):
  """Of a picture of as many tokens, `Encoder` makes the same ids."""
  size = SIZES[0]
  row = encode.Encoder(tokenizer, GEOMETRY.num_tokens(size), 60).encode(*TALK[0])
  ours = encoder_of(tokenizer).encode(example(TALK[0], pictures=1), [size])
  np.testing.assert_array_equal(ours.ids, row["ids"][row["mask"]])
  np.testing.assert_array_equal(ours.loss_mask, row["loss_mask"][row["mask"]])


def test_the_loss_falls_on_every_answer_and_its_end(tokenizer):
  found = encoder_of(tokenizer).encode(example(*TALK, pictures=1), SIZES[:1])
  said = tokenizer.decode(found.ids[found.loss_mask])
  assert said == "a red bus<|im_end|>the park<|im_end|>a bus<|im_end|>"
  starts = np.flatnonzero(np.diff(found.loss_mask.astype(int)) == 1)
  for start in starts:  # the token before an answer closes the assistant's line
    assert tokenizer.decode(found.ids[: start + 1]).endswith("<|im_start|>assistant\n")


def test_pictures_stand_at_their_markers(tokenizer):
  turns = (("Compare <image> and <image>.", "a bus"), ("Now <image>?", "the park"))
  sizes = [*SIZES, (28, 28)]
  found = encoder_of(tokenizer).encode(example(*turns, pictures=3), sizes)
  text = templated(tokenizer, turns, 0)
  for size in sizes:
    text = text.replace("<image>", "\0" * GEOMETRY.num_tokens(size), 1)
  assert found.ids.tolist() == tokenizer(text.replace("\0", "<image>"))["input_ids"]
  # Those that no marker places are the first, so that pictures keep their order.
  turns = (("And <image>?", "a bus"),)
  found = encoder_of(tokenizer).encode(example(*turns, pictures=2), SIZES)
  text = tokenizer.decode(found.ids)
  first, second = ("<image>" * GEOMETRY.num_tokens(size) for size in SIZES)
  assert text.startswith(f"<|im_start|>user\n{first}\nAnd {second}?")


def test_a_long_conversation_loses_turns_from_its_end(tokenizer):
  whole = encoder_of(tokenizer).encode(example(*TALK, pictures=1), SIZES[:1])
  two = encoder_of(tokenizer).encode(example(*TALK[:2], pictures=1), SIZES[:1])
  for length in (len(whole.ids) - 1, len(two.ids)):
    cut = encoder_of(tokenizer, length).encode(example(*TALK, pictures=1), SIZES[:1])
    assert (cut.turns, cut.cut) == (2, 0)
    np.testing.assert_array_equal(cut.ids, two.ids)
    np.testing.assert_array_equal(cut.loss_mask, two.loss_mask)
  turns = (TALK[0], ("And <image>?", "the park"))
  for limits in ({"image_tokens": GEOMETRY.num_tokens(SIZES[0])}, {"tiles": 5}):
    cut = encoder_of(tokenizer, **limits).encode(
      example(("<image>\nWhat?", "a bus"), turns[1], pictures=2), SIZES
    )
    assert cut.turns == 1 and cut.sizes == (SIZES[0],)


def test_a_long_first_turn_loses_the_end_of_its_answer(tokenizer):
  long = example(("What?", "bus " * 50), TALK[1], pictures=1)
  whole = encoder_of(tokenizer).encode(long, SIZES[:1])
  first = int(np.flatnonzero(whole.loss_mask)[0])
  cut = encoder_of(tokenizer, first + 7).encode(long, SIZES[:1])
  assert len(cut.ids) == first + 7 and cut.loss_mask.sum() == 7 and cut.turns == 1
  np.testing.assert_array_equal(cut.ids, whole.ids[: first + 7])
  answer = len(tokenizer("bus " * 50)["input_ids"]) + 1
  assert cut.cut == answer - 7
  with pytest.raises(BadRecord, match=rf"first prompt alone is too long: {first} tokens"):
    encoder_of(tokenizer, first).encode(long, SIZES[:1])
  with pytest.raises(BadRecord, match="room for 599, 20 and 20"):
    encoder_of(tokenizer, image_tokens=20).encode(long, SIZES[:1])


@pytest.mark.parametrize(
  ("turns", "pictures", "reason"),
  [
    ([("What?", " ")], 1, "empty answer"),
    ([TALK[0], ("What?", "")], 0, "empty answer"),
    ([("", "a bus")], 0, "empty prompt"),
    ([("What? <image>", "a bus")], 0, "1 places for 0 pictures"),
    ([("What?", "a bus <image>")], 1, "reserved"),
    ([("What?<|im_end|>", "a bus")], 1, "reserved"),
    ([("What?", "a \ud800 bus")], 0, "not Unicode"),
    ([("What?", "bus [0.1, nan, 0.4, 0.5]")], 1, "not finite"),
    ([("What?", "bus (0.1, 0.2), (Inf, 0.5)")], 1, "not finite"),
    ([("What?", "[[1,2,3,4],[5, -inf, 7.5, 8e-1]]")], 1, "not finite"),
  ],
)
def test_what_cannot_be_used(tokenizer, turns, pictures, reason):
  with pytest.raises(BadRecord, match=reason):
    encoder_of(tokenizer).encode(example(*turns, pictures=pictures), SIZES[:pictures])


@pytest.mark.parametrize(
  ("answer", "pictures"),
  [
    ("np.array([1, 2, nan, 4])", 0),  # code, not a box
    ("nan, the bread, and naan (4, 5)", 1),
    ("[0.1, 0.2, 0.3, 0.4] inf", 1),
    ("1.0 NaN 3.0 4.0", 1),
  ],
)
def test_what_only_looks_like_a_broken_box(tokenizer, answer, pictures):
  talk = example(("What?", answer), pictures=pictures)
  assert encoder_of(tokenizer).encode(talk, SIZES[:pictures]).cut == 0


def test_one_bad_example_does_not_stop_the_others(tokenizer):
  examples = [example(TALK[0]), example(("What?", " ")), example(TALK[1])]
  found = encoder_of(tokenizer).encode_many(examples, [[], [], []])
  assert [isinstance(one, BadRecord) for one in found] == [False, True, False]
  assert tokenizer.decode(found[2].ids[found[2].loss_mask]) == "the park<|im_end|>"


def test_an_encoder_for_a_shape(tokenizer):
  shape = PackedShape(rows=4, length=64, image_tokens=50, tiles=9, groups=2, side=28)
  made = ConversationEncoder.of(tokenizer, GEOMETRY, shape)
  assert (made.length, made.image_tokens, made.tiles) == (64, 50, 4)
  other = ConversationEncoder.of(tokenizer, Anyres(28, 14, GEOMETRY.pinpoints), shape)
  assert made.fingerprint != other.fingerprint
  with pytest.raises(ValueError, match="28 pixels in the shape, 56 in the geometry"):
    ConversationEncoder.of(tokenizer, Anyres(56, 14, ((56, 56),)), shape)
