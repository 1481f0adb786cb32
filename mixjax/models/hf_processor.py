"""The files from which `transformers`, 4 or 5, makes the LlavaNextProcessor of a model."""

from typing import Any

from mixjax.models import clip
from mixjax.models.llava_next import LlavaNextConfig

BICUBIC = 3  # in PIL's numbering


def processor_files(config: LlavaNextConfig, image_token: str) -> dict[str, dict[str, Any]]:
  """{name of file: content}: pictures are prepared as `data.tiles` prepares them."""
  side = config.vision.image_size
  return {
    "preprocessor_config.json": {
      "image_processor_type": "LlavaNextImageProcessor",
      "processor_class": "LlavaNextProcessor",
      "image_grid_pinpoints": [list(size) for size in config.pinpoints],
      "size": {"shortest_edge": side},
      "crop_size": {"height": side, "width": side},
      "do_resize": True,
      "do_center_crop": True,
      "do_rescale": True,
      "do_normalize": True,
      "do_pad": True,
      "do_convert_rgb": True,
      "resample": BICUBIC,
      "rescale_factor": 1 / 255,
      "image_mean": list(clip.MEAN),
      "image_std": list(clip.STD),
    },
    "processor_config.json": {
      "processor_class": "LlavaNextProcessor",
      "image_token": image_token,
      "patch_size": config.vision.patch_size,
      "num_additional_image_tokens": 1,  # the class token, which "default" leaves out again
      "vision_feature_select_strategy": "default",
    },
  }
