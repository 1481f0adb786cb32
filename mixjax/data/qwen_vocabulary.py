"""The tokenizer of Qwen2 and Qwen2.5 from its file of ranks, where the hub cannot be reached.

The file, `qwen.tiktoken`, has a line for each of 151,643 byte strings, base64 and rank; it comes
with Qwen's releases and in the package dashscope (Apache-2.0), as `dashscope/resources`. A rank is
both a token's id and the order in which merges are made, so nothing else is needed.
"""

import base64
import itertools
import os
import pathlib

import tokenizers

from mixjax.data.encode import END, IMAGE, PAD, START, Tokenizer, save_tokenizer

Ranks = dict[bytes, int]

# Words as Qwen2 cuts them before merging: an English ending, letters, one digit, signs, breaks.
WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
  r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def read_ranks(path: str | os.PathLike) -> Ranks:
  """Byte strings and their ranks. Raises ValueError, with the line, for a file that is damaged."""
  ranks = {}
  for number, line in enumerate(pathlib.Path(path).read_bytes().splitlines(), start=1):
    try:
      token, rank = line.split()
      ranks[base64.b64decode(token, validate=True)] = int(rank)
    except ValueError as error:
      raise ValueError(f"line {number} of {path} is not base64 and a rank: {line!r}") from error
  if sorted(ranks.values()) != list(range(len(ranks))) or any(
    bytes([i]) not in ranks for i in range(256)
  ):
    raise ValueError(f"{path} is cut short or damaged: ranks or single bytes are missing")
  return ranks


def merges(ranks: Ranks) -> list[tuple[bytes, bytes]]:
  """The pairs whose merging makes each token of several bytes, in the order of merging.

  The last pair that merging by rank joins on the way to a token is the two parts that are left when
  the token itself may not be made yet.
  """
  pairs = []
  for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
    if len(token) > 1:
      parts = split(token, ranks, rank)
      if len(parts) != 2:
        raise ValueError(f"token {token!r} of rank {rank} is not two tokens of lower rank")
      pairs.append((parts[0], parts[1]))
  return pairs


def split(text: bytes, ranks: Ranks, below: int) -> list[bytes]:
  """The tokens of a text with merges of a rank under `below` alone."""
  parts = [text[i : i + 1] for i in range(len(text))]
  while len(parts) > 1:
    made = [ranks.get(a + b, below) for a, b in itertools.pairwise(parts)]
    least = min(made)
    if least >= below:
      break
    at = made.index(least)
    parts[at : at + 2] = [parts[at] + parts[at + 1]]
  return parts


def write_tokenizer(ranks: Ranks, folder: str | os.PathLike) -> Tokenizer:
  """Saves the tokenizer under `folder` in Hugging Face's format, and loads it from there.

  After the ranks come <|endoftext|>, <|im_start|> and <|im_end|>, with Qwen2's ids for them, and
  <image>, which Qwen2 has not; the chat template is ours (`data.encode`).
  """
  letters = byte_letters()

  def spell(token: bytes) -> str:
    return "".join(letters[byte] for byte in token)

  model = tokenizers.Tokenizer(
    tokenizers.models.BPE(
      vocab={spell(token): rank for token, rank in ranks.items()},
      merges=[(spell(a), spell(b)) for a, b in merges(ranks)],
    )
  )
  model.normalizer = tokenizers.normalizers.NFC()
  model.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
    [
      tokenizers.pre_tokenizers.Split(tokenizers.Regex(WORDS), behavior="isolated"),
      tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  model.decoder = tokenizers.decoders.ByteLevel()
  model.add_special_tokens([PAD, START, END, IMAGE])
  return save_tokenizer(model, folder)


def byte_letters() -> list[str]:
  """The letter that stands for each byte in files of byte-level vocabularies, as GPT-2 chose them.

  Bytes that print stand for themselves; the others, in order, for the letters from 256 on.
  """
  printing = {*range(33, 127), *range(161, 173), *range(174, 256)}
  others = iter(range(256, 512))
  return [chr(byte) if byte in printing else chr(next(others)) for byte in range(256)]
