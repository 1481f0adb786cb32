"""Trains the gallery's stand-ins for pretrained checkpoints, on rows apart from every other split.

The paper starts from CLIP ViT-L/14-336 and Qwen2; a laptop cannot. So, from pretrain rows alone:

1. `tokenizer/`: a byte-level BPE on their texts.
2. `clip/`: a small CLIP with a convolutional stem, trained with its contrastive loss and two more.
   As in RegionCLIP, each patch must name what stands there; then, as in CoCa, a small decoder must
   also answer from the patch tokens. So these hold text, places and counts, as the features of a
   CLIP of 400 million pairs do. Decoder and names are thrown away. Naming comes first, since
   reading begins all at once after tens of thousands of pictures, and a step of it costs half.
3. `proxy/`, `target/`: LLaVA checkpoints of two sizes. Each reads text, all rows without their
   images or beside a picture of something else, so that answer formats and priors are known before
   mid-training as they are to any Qwen2; and is aligned (stage 1) on captions, transcriptions and
   captions with regions. None has answered a question about an image: that is what the mixtures
   teach.

Half of the pretrain pictures are in the styles kept for benchmarks, since the CLIP and Qwen2 of the
paper have seen the web; their sources are in no other split.
"""

import dataclasses
import functools
import io
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from etils import epath
from flax import nnx
from jaxtyping import Array, Bool, Float, Int
from PIL import Image

from mixjax.atlas import embed
from mixjax.corpus import tasks
from mixjax.corpus.gallery import gallery
from mixjax.corpus.gallery.picture import Thing
from mixjax.data import encode
from mixjax.jobs.workdir import claim
from mixjax.models import clip as clip_lib
from mixjax.models import hf
from mixjax.models.llava import Llava, LlavaConfig
from mixjax.models.qwen2 import Qwen2Config
from mixjax.training import loss
from mixjax.training.optimizer import OptimizerConfig, make_optimizer

# What share of a patch a thing must cover to stand there.
COVERED = 0.15


@dataclasses.dataclass(frozen=True)
class Stage:
  """A pretraining stage of `steps` updates on batches of `batch_size` images or rows."""

  steps: int
  batch_size: int
  learning_rate: float


@dataclasses.dataclass(frozen=True)
class StandinsConfig:
  """Sizes and lengths of everything; `pictures` counts pretrain pictures a domain."""

  pictures: int
  vocab_size: int
  clip: clip_lib.ClipConfig
  decoder: Qwen2Config
  proxy: Qwen2Config
  target: Qwen2Config
  naming_stage: Stage
  clip_stage: Stage
  base_stage: Stage
  seed: int = 0
  workers: int = 2


@dataclasses.dataclass(frozen=True)
class PretrainRows:
  """Pretrain pictures uint8[n, s, s, 3] and what they show; per row its picture, task, prompt and
  answer."""

  images: np.ndarray
  things: list[tuple[Thing, ...]]
  picture: np.ndarray
  task: list[str]
  prompt: list[str]
  answer: list[str]


def pretrain_rows(config: StandinsConfig) -> PretrainRows:
  """Renders the pretrain split, the same number of pictures a domain, nothing mislabelled."""
  counts = dict.fromkeys(gallery.DOMAINS, config.pictures)
  rendered = gallery.render_all(counts, "pretrain", config.seed, config.workers)
  images = np.stack([np.asarray(Image.open(io.BytesIO(r.png))) for r in rendered])
  found = [(i, *row) for i, r in enumerate(rendered) for row in gallery.answers(r.picture)]
  picture, task, prompt, answer = zip(*found, strict=True)
  things = [r.picture.things for r in rendered]
  return PretrainRows(images, things, np.array(picture), list(task), list(prompt), list(answer))


def _named(rows: PretrainRows, tokenizer, grid: int, vocab_size: int) -> np.ndarray:
  """Tokens of the labels that stand at each patch: bool[n, grid^2, vocab], eight to a byte."""
  edges = np.arange(grid + 1) / grid
  packed = np.zeros((len(rows.images), grid * grid, vocab_size // 8), np.uint8)
  for i, things in enumerate(rows.things):
    here = np.zeros((grid * grid, vocab_size), bool)
    for thing in things:
      top, left, bottom, right = thing.box
      high, wide = (
        np.clip(np.minimum(edges[1:], end) - np.maximum(edges[:-1], start), 0, None) * grid
        for start, end in ((top, bottom), (left, right))
      )
      covered = np.outer(high, wide).ravel() > COVERED
      here[np.ix_(covered, tokenizer(thing.label)["input_ids"])] = True
    packed[i] = np.packbits(here, axis=-1)
  return packed


def _optimizer(stage: Stage) -> optax.GradientTransformation:
  return make_optimizer(
    OptimizerConfig(stage.learning_rate, warmup=0.05, weight_decay=0.05), stage.steps
  )


def _run(name: str, stage: Stage, params, loss_fn, batch_of):
  """Plain loop: `batch_of(step)` -> numpy batch, `loss_fn(params, batch)` -> (loss, metrics)."""
  tx = _optimizer(stage)
  opt_state = tx.init(params)

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(params, opt_state, batch):
    (_, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, batch)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, metrics

  began = time.time()
  for i in range(stage.steps):
    params, opt_state, metrics = step(params, opt_state, batch_of(i))
    if (i + 1) % 100 == 0 or i + 1 == stage.steps:
      figures = {k: round(float(v), 4) for k, v in metrics.items()}
      logging.info("%s %d/%d %s %.0fs", name, i + 1, stage.steps, figures, time.time() - began)
  return params


def _row_arrays(
  encoder: encode.Encoder, rows: PretrainRows, text_only: bool
) -> dict[str, np.ndarray]:
  count = len(rows.prompt)
  arrays = encoder.encode_many(rows.prompt, rows.answer, [not text_only] * count, rows.prompt)
  arrays.pop("truncated")
  return arrays


def _naming(names, named: Bool[Array, "b p v"]) -> Float[Array, ""]:
  """Cross-entropy of what stands at each patch, given its logits; pictures count alike.

  Patches where nothing stands say nothing: a loss over all of them is small without reading.
  """
  count = named.sum(-1)
  missed = -jnp.sum(named * jax.nn.log_softmax(names), -1) / jnp.maximum(count, 1)
  there = count > 0
  return jnp.mean(jnp.sum(missed * there, -1) / jnp.maximum(there.sum(-1), 1))


def _train_clip(config: StandinsConfig, rows: PretrainRows, encoder: encode.Encoder, tokenizer):
  """Contrastive and naming, then generative as well; returns the CLIP."""
  text_config = dataclasses.replace(config.clip.text, eos_token_id=encoder.end_id)
  clip_config = dataclasses.replace(config.clip, text=text_config)
  clip = clip_lib.Clip(clip_config, rngs=nnx.Rngs(config.seed))
  llava_config = LlavaConfig(config.decoder, config.clip.vision, encoder.image_id)
  decoder = Llava(llava_config, rngs=nnx.Rngs(config.seed + 1), tower=False)
  clip_def, clip_params = nnx.split(clip)
  decoder_def, decoder_params = nnx.split(decoder)

  rows_of = [np.flatnonzero(rows.picture == i) for i in range(len(rows.images))]
  captions = [rows.answer[r[0]] for r in rows_of]  # the first row of a picture is its caption
  length = config.clip.text.max_position_embeddings
  ids = np.full((len(captions), length), encoder.end_id, np.int32)
  mask = np.zeros((len(captions), length), bool)
  for i, caption in enumerate(captions):
    said = [*tokenizer(caption)["input_ids"][: length - 1], encoder.end_id]
    ids[i, : len(said)], mask[i, : len(said)] = said, True
  encoded = _row_arrays(encoder, rows, text_only=False)
  vision = config.clip.vision
  named = _named(rows, tokenizer, vision.image_size // vision.patch_size, config.vocab_size)
  # A picture with text counts twice: there is most to learn.
  text = [
    task == tasks.OCR and a != tasks.NO_TEXT for task, a in zip(rows.task, rows.answer, strict=True)
  ]
  odds = np.bincount(rows.picture, np.array(text, float)) + 1
  odds /= odds.sum()

  def loss_fn(params, batch, generates: bool):
    clip = nnx.merge(clip_def, params["clip"])
    decoder = nnx.merge(decoder_def, params["decoder"])
    pixels = clip_lib.preprocess(batch["images"])
    patches, image = embed.tower(clip, pixels)
    text = clip.text_embedding(batch["caption_ids"], batch["caption_mask"])
    scale = jnp.exp(jnp.minimum(clip.logit_scale[...], jnp.log(100.0)))
    logits = scale * image @ text.T
    # Captions repeat: every equal caption in the batch is as right as the picture's own.
    same = jnp.all(batch["caption_ids"][:, None] == batch["caption_ids"][None], axis=-1)
    same = same / same.sum(axis=1, keepdims=True)
    contrastive = -0.5 * (
      jnp.mean(jnp.sum(same * jax.nn.log_softmax(logits, 1), 1))
      + jnp.mean(jnp.sum(same * jax.nn.log_softmax(logits, 0), 0))
    )
    naming = _naming(patches @ params["names"], batch["named"])
    metrics = {"contrastive": contrastive, "naming": naming}
    total = 0.3 * contrastive + naming
    if generates:
      features = jnp.repeat(patches, len(batch["rows"]["ids"]) // len(patches), 0)
      batch["rows"]["features"] = features
      metrics["generative"] = loss.answer_loss(decoder, batch["rows"], encoder.image_tokens + 1)
      total += metrics["generative"]
    return total, metrics

  def batch_of(stage, salt, step):
    rng = np.random.default_rng([config.seed, salt, step])
    pictures = rng.choice(len(odds), stage.batch_size, p=odds)
    chosen = np.concatenate([rng.choice(rows_of[i], 2, replace=False) for i in pictures])
    return {
      "images": rows.images[pictures],
      "caption_ids": ids[pictures],
      "caption_mask": mask[pictures],
      "named": np.unpackbits(named[pictures], axis=-1).astype(np.float32),
      "rows": {k: v[chosen] for k, v in encoded.items()},
    }

  params = {
    "clip": clip_params,
    "decoder": decoder_params,
    "names": jnp.zeros((vision.hidden_size, config.vocab_size)),
  }
  stages = (("naming", config.naming_stage, False), ("clip", config.clip_stage, True))
  for salt, (name, stage, generates) in enumerate(stages, 3):
    step_loss = functools.partial(loss_fn, generates=generates)
    params = _run(name, stage, params, step_loss, functools.partial(batch_of, stage, salt))
  return nnx.merge(clip_def, params["clip"])


def _base_rows(
  rng: np.random.Generator, count: int, rows: PretrainRows, aligned: Int[np.ndarray, " a"]
) -> tuple[Int[np.ndarray, " i"], Int[np.ndarray, " t"], Int[np.ndarray, " n"]]:
  """Rows with an image, rows without, and the picture of each: half of `count` are `aligned` rows
  with their own picture, a quarter any rows beside any picture, a quarter text alone."""
  quarter = count // 4
  looked = rng.choice(aligned, 2 * quarter)
  beside, spoken = rng.integers(len(rows.prompt), size=(2, quarter))
  elsewhere = rng.integers(len(rows.images), size=2 * quarter)  # of these the last are not seen
  shown = np.concatenate([rows.picture[looked], elsewhere])
  return np.concatenate([looked, beside]), spoken, shown


def _train_base(
  config: StandinsConfig, name: str, qwen: Qwen2Config, clip, features, rows, encoder, seed: int
):
  """A language model that reads and is aligned: in half of each batch no image helps."""
  llava_config = LlavaConfig(qwen, config.clip.vision, encoder.image_id)
  graphdef, params = nnx.split(Llava(llava_config, rngs=nnx.Rngs(seed), tower=False))
  aligned = np.flatnonzero(np.isin(rows.task, (tasks.CAPTION, tasks.OCR, tasks.GROUNDED)))
  seen = _row_arrays(encoder, rows, text_only=False)
  read = _row_arrays(encoder, rows, text_only=True)

  def loss_fn(params, batch):
    value = loss.answer_loss(nnx.merge(graphdef, params), batch, encoder.image_tokens + 1)
    return value, {"loss": value}

  def batch_of(step):
    rng = np.random.default_rng([seed, 2, step])
    with_image, text_only, shown = _base_rows(rng, config.base_stage.batch_size, rows, aligned)
    batch = {k: np.concatenate([seen[k][with_image], read[k][text_only]]) for k in seen}
    return batch | {"features": features[shown].astype(np.float32)}

  params = _run(name, config.base_stage, params, loss_fn, batch_of)
  llava = nnx.merge(graphdef, params)
  llava.vision = nnx.data(clip.vision)
  return llava


def parse(config: dict) -> StandinsConfig:
  """ConfigDict's plain dict -> dataclasses; ConfigDict ends here."""
  clip = config["clip"]
  return StandinsConfig(
    **{k: v for k, v in config.items() if k != "job"}
    | dict(
      clip=clip_lib.ClipConfig(
        vision=clip_lib.ClipVisionConfig(**clip["vision"]),
        text=clip_lib.ClipTextConfig(**clip["text"]),
        projection_dim=clip["projection_dim"],
      ),
      **{name: Qwen2Config(**config[name]) for name in ("decoder", "proxy", "target")},
      **{name: Stage(**config[name]) for name in ("naming_stage", "clip_stage", "base_stage")},
    )
  )


def main(config: dict, workdir: str) -> None:
  """The job as the front door calls it."""
  logging.set_verbosity(logging.INFO)
  run(parse(config), claim(workdir, config))


def run(config: StandinsConfig, workdir: epath.PathLike) -> None:
  """Writes tokenizer/, clip/, proxy/ and target/; what is finished is not done again."""
  folder = epath.Path(workdir)
  folder.mkdir(parents=True, exist_ok=True)
  rows = pretrain_rows(config)
  logging.info("%d pretrain pictures, %d rows", len(rows.images), len(rows.prompt))
  if not (folder / "tokenizer" / "tokenizer.json").exists():
    texts = [f"{p}\n{a}" for p, a in zip(rows.prompt, rows.answer, strict=True)]
    encode.train_tokenizer(texts, config.vocab_size, folder / "tokenizer")
  tokenizer = encode.load_tokenizer(folder / "tokenizer")
  encoder = encode.Encoder(tokenizer)
  if not (folder / "clip" / "model.safetensors").exists():
    hf.save_clip(_train_clip(config, rows, encoder, tokenizer), folder / "clip", dtype="float16")
  clip = hf.load_clip(folder / "clip")
  _, features = embed.embed(clip, list(rows.images))
  for i, (name, qwen) in enumerate((("proxy", config.proxy), ("target", config.target))):
    if (folder / name / "model.safetensors").exists():
      continue
    llava = _train_base(config, name, qwen, clip, features, rows, encoder, config.seed + 10 + i)
    hf.save_llava(llava, folder / name, dtype="float16")
  sizes = {p.parent.name: p.stat().length for p in folder.glob("*/model.safetensors")}
  logging.info("stand-ins written to %s: %s bytes", folder, json.dumps(sizes))
