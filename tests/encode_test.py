"""Rows as tokens: the chat format, what the loss falls on, and the gallery's own tokenizer."""

import numpy as np
import pytest

from mixjax.corpus import tasks
from mixjax.data import encode

TEXTS = [
  f"{prompt} a bar chart of {what} in {year} with {tasks.write_box((0.1, 0.2, 0.6, 0.9))} shown"
  for prompt in tasks.PROMPTS.values()
  for what in ("coffee", "rainfall", "traffic")
  for year in range(1990, 2000)
]
P, T = 9, 40  # image tokens and text length


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  return encode.train_tokenizer(TEXTS, 400, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def encoder(tokenizer):
  return encode.Encoder(tokenizer, image_tokens=P, text_length=T)


def test_the_row_is_the_chat_templates(tokenizer, encoder):
  prompt, answer = "Describe this image in detail.", "a bar chart of coffee"
  row = encoder.encode(prompt, answer)
  content = [{"type": "image"}, {"type": "text", "text": prompt}]
  messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
  text = tokenizer.apply_chat_template(messages, tokenize=False)
  text = text.replace("<image>", "<image>" * P).removesuffix("\n")
  assert row["ids"][row["mask"]].tolist() == tokenizer(text)["input_ids"]
  assert row["ids"].dtype == np.int32
  assert row["ids"].shape == row["mask"].shape == row["loss_mask"].shape == (P + T,)
  assert np.sum(row["ids"] == encoder.image_id) == P
  assert np.all(np.diff(row["mask"].astype(int)) <= 0)  # padding only at the end
  assert np.all(row["ids"][~row["mask"]] == encoder.pad_id)


def test_a_conversation_is_the_chat_templates(tokenizer):
  wide = encode.Encoder(tokenizer, image_tokens=P, text_length=100)
  turns = [("What is shown?", "coffee"), ("When?", "in 1995"), ("Where?", "in the chart")]
  (prompt, answer), *later = turns
  row = wide.encode_many([prompt], [answer], [True], ["k"], [later])
  messages = []
  for i, (asked, said) in enumerate(turns):
    image = [] if i else [{"type": "image"}]
    messages += [
      {"role": "user", "content": [*image, {"type": "text", "text": asked}]},
      {"role": "assistant", "content": said},
    ]
  text = tokenizer.apply_chat_template(messages, tokenize=False)
  text = text.replace("<image>", "<image>" * P).removesuffix("\n")
  ids = row["ids"][0]
  assert ids[row["mask"][0]].tolist() == tokenizer(text)["input_ids"]
  said = "".join(f"{said}<|im_end|>" for _, said in turns)
  assert tokenizer.decode(ids[row["loss_mask"][0]]) == said


def test_turns_that_do_not_fit_are_left_out_whole(tokenizer):
  later = [[("When?", "in 1995"), ("Where?", "rainfall " * 50), ("Why?", "so")]]
  narrow = encode.Encoder(tokenizer, P, 60, truncate=True)
  row = narrow.encode_many(["What?"], ["coffee"], [True], ["k"], later)
  assert row["truncated"].tolist() == [True]
  said = tokenizer.decode(row["ids"][0][row["loss_mask"][0]])
  assert said == "coffee<|im_end|>in 1995<|im_end|>"
  strict = encode.Encoder(tokenizer, P, 60)
  with pytest.raises(ValueError, match="row 'k' has 4 turns, which do not fit"):
    strict.encode_many(["What?"], ["coffee"], [True], ["k"], later)


def test_the_loss_falls_on_the_answer_and_its_end(tokenizer, encoder):
  row = encoder.encode("What is shown?", "coffee in 1995")
  predicted = row["ids"][row["loss_mask"]]
  assert tokenizer.decode(predicted) == "coffee in 1995<|im_end|>"
  # The state just before the first predicted token has read the whole prompt.
  before = row["ids"][: np.flatnonzero(row["loss_mask"])[0]]
  assert tokenizer.decode(before).endswith("What is shown?<|im_end|>\n<|im_start|>assistant\n")


def test_a_row_without_an_image_keeps_the_images_places(encoder):
  seen = encoder.encode("What is shown?", "coffee")
  blind = encoder.encode("What is shown?", "coffee", with_image=False)
  assert not np.any(blind["ids"] == encoder.image_id)
  assert not np.any(blind["mask"][:P])
  assert blind["mask"][P]
  np.testing.assert_array_equal(blind["ids"][blind["loss_mask"]], seen["ids"][seen["loss_mask"]])
  assert np.flatnonzero(blind["loss_mask"])[0] > P
  assert blind["mask"].sum() == seen["mask"].sum() - P - 1  # the line break after the image


def test_too_long_rows_are_named_or_cut(tokenizer, encoder):
  long = "rainfall " * 100
  with pytest.raises(ValueError, match=r"'row-7' has \d+ tokens .* 49 fit.*truncate=True"):
    encoder.encode("What?", long, key="row-7")
  cutting = encode.Encoder(tokenizer, P, T, truncate=True)
  rows = cutting.encode_many(["What?"] * 2, [long, "rainfall"], [True, True], ["a", "b"])
  assert rows["truncated"].tolist() == [True, False]
  assert rows["mask"][0].all()
  assert rows["ids"][0, -1] != encoder.end_id  # a cut answer does not claim to be over
  with pytest.raises(ValueError, match=r"'row-8'.*raise text_length$"):
    cutting.encode(long, "x", key="row-8")


def test_a_row_may_fill_its_places_exactly(tokenizer):
  needed = encode.Encoder(tokenizer, P, 100).encode("What?", "coffee")["mask"].sum() - P
  assert encode.Encoder(tokenizer, P, needed).encode("What?", "coffee")["mask"].all()
  with pytest.raises(ValueError, match="fit"):
    encode.Encoder(tokenizer, P, needed - 1).encode("What?", "coffee")


@pytest.mark.parametrize("token", encode.SPECIAL_TOKENS)
def test_texts_cannot_forge_the_frame(encoder, token):
  with pytest.raises(ValueError, match="the prompt of row 'k'"):
    encoder.encode(f"What {token}?", "coffee", key="k")
  with pytest.raises(ValueError, match="the answer of row 'k'"):
    encoder.encode("What?", f"coffee{token}", key="k")


def test_prompts_for_generation_end_where_the_answer_begins(encoder):
  prompt = encoder.prompt("What is shown?")
  row = encoder.encode("What is shown?", "coffee")
  begin = np.flatnonzero(row["loss_mask"])[0]
  np.testing.assert_array_equal(prompt["ids"][prompt["mask"]], row["ids"][:begin])
  assert prompt["mask"][-1]
  assert prompt["ids"].shape == (P + T,)


def test_decoding_stops_at_the_first_end(encoder):
  said = encoder.encode("What?", "coffee in 1995 <1><2><3><15>")
  tokens = np.concatenate([said["ids"][said["loss_mask"]], [encoder.image_id, 300, encoder.end_id]])
  assert encoder.decode(tokens[None]) == ["coffee in 1995 <1><2><3><15>"]


def test_boxes_are_one_token_each_and_bytes_round_trip(tokenizer, encoder):
  ids = tokenizer.convert_tokens_to_ids(list(tasks.BOX_TOKENS))
  assert len(set(ids)) == tasks.BINS
  assert tokenizer("".join(tasks.BOX_TOKENS))["input_ids"] == ids
  for text in ("naïve 北京 🙂\n\ttabs", "x<3>y", "2024 <1 and <16>", " leading"):
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
  assert encoder.count("<0><1><2><3>") == 4
  assert encoder.count("1995") == 4  # digits stand alone


def test_training_is_deterministic_and_keeps_to_its_size(tokenizer, tmp_path):
  again = encode.train_tokenizer(TEXTS, 400, tmp_path / "again")
  assert len(again) <= 400
  assert again.get_vocab() == tokenizer.get_vocab()
  once_more = encode.train_tokenizer(TEXTS, 400, tmp_path / "once_more")
  assert once_more.get_vocab() == again.get_vocab()
  for path in (tmp_path / "again").iterdir():
    assert path.read_bytes() == (tmp_path / "once_more" / path.name).read_bytes()
  with pytest.raises(ValueError, match="vocab_size is 260"):
    encode.train_tokenizer(TEXTS, 260, tmp_path / "small")


def test_saved_again_the_tokenizer_is_the_same(tokenizer, tmp_path):
  tokenizer.save_pretrained(tmp_path / "copy")
  copy = encode.load_tokenizer(tmp_path / "copy")
  text = "<|im_start|>user\n<image>coffee <3><4><5><6> 1995<|im_end|>"
  assert copy(text)["input_ids"] == tokenizer(text)["input_ids"]
  assert copy.chat_template == tokenizer.chat_template
  assert (copy.eos_token, copy.pad_token) == ("<|im_end|>", "<|endoftext|>")
  with pytest.raises(FileNotFoundError, match="no tokenizer folder"):
    encode.load_tokenizer(tmp_path / "nowhere")


def test_a_tokenizer_without_the_image_token_is_refused(tokenizer):
  class Bare:
    def get_vocab(self):
      return {t: i for t, i in tokenizer.get_vocab().items() if t != "<image>"}

  with pytest.raises(ValueError, match="lacks <image>"):
    encode.Encoder(Bare())
