"""Tiny random torch models and their answers: parity is tested where torch is not installed.

    python tests/golden/make_golden.py

writes one folder a model beside this file: what `save_pretrained` writes, and io.safetensors with
inputs and outputs. Tests call the same functions with other seeds when torch is there.
"""

import pathlib

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file

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


if __name__ == "__main__":
  here = pathlib.Path(__file__).parent
  qwen2(here / "qwen2_tied", seed=1, tied=True)
  qwen2(here / "qwen2_untied", seed=2, tied=False)
  clip(here / "clip", seed=3)
  llava(here / "llava", seed=4)
