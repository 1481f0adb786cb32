"""Labels by a vision-language model of ours: any LLaVA or LLaVA-NeXT folder.

Pictures go through its own tower in batches of one shape, answers are decoded greedily, and an
answer that did not end, or whose boxes are none, is refused.
"""

import functools
import hashlib
import os
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from mixjax.corpus import tasks
from mixjax.corpus.labellers import boxes
from mixjax.corpus.labellers.labeller import Answer, Refusal, opened
from mixjax.corpus.pixels import rgb, size_of
from mixjax.data import encode, tiles
from mixjax.evals.generate import generate, see
from mixjax.models import hf
from mixjax.models.llava_next import LlavaNext, Tiles

LOADERS = {"llava": hf.load_llava, "llava_next": hf.load_llava_next}
# Tasks whose answers hold boxes.
WITH_BOXES = (tasks.GROUNDED, tasks.DETECTION)


class Vlm:
  """Carries out the instruction of one of the four tasks of `tasks.PROMPTS`, greedily.

  `batch` is how many pictures are decoded at once; an answer has at most `new_tokens` tokens, its
  end included.
  """

  def __init__(
    self,
    folder: str | os.PathLike,
    task: str = tasks.CAPTION,
    tokenizer: str | os.PathLike = "",
    batch: int = 32,
    new_tokens: int = 256,
  ):
    """folder: of the checkpoint; tokenizer: where the checkpoint's own folder has none.

    Raises ValueError for a task without an instruction, for a folder that is no LLaVA and no
    LLaVA-NeXT, and for a tokenizer that is not the checkpoint's.
    """
    if task not in tasks.PROMPTS:
      raise ValueError(f"task {task!r} has no instruction; {', '.join(tasks.PROMPTS)} have")
    kind = hf.read_config(folder).get("model_type")
    if kind not in LOADERS:
      raise ValueError(f"{folder} holds a {kind}; a labeller is a {' or a '.join(LOADERS)}")
    self.task, self.prompt = task, tasks.PROMPTS[task]
    self._batch, self._new_tokens = batch, new_tokens
    self._model = LOADERS[kind](folder)
    words = pathlib.Path(tokenizer or folder)
    self._encoder = encode.Encoder(encode.load_tokenizer(words), image_tokens=1)
    if (image := self._model.config.image_token_id) != self._encoder.image_id:
      raise ValueError(
        f"the tokenizer of {words} has {encode.IMAGE} as token {self._encoder.image_id}, the model "
        f"of {folder} as {image}: give the tokenizer that it was trained with"
      )
    checkpoint = digest(folder, ("config.json", "*.safetensors"))
    self.name = f"{kind} {checkpoint[:12]}"
    self.provenance = {
      "labeller": self.name,
      "task": task,
      "prompt": self.prompt,
      "checkpoint_sha256": checkpoint,
      "tokenizer_sha256": digest(words, ("tokenizer.json",)),
      "new_tokens": new_tokens,
      "batch": batch,  # sums of floats, and so ties, may depend on it
    }

  def label(self, images: Sequence[bytes]) -> list[Answer | Refusal]:
    """What the model says of each picture; see the class."""
    found = [opened(data) for data in images]
    seen = [i for i, picture in enumerate(found) if not isinstance(picture, Refusal)]
    answers: list[Answer | Refusal] = list(found)  # pictures give way to answers
    for at in range(0, len(seen), self._batch):
      part = seen[at : at + self._batch]
      # The last batch is filled up, so that one shape is compiled.
      filled = [found[i] for i in np.resize(part, self._batch)]
      for i, ids in zip(part, self._decode(filled), strict=False):
        answers[i] = self._judge(ids)
    return answers

  def _decode(self, pictures: Sequence[Image.Image]) -> np.ndarray:
    """New tokens int[batch, new_tokens] of as many pictures."""
    if isinstance(self._model, LlavaNext):
      geometry = self._model.config.anyres
      sizes = [size_of(picture) for picture in pictures]
      side, room = geometry.tile, len(pictures) * geometry.max_tiles
      cut = tiles.stack([[tiles.cut(p, geometry)] for p in pictures], (1, room, side, side, 3))
      index = geometry.index([[size] for size in sizes], geometry.max_tokens)
      features = Tiles(self._encode(cut), jnp.asarray(index))
      counts, most = [geometry.num_tokens(size) for size in sizes], geometry.max_tokens
    else:
      vision = self._model.config.vision
      side = vision.image_size
      pixels = np.stack([tiles.resized(rgb(p), (side, side)) for p in pictures])
      features = self._encode(pixels)
      counts, most = [vision.num_patches] * len(pictures), vision.num_patches
    ids, mask = self._prompts(counts, most)
    out = generate(self._model, ids, mask, features, self._new_tokens, self._encoder.end_id)
    return np.asarray(out)

  def _encode(self, pixels: np.ndarray) -> jax.Array:
    """Features of uint8 pictures[b, h, w, 3], or of tiles[1, n, h, w, 3]."""
    graph, parameters = nnx.split(self._model)
    return see(graph, parameters, jnp.asarray(pixels))

  def _prompts(self, counts: Sequence[int], most: int) -> tuple[jax.Array, jax.Array]:
    """ids int[b, t] and mask bool[b, t], padded on the left, with `counts` image tokens a row."""
    before, after = self._frame
    length = len(before) + most + len(after)
    ids = np.full((len(counts), length), self._encoder.pad_id, np.int32)
    mask = np.zeros((len(counts), length), bool)
    for row, count in enumerate(counts):
      asked = [*before, *[self._encoder.image_id] * count, *after]
      ids[row, length - len(asked) :] = asked
      mask[row, length - len(asked) :] = True
    return jnp.asarray(ids), jnp.asarray(mask)

  @functools.cached_property
  def _frame(self) -> tuple[list[int], list[int]]:
    """The prompt's tokens before and after those of the image."""
    one = self._encoder.prompt(self.prompt)
    tokens = one["ids"][one["mask"]].tolist()
    at = tokens.index(self._encoder.image_id)
    return tokens[:at], tokens[at + 1 :]

  def _judge(self, ids: np.ndarray) -> Answer | Refusal:
    if self._encoder.end_id not in ids:
      return Refusal(f"the answer did not end within {self._new_tokens} tokens")
    text = self._encoder.decode(ids[None])[0]
    if not text:
      return Refusal("the answer is empty")
    if self.task in WITH_BOXES and (wrong := boxes.problem(text)):
      return Refusal(f"{wrong}, in {text[:200]!r}")
    return Answer(text)


def digest(folder: str | os.PathLike, patterns: Sequence[str]) -> str:
  """sha256 over the names and the bytes of the files of a folder that match.

  Raises FileNotFoundError naming a pattern that matches none.
  """
  total = hashlib.sha256()
  for pattern in patterns:
    paths = sorted(pathlib.Path(folder).glob(pattern))
    if not paths:
      raise FileNotFoundError(f"{folder} has no {pattern}")
    for path in paths:
      with open(path, "rb") as file:
        total.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
  return total.hexdigest()
