"""Images through the CLIP tower: one embedding an image for the atlas, patch tokens for the VLM."""

import math
from collections.abc import Iterable, Sequence

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, UInt8
from PIL import Image

from mixjax.corpus import pixels as pixels_lib
from mixjax.models import clip as clip_lib

BATCH = 128  # images a forward pass: one compiled shape


def decode(data: bytes, size: int) -> UInt8[np.ndarray, "s s 3"]:
  """Encoded bytes -> RGB pixels, resized to `size` a side. Raises pixels.BadPicture."""
  image = pixels_lib.rgb(pixels_lib.read(data))
  if image.size != (size, size):
    image = image.resize((size, size), Image.Resampling.BICUBIC)
  return np.asarray(image)


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


class Embedder:
  """The tower as a program for batches of BATCH images, split over this host's devices."""

  def __init__(self, clip: clip_lib.Clip):
    self.size = clip.config.vision.image_size
    count = math.gcd(BATCH, jax.local_device_count())
    # Weights are whole on each device: nothing is exchanged while images are embedded.
    self._mesh = Mesh(np.array(jax.local_devices()[:count]), ("data",), (AxisType.Explicit,))
    self._split = NamedSharding(self._mesh, P("data"))
    graphdef, params = nnx.split(clip)
    self._params = jax.device_put(params, NamedSharding(self._mesh, P()))
    self._run = jax.jit(
      lambda params, batch: tower(nnx.merge(graphdef, params), clip_lib.preprocess(batch))
    )

  def __call__(
    self, images: Sequence[UInt8[np.ndarray, "s s 3"]]
  ) -> tuple[Float[np.ndarray, "n e"], Float[np.ndarray, "n p d"]]:
    """Embeddings float32[n, e] of unit norm and features float16[n, p, d] of one image at least."""
    embeddings, features = [], []
    for batch, count in _batches(images):
      with jax.set_mesh(self._mesh):
        patches, embedding = self._run(self._params, jax.device_put(batch, self._split))
      embeddings.append(np.asarray(embedding)[:count])
      features.append(np.asarray(patches, np.float16)[:count])
    return np.concatenate(embeddings), np.concatenate(features)


def embed(
  clip: clip_lib.Clip, images: Sequence[UInt8[np.ndarray, "s s 3"]]
) -> tuple[Float[np.ndarray, "n e"], Float[np.ndarray, "n p d"]]:
  """Embeddings float32[n, e] of unit norm and features float16[n, p, d] of all images."""
  return Embedder(clip)(images)


def _batches(images: Sequence[np.ndarray]) -> Iterable[tuple[np.ndarray, int]]:
  """Full batches of BATCH; the last is filled up with copies of its first image."""
  for at in range(0, len(images), BATCH):
    part = np.stack(images[at : at + BATCH])
    count = len(part)
    if count < BATCH:
      part = np.concatenate([part, np.repeat(part[:1], BATCH - count, axis=0)])
    yield part, count
