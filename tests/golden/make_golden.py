"""Tiny random torch models and their answers: parity is tested where torch is not installed.

    python tests/golden/make_golden.py

writes one folder a model beside this file: what `save_pretrained` writes, and io.safetensors with
inputs and outputs. Tests call the same functions with other seeds when torch is there.
"""

import pathlib
import re
import tempfile

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

QWEN2 = dict(
  vocab_size=40,
  hidden_size=16,
  intermediate_size=24,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  rms_norm_eps=1e-6,
  rope_parameters={"rope_type": "default", "rope_theta": 1e4},
)
VISION = dict(
  hidden_size=16,
  intermediate_size=24,
  num_hidden_layers=3,
  num_attention_heads=2,
  image_size=12,
  patch_size=4,
  projection_dim=8,
)
TEXT = dict(
  vocab_size=40,
  hidden_size=16,
  intermediate_size=24,
  num_hidden_layers=2,
  num_attention_heads=2,
  max_position_embeddings=10,
  projection_dim=8,
  bos_token_id=38,
  eos_token_id=37,
)
IMAGE, PATCHES, NEW_TOKENS = 39, 9, 8
SLOPES = r"image_newline|projector|patch_embedding|embed_tokens"


def randomised(model: torch.nn.Module, seed: int) -> torch.nn.Module:
  """Every parameter drawn anew: biases of 0 and norms of 1 would hide mistakes."""
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for parameter in model.parameters():
      noise = torch.randn(parameter.shape, generator=generator)
      one_wide = parameter.ndim == 1 and bool((parameter == 1).all())
      parameter.copy_(1 + 0.2 * noise if one_wide else 0.3 * noise)
  return model.eval()


def write(folder: pathlib.Path, model: torch.nn.Module, arrays: dict[str, np.ndarray]) -> None:
  model.save_pretrained(folder)
  (folder / "generation_config.json").unlink(missing_ok=True)
  # safetensors writes the memory of an array as it lies.
  arrays = {name: np.array(value, order="C") for name, value in arrays.items()}
  save_file(arrays, folder / "io.safetensors")


@torch.no_grad()
def qwen2(folder: pathlib.Path, seed: int, tied: bool) -> None:
  config = transformers.Qwen2Config(**QWEN2, tie_word_embeddings=tied)
  model = randomised(transformers.Qwen2ForCausalLM(config), seed)
  ids = np.random.default_rng(seed).integers(0, 40, (4, 10))
  mask = np.ones((4, 10), bool)
  mask[1, 7:] = False
  logits = model(torch.tensor(ids), attention_mask=torch.tensor(mask.astype(int))).logits
  write(folder, model, {"ids": ids, "mask": mask, "logits": logits.numpy()})


@torch.no_grad()
def clip(folder: pathlib.Path, seed: int) -> None:
  config = transformers.CLIPConfig(vision_config=VISION, text_config=TEXT, projection_dim=8)
  model = randomised(transformers.CLIPModel(config), seed)
  random = np.random.default_rng(seed)
  pixels = random.normal(size=(4, 12, 12, 3)).astype(np.float32)
  ids = random.integers(0, 37, (4, 9))
  ends = np.array([4, 8, 6, 5])
  ids[np.arange(4), ends] = 37
  mask = np.arange(9)[None] <= ends[:, None]
  ids[~mask] = 37
  ids[2, 2] = 38  # the largest id is not the last token
  inputs = dict(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask.astype(int)))
  images = torch.tensor(pixels.transpose(0, 3, 1, 2))
  out = model(**inputs, pixel_values=images)
  states = model.vision_model(images, output_hidden_states=True)
  model.text_model.eos_token_id = 2
  legacy = model(**inputs, pixel_values=images).text_embeds
  write(
    folder,
    model,
    {
      "pixels": pixels,
      "ids": ids,
      "mask": mask,
      "images": out.image_embeds.numpy(),
      "texts": out.text_embeds.numpy(),
      "legacy_texts": legacy.numpy(),
      "features": states.hidden_states[-2][:, 1:].numpy(),
    },
  )


@torch.no_grad()
def llava(folder: pathlib.Path, seed: int) -> None:
  """Row 2 has no image; prompts are padded on the left, as transformers' generate wants them."""
  config = transformers.LlavaConfig(
    vision_config=transformers.CLIPVisionConfig(**VISION),
    text_config=transformers.Qwen2Config(
      **QWEN2, tie_word_embeddings=True, bos_token_id=None, eos_token_id=None
    ),
    image_token_index=IMAGE,
    image_seq_length=PATCHES,
    vision_feature_layer=-2,
  )
  model = randomised(transformers.LlavaForConditionalGeneration(config), seed)
  random = np.random.default_rng(seed)
  pixels = random.normal(size=(4, 12, 12, 3)).astype(np.float32)
  ids = random.integers(0, 38, (4, 16))
  ids[[0, 1, 3], 4 : 4 + PATCHES] = IMAGE
  mask = np.ones((4, 16), bool)
  mask[1, :2] = False
  mask[2, :7] = False
  inputs = dict(
    input_ids=torch.tensor(ids),
    attention_mask=torch.tensor(mask.astype(int)),
    pixel_values=torch.tensor(pixels[[0, 1, 3]].transpose(0, 3, 1, 2)),
  )
  logits = model(**inputs).logits
  greedy = dict(max_new_tokens=NEW_TOKENS, do_sample=False)
  said = model.generate(**inputs, **greedy, pad_token_id=0)[:, ids.shape[1] :].numpy()
  # The second word of row 0 ends its answer, and any row's that says it.
  end = int(said[0, np.argmax(said[0] != said[0, 0])])
  ended = model.generate(**inputs, **greedy, eos_token_id=end, pad_token_id=end)
  ended = ended[:, ids.shape[1] :].numpy()
  ended = np.pad(ended, ((0, 0), (0, NEW_TOKENS - ended.shape[1])), constant_values=end)
  write(
    folder,
    model,
    {
      "pixels": pixels,
      "ids": ids,
      "mask": mask,
      "logits": logits.numpy(),
      "said": said,
      "end": np.array(end),
      "ended": ended,
    },
  )


def llava_next(
  folder: pathlib.Path,
  seed: int,
  text: dict = QWEN2,
  vision: dict = VISION,
  tied: bool = True,
  slopes: str = "",
) -> None:
  """Pictures of odd sizes, two of them in row 0 and none in row 2; rows are padded on the right.

  Tiles are random all over, so that a patch of padding where none belongs shows. `sizes` holds row,
  height and width of each picture, `tiles` all their tiles one after another. Of the gradient of
  the answer loss, those parameters are kept whose key holds the pattern `slopes`.
  """
  random = np.random.default_rng(seed)
  side = vision["image_size"]
  pinpoints = [[a * side, b * side] for a, b in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]
  config = transformers.LlavaNextConfig(
    vision_config=transformers.CLIPVisionConfig(**vision),
    text_config=transformers.Qwen2Config(
      **text, tie_word_embeddings=tied, bos_token_id=None, eos_token_id=None
    ),
    image_token_index=IMAGE,
    image_seq_length=(side // vision["patch_size"]) ** 2,
    image_grid_pinpoints=pinpoints,
    vision_feature_layer=-2,
    tie_word_embeddings=tied,
  )
  model = randomised(transformers.LlavaNextForConditionalGeneration(config), seed)
  sizes = np.array([[0, 60, 10], [0, 15, 41], [1, 64, 45], [3, 10, 60]])
  counts = [image_size_to_num_patches(size, pinpoints, side) for size in sizes[:, 1:]]
  tiles = random.integers(0, 256, (sum(counts), side, side, 3), np.uint8)
  mean, std = (np.array(value, np.float32) for value in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
  pixels = np.zeros((len(sizes), max(counts), side, side, 3), np.float32)
  for image, part in zip(pixels, np.split(tiles, np.cumsum(counts)[:-1]), strict=True):
    image[: len(part)] = (part.astype(np.float32) / 255 - mean) / std
  images = dict(
    pixel_values=torch.tensor(pixels.transpose(0, 1, 4, 2, 3)),
    image_sizes=torch.tensor(sizes[:, 1:]),
  )
  with torch.no_grad():
    tokens = [len(image) for image in model.get_image_features(**images).pooler_output]

  words = lambda count: random.integers(0, 38, count)  # noqa: E731
  rows = []
  for row in range(4):
    parts = [words(2)]
    for count in (n for n, size in zip(tokens, sizes, strict=True) if size[0] == row):
      parts += [np.full(count, IMAGE), words(2)]
    rows.append(np.concatenate([*parts, words(4 + row)]))
  ids = np.zeros((4, max(map(len, rows))), np.int64)
  mask, loss_mask = np.zeros(ids.shape, bool), np.zeros(ids.shape, bool)
  for row, said in enumerate(rows):
    ids[row, : len(said)] = said
    mask[row, : len(said)] = True
    loss_mask[row, len(said) - 4 - row : len(said)] = True

  out = model(
    input_ids=torch.tensor(ids),
    attention_mask=torch.tensor(mask.astype(int)),
    labels=torch.tensor(np.where(loss_mask, ids, -100)),
    **images,
  )
  out.loss.backward()
  arrays = {
    "sizes": sizes,
    "tiles": tiles,
    "tokens": np.array(tokens),
    "ids": ids,
    "mask": mask,
    "loss_mask": loss_mask,
    "logits": out.logits.detach().numpy()[mask],
    "loss": out.loss.detach().numpy(),
  }
  write(folder, model, arrays)
  for parameter in model.parameters():  # those that no answer depends on have no gradient
    slope = parameter.grad
    parameter.data.copy_(torch.zeros_like(parameter) if slope is None else slope)
  with tempfile.TemporaryDirectory() as scratch:
    model.save_pretrained(scratch)  # renames the parameters, and so their slopes
    for key, value in load_file(f"{scratch}/model.safetensors").items():
      if re.search(slopes, key):
        arrays[f"slope {key}"] = value
  save_file(arrays, folder / "io.safetensors")


if __name__ == "__main__":
  here = pathlib.Path(__file__).parent
  qwen2(here / "qwen2_tied", seed=1, tied=True)
  qwen2(here / "qwen2_untied", seed=2, tied=False)
  clip(here / "clip", seed=3)
  llava(here / "llava", seed=4)
  llava_next(here / "llava_next", seed=5, slopes=SLOPES)
