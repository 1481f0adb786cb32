"""Qwen2's tokenizer from its ranks: a toy's, and the true ones where their file is installed."""

import base64
import importlib.util
import itertools
import json
import pathlib
import unicodedata

import numpy as np
import pytest
import regex
from transformers import Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from mixjax.data import encode, qwen_vocabulary

PAGE = (
  "The quick brown fox doesn't jump; they'd've said SHE'LL, wouldn't they?  Two  spaces.",
  "今天天气很好，我们去公园散步吧！这张图片里有什么？請描述這幅畫。東京タワーは高い。서울의 밤",
  "ما الذي تراه في هذه الصورة؟ السَّلامُ عَلَيْكُم، ١٢٣٤ و٪",
  "इस चित्र में क्या दिख रहा है? नमस्ते दुनिया, क्ष ज्ञ १२३४५।",
  "Ünïcödé naïve café Straße Ελληνικά Русский язык עִבְרִית ไทย Tiếng Việt 𝒳 ﬁ ½ Ⅷ",
  "🙂👩‍👩‍👧‍👦🏳️‍🌈🇮🇳 ☕️ → ≤ ∑ ∫ © ™ “quotes” … — ‒",
  'def f(x: int) -> str:\n\treturn f"{x:>8.3f}"  # 0xFF\n\n\nclass A(B):\n    pass\r\n',
  "3.14159 1,000,000 2024-05-17 +44 20 7946 0958 1e-6 <x1,y2> [0.12, 0.98] $5.00 50%",
  "trailing spaces   \n\n  \t tabs\tand \u00a0no-break\u3000wide \u200bzero",
  "cafe\u0301 n\u0303 \u1112\u1161\u11ab \u212b",  # equal to composed letters, which NFC makes them
  "<box> </s> <|endoftex|> <|im_start <image",
)


def by_rank(text, ranks):
  """Ids by merging, again and again, the neighbours whose union has the lowest rank."""
  ids = []
  for word in regex.findall(PRETOKENIZE_REGEX, unicodedata.normalize("NFC", text)):
    parts = [bytes([byte]) for byte in word.encode()]
    while True:
      pairs = [
        (ranks[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in ranks
      ]
      if not pairs:
        break
      _, i = min(pairs)
      parts[i : i + 2] = [parts[i] + parts[i + 1]]
    ids += [ranks[part] for part in parts]
  return ids


def toy_ranks():
  tokens = [bytes([byte]) for byte in range(256)]
  tokens += [
    b"th",
    b"he",
    b" t",
    b"the",
    b" the",
    b"the" + b"he",
    b"\xe4\xbb",
    b"\xe4\xbb\x8a",
    b"\n\n",
  ]
  return {token: rank for rank, token in enumerate(tokens)}


def write_ranks(path, ranks):
  lines = [base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()]
  path.write_bytes(b"".join(lines))
  return path


def test_a_toy_vocabulary_merges_by_rank(tmp_path):
  ranks = qwen_vocabulary.read_ranks(write_ranks(tmp_path / "toy", toy_ranks()))
  assert ranks == toy_ranks()
  tokenizer = qwen_vocabulary.write_tokenizer(ranks, tmp_path / "tokenizer")
  for text in ("the then thhe thehe bathe", "今\n\nthe\n", *PAGE):
    assert tokenizer(text)["input_ids"] == by_rank(text, ranks), text
  after = tokenizer.convert_tokens_to_ids(list(encode.SPECIAL_TOKENS))
  assert after == list(range(len(ranks), len(ranks) + 4))


@pytest.mark.parametrize(
  "damage",
  [
    lambda lines: lines[:-3] + lines[-2:],
    lambda lines: lines[1:],
    lambda lines: [*lines[:-1], lines[-1].split()[0]],
    lambda lines: [*lines, b"not/base64= 400"],
    lambda lines: [],
  ],
)
def test_a_damaged_file_of_ranks_is_refused(damage, tmp_path):
  path = write_ranks(tmp_path / "toy", toy_ranks())
  path.write_bytes(b"\n".join(damage(path.read_bytes().splitlines())))
  with pytest.raises(ValueError, match="toy"):
    qwen_vocabulary.read_ranks(path)


def test_a_token_that_nothing_makes_is_refused():
  with pytest.raises(ValueError, match=r"b'xyz' of rank 256 is not two tokens"):
    qwen_vocabulary.merges({bytes([byte]): byte for byte in range(256)} | {b"xyz": 256})


@pytest.fixture(scope="module")
def true_ranks():
  package = importlib.util.find_spec("dashscope")
  if package is None:
    pytest.skip("dashscope has Qwen's ranks: pip install --no-deps dashscope==2.0.2")
  folder = pathlib.Path(package.origin).parent
  return qwen_vocabulary.read_ranks(folder / "resources" / "qwen.tiktoken")


@pytest.mark.slow
def test_chat_ids_of_the_true_vocabulary(true_ranks, tmp_path):
  """The encoder's rows are those of transformers' own Qwen2Tokenizer, and of merging by rank."""
  tokenizer = qwen_vocabulary.write_tokenizer(true_ranks, tmp_path)
  assert len(true_ranks) == 151643
  assert tokenizer.convert_tokens_to_ids(list(encode.SPECIAL_TOKENS)) == [*range(151643, 151647)]
  model = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
  theirs = Qwen2Tokenizer(
    vocab=model["vocab"],
    merges=[tuple(pair) for pair in model["merges"]],
    extra_special_tokens=["<|im_start|>", "<|im_end|>", "<image>"],
  )
  encoder = encode.Encoder(tokenizer, image_tokens=5, text_length=400)
  for prompt, answer in zip(PAGE, reversed(PAGE), strict=True):
    assert tokenizer(prompt)["input_ids"] == by_rank(prompt, true_ranks), prompt
    for seen in (True, False):
      row = encoder.encode(prompt, answer, with_image=seen)
      picture = "<image>" * 5 + "\n" if seen else ""
      text = (
        f"<|im_start|>user\n{picture}{prompt}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>"
      )
      assert row["ids"][row["mask"]].tolist() == theirs(text)["input_ids"], prompt
    said = encoder.decode(row["ids"][row["loss_mask"]][None])
    assert said == [unicodedata.normalize("NFC", answer).strip()]
  # Ids that Qwen2 is published with.
  published = {"Hello": 9707, " world": 1879, "你好": 108386, "\n": 198, "user": 872}
  for text, token in published.items():
    assert tokenizer(text)["input_ids"] == [token]
  assert np.max([max(encoder.encode(p, "")["ids"]) for p in PAGE]) == 151646
