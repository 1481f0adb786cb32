"""Configs that are wrong, and what an export takes from its source."""

import json
import shutil

import pytest
from golden_models import GOLDEN, QWEN2, refusal, shards

from mixjax.models import hf


@pytest.fixture
def folder(tmp_path):
  """Our own export of the golden in several small files."""
  model = hf.load_qwen2(QWEN2)
  hf.save_qwen2(model, tmp_path / "model", max_shard_size=4000)
  return tmp_path / "model"


def edit(path, **changes):
  """Sets entries of a JSON file; None takes them out."""
  value = json.loads(path.read_text())
  value |= changes
  path.write_text(json.dumps({k: v for k, v in value.items() if v is not None}))


def test_what_goes_with_the_weights_comes_from_the_source(tmp_path):
  source = tmp_path / "source"
  shutil.copytree(QWEN2, source)
  edit(source / "config.json", max_position_embeddings=131072, eos_token_id=7)
  for name in ("tokenizer.json", "generation_config.json", "preprocessor_config.json"):
    (source / name).write_text(json.dumps({"name": name}))
  model = hf.load_qwen2(source)
  hf.save_qwen2(model, tmp_path / "out", "bfloat16", source=source)
  for name in ("tokenizer.json", "generation_config.json", "preprocessor_config.json"):
    assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
  assert not (tmp_path / "out" / "io.safetensors").exists()
  config = json.loads((tmp_path / "out" / "config.json").read_text())
  assert config["max_position_embeddings"] == 131072 and config["eos_token_id"] == 7
  assert config["dtype"] == "bfloat16"
  assert hf.load_qwen2(tmp_path / "out").config == model.config
  with pytest.raises(ValueError, match="has no tokenizer"):
    hf.save_qwen2(model, tmp_path / "other", source=QWEN2)
  assert not (tmp_path / "other").exists()


def test_a_source_that_contradicts_the_model_is_refused(tmp_path):
  source = tmp_path / "source"
  shutil.copytree(GOLDEN / "llava", source)
  model = hf.load_llava(source)
  (source / "tokenizer.json").write_text("{}")
  edit(source / "config.json", image_token_id=5, image_token_index=None)
  with pytest.raises(ValueError, match="image_token_index"):
    hf.save_llava(model, tmp_path / "out", source=source)


CONFIGS = {
  "not there": (None, "missing file: config.json"),
  "not JSON": ("{", "config.json is not JSON"),
  "a list": ("[]", "config.json is not a JSON object"),
  "without a type": (dict(model_type=None), "config.json has no model_type; 'qwen2' is wanted"),
  "another type": (dict(model_type="llama"), "config.json is of a 'llama' model"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_wrong_config_and_wrong_files_are_told_together(case, folder):
  change, says = CONFIGS[case]
  shards(folder)[0].unlink()
  if change is None:
    (folder / "config.json").unlink()
  elif isinstance(change, str):
    (folder / "config.json").write_text(change)
  else:
    edit(folder / "config.json", **change)
  config, file = refusal(folder)
  assert config.startswith(says)
  assert file.startswith("missing file: model-00001")


def test_every_odd_entry_of_a_config_is_named(tmp_path):
  shutil.copytree(GOLDEN / "llava", tmp_path, dirs_exist_ok=True)
  config = json.loads((tmp_path / "config.json").read_text())
  config["text_config"] |= {"hidden_size": "16", "num_hidden_layers": 0, "rms_norm_eps": -1}
  del config["vision_config"]
  (tmp_path / "config.json").write_text(json.dumps(config))
  assert sorted(refusal(tmp_path, hf.load_llava)) == [
    "config.json: text_config.hidden_size is '16', not a whole number from 1 on",
    "config.json: text_config.num_hidden_layers is 0, not a whole number from 1 on",
    "config.json: text_config.rms_norm_eps is -1, not a positive number",
    "config.json: vision_config is missing",
  ]


def test_every_variant_that_is_not_computed_is_named(tmp_path):
  shutil.copytree(QWEN2, tmp_path, dirs_exist_ok=True)
  rope = {"rope_type": "yarn", "rope_theta": 1e4}
  edit(tmp_path / "config.json", hidden_act="gelu", rope_parameters=rope, use_sliding_window=True)
  assert sorted(refusal(tmp_path)) == [
    "config.json: hidden_act is 'gelu'; only 'silu' is supported",
    "config.json: rope type is 'yarn'; only 'default' is supported",
    "config.json: use_sliding_window is True; only False is supported",
  ]
