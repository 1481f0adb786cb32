"""Images through the CLIP tower: one embedding an image for the atlas, patch tokens for the VLM."""

import io
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8
from PIL import Image, UnidentifiedImageError

from mixjax.models import clip as clip_lib

BATCH = 128  # images a forward pass: one compiled shape


class UnreadableImage(ValueError):
  """Bytes that are not a picture."""


def decode(data: bytes, size: int) -> UInt8[np.ndarray, "s s 3"]:
  """Encoded bytes -> RGB pixels, resized to `size` a side. Raises UnreadableImage saying why."""
  if not data:
    raise UnreadableImage("missing or empty file")
  try:
    with Image.open(io.BytesIO(data)) as image:
      image = image.convert("RGB")
      if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
      return np.asarray(image)
  except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
    raise UnreadableImage(str(error)) from error


def tower(
  clip: clip_lib.Clip, pixels: Float[Array, "b h w 3"]
) -> tuple[Float[Array, "b p d"], Float[Array, "b e"]]:
  """(patch tokens of the penultimate layer, L2-normalised embedding) in one pass of the tower."""
  vision = clip.vision
  below = vision.hidden(pixels, layer=-2)
  last = jax.tree.map(lambda weight: weight[-1:], vision.layers)
  top = clip_lib.encode(vision.config, last, below)
  pooled = vision.post_norm(top[:, :1])[:, 0]
  return below[:, 1:], clip_lib.unit(clip.vision_projection(pooled))


def embed(
  clip: clip_lib.Clip, images: Sequence[UInt8[np.ndarray, "s s 3"]]
) -> tuple[Float[np.ndarray, "n e"], Float[np.ndarray, "n p d"]]:
  """Embeddings float32[n, e] of unit norm and features float16[n, p, d] of all images."""
  graphdef, params = nnx.split(clip)

  @jax.jit
  def run(params, batch):
    return tower(nnx.merge(graphdef, params), clip_lib.preprocess(batch))

  embeddings, features = [], []
  for batch, count in _batches(images):
    patches, embedding = run(params, jnp.asarray(batch))
    embeddings.append(np.asarray(embedding)[:count])
    features.append(np.asarray(patches, np.float16)[:count])
  return np.concatenate(embeddings), np.concatenate(features)


def _batches(images: Sequence[np.ndarray]) -> Iterable[tuple[np.ndarray, int]]:
  """Full batches of BATCH; the last is filled up with copies of its first image."""
  for at in range(0, len(images), BATCH):
    part = np.stack(images[at : at + BATCH])
    count = len(part)
    if count < BATCH:
      part = np.concatenate([part, np.repeat(part[:1], BATCH - count, axis=0)])
    yield part, count
