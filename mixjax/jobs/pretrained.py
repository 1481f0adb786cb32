"""What a LLaVA-NeXT starts from: a folder of its own, or a Qwen2 and a CLIP that have never met.

Beside the weights there is what an exported folder needs for `transformers` to open it: it is laid
out before a run begins, so that what is amiss shows then and not after days of training.
"""

import dataclasses
import os
import pathlib
import shutil
from typing import Any

import jax
import tokenizers
from flax import nnx

from mixjax.data.encode import CHAT_TEMPLATE, IMAGE, Tokenizer, load_tokenizer
from mixjax.models import clip_config, hf, hf_config, hf_files, layers
from mixjax.models import mesh as mesh_lib
from mixjax.models.clip import ClipConfig
from mixjax.models.hf_processor import processor_files
from mixjax.models.llava import Projector
from mixjax.models.llava_next import LlavaNext, LlavaNextConfig
from mixjax.models.qwen2 import Qwen2Config


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """Folders: `model` of a LLaVA-NeXT, or of a Qwen2 and then `vision` of a CLIP.

  `tokenizer`, by default the model's, gets an <image> token if it has none.
  """

  model: str
  vision: str = ""
  tokenizer: str = ""

  def load_tokenizer(self) -> Tokenizer:
    """The tokenizer, with <image> and the chat template of training."""
    tokenizer = load_tokenizer(self.tokenizer or self.model)
    if IMAGE not in tokenizer.get_vocab():
      token = tokenizers.AddedToken(IMAGE, normalized=False, special=True)
      tokenizer.add_tokens([token], special_tokens=True)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer

  def config(self, tokenizer: Tokenizer, **running: Any) -> LlavaNextConfig:
    """The model; `running` sets remat, unroll, dtype and attention.

    Raises ValueError for a folder of another model, and where the model and the tokenizer do not
    go together.
    """
    image = tokenizer.convert_tokens_to_ids(IMAGE)
    if self.vision:
      tower = {name: running[name] for name in clip_config.RUNNING if name in running}
      config = LlavaNextConfig(
        hf_config.configured(self.model, "qwen2", Qwen2Config, **running),
        hf_config.configured(self.vision, "clip", ClipConfig, **tower).vision,
        image,
      )
    else:
      config = hf_config.configured(self.model, "llava_next", LlavaNextConfig, **running)
    if config.image_token_id != image:
      raise ValueError(
        f"{IMAGE} is token {image} of the tokenizer, and image_token_index of {self.model} is "
        f"{config.image_token_id}: give the tokenizer of this model"
      )
    if len(tokenizer) > config.text.vocab_size:
      raise ValueError(
        f"the tokenizer has {len(tokenizer)} tokens and {self.model} knows "
        f"{config.text.vocab_size}: give the tokenizer of this model"
      )
    return config

  def load(self, config: LlavaNextConfig, seed: int) -> LlavaNext:
    """The model, on the mesh that is set; `seed` draws a projector where there is none yet."""
    running = {name: getattr(config.text, name) for name in ("remat", "dtype", "attention")}
    if not self.vision:
      return hf.load_llava_next(self.model, **running)
    tower = {name: running[name] for name in clip_config.RUNNING if name in running}
    model = nnx.eval_shape(lambda: LlavaNext(config, rngs=nnx.Rngs(0)))
    model.text = hf.load_qwen2(self.model, **running)
    model.vision = hf.load_clip_vision(self.vision, **tower)
    d = config.text.hidden_size

    def between():
      rngs = nnx.Rngs(seed)
      projector = Projector(config.vision.hidden_size, d, rngs=rngs)
      return {"projector": projector, "image_newline": layers.normal(rngs, (d,), d)}

    mesh = jax.sharding.get_mesh()
    places = None if mesh.empty else mesh_lib.shardings(jax.eval_shape(between), mesh)
    for name, part in jax.jit(between, out_shardings=places)().items():
      setattr(model, name, part)
    return model

  def lay_out(self, config: LlavaNextConfig, tokenizer: Tokenizer, folder: os.PathLike) -> None:
    """Writes all of an exported folder but its weights: the `source` of `hf.save_llava_next`.

    Raises ValueError if the model's config.json says otherwise than the model.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    described = hf.read_config(self.model)
    if self.vision:
      vision = hf.read_config(self.vision)["vision_config"]
      described = {"model_type": "llava_next", "text_config": described, "vision_config": vision}
    for part in (described, described["text_config"], described["vision_config"]):
      for name in ("dtype", "torch_dtype", "transformers_version"):
        part.pop(name, None)
    hf_files.write_json(folder / "config.json", hf_config.merge(described, config.to_hf()))
    hf_config.exported(config, "float32", folder)
    tokenizer.save_pretrained(folder)
    for name, content in processor_files(config, IMAGE).items():
      hf_files.write_json(folder / name, content)
    generation = pathlib.Path(self.model) / "generation_config.json"
    if generation.exists():
      shutil.copyfile(generation, folder / generation.name)
