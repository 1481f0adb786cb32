"""The train job of a real model: from a Hugging Face folder to another, stopped and resumed."""

import dataclasses
import io
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from safetensors.numpy import load_file
from tiny import CONFIG

from configs import train as train_config
from mixjax.atlas.shards import write_cells
from mixjax.corpus.example import Example, Turn
from mixjax.data import encode
from mixjax.data import tiles as tiles_lib
from mixjax.data.packed_loader import PackedLoader
from mixjax.data.stages import Stages
from mixjax.jobs import train_pixels
from mixjax.jobs.pretrained import Pretrained
from mixjax.jobs.workdir import claim
from mixjax.models import clip, hf
from mixjax.models import mesh as mesh_lib
from mixjax.models.clip_config import ClipConfig, ClipTextConfig
from mixjax.models.llava_next import LlavaNext, Tiles

SIZES = ((28, 56), (60, 30), (20, 20))


def picture(seed):
  height, width = SIZES[seed % len(SIZES)]
  return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def encoded(image):
  file = io.BytesIO()
  image.save(file, "PNG")
  return file.getvalue()


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
  """Two cells of questions about noise."""
  folder = tmp_path_factory.mktemp("corpus") / "cells"
  examples = [
    Example(f"{i}", ("caption", "vqa")[i % 2], (Turn("What?", "small" if i % 2 else "A thing."),))
    for i in range(24)
  ]
  examples = [
    dataclasses.replace(one, image_keys=(one.key,), images=(encoded(picture(i)),))
    for i, one in enumerate(examples)
  ]
  write_cells(examples, lambda _: "noise", folder)
  return folder


@pytest.fixture(scope="module")
def frame(tmp_path_factory):
  """The folder of a tiny LLaVA-NeXT, all but the weights."""
  folder = tmp_path_factory.mktemp("source")
  encode.train_tokenizer(["What is this? A small thing."] * 3, 400, folder)
  (folder / "config.json").write_text(json.dumps(CONFIG.to_hf()))
  return folder


@pytest.fixture(scope="module")
def source(frame):
  """The whole folder."""
  hf.save_llava_next(jax.jit(lambda: LlavaNext(CONFIG, rngs=nnx.Rngs(0)))(), frame)
  return frame


@pytest.fixture(scope="module")
def config(source, cells):
  """The job's config, with some options changed."""

  def config(**options):
    options = {
      "model": source,
      "cells": cells,
      "steps": 6,
      "rows": 8,
      "seq": 64,
      "image_tokens": 40,
      "tiles": 8,
      "tensor": 2,
      "learning_rate": 3e-3,
      "vision_rate": 1e-3,
      "dtype": "float32",
      "export": "float32",
      "log_every": 2,
      "save_every": 2,
      "loss_chunk": 16,
    } | options
    arg = ",".join(["pixels", *(f"{name}={value}" for name, value in options.items())])
    return train_config.get_config(arg).to_dict()

  return config


@pytest.fixture(scope="module")
def run(config):
  def run(workdir, **options):
    train_pixels.main(config(**options), str(workdir))

  return run


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
  """The workdir of a run that nothing stopped."""
  workdir = tmp_path_factory.mktemp("whole")
  run(workdir)
  return workdir


def losses(workdir):
  return [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").open()]


@pytest.mark.slow
def test_a_run_learns_and_says_what_it_saw(whole):
  assert losses(whole)[-1] < losses(whole)[0] - 0.2
  result = json.loads((whole / "result.json").read_text())
  assert result["mesh"] == {"data": 4, "model": 2}
  counts = result["counts"]
  seen = {cell: entry["realised"] for cell, entry in counts.items() if entry["realised"]}
  assert set(seen) == {"noise/caption", "noise/vqa"} and min(seen.values()) > 20


@pytest.mark.slow
def test_rows_that_pass_in_parts_give_the_same_run(run, whole, tmp_path):
  run(tmp_path, accumulate=2)
  np.testing.assert_allclose(losses(tmp_path), losses(whole), rtol=1e-5)


@pytest.mark.slow
def test_stopped_and_resumed_gives_the_same_bits(run, source, whole, tmp_path):
  def stopped(*args, real=PackedLoader.dataset, **options):
    for i, batch in enumerate(real(*args, **options)):
      if i == 3:
        raise KeyboardInterrupt
      yield batch

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(PackedLoader, "dataset", stopped)
    with pytest.raises(KeyboardInterrupt):
      run(tmp_path)
  assert not (tmp_path / "model").exists()
  assert json.loads((tmp_path / "seconds.json").read_text()) > 0
  (tmp_path / "seconds.json").write_text("1000.0")
  with pytest.MonkeyPatch.context() as patch:  # what is resumed reads no weights of the source
    patch.setattr(Pretrained, "load", None)
    run(tmp_path)
  assert losses(tmp_path) == losses(whole)
  assert json.loads((tmp_path / "result.json").read_text())["seconds"] > 1000
  ours, theirs = (folder / "model" / "model.safetensors" for folder in (tmp_path, whole))
  assert ours.read_bytes() == theirs.read_bytes()
  assert ours.read_bytes() != (source / "model.safetensors").read_bytes()


POD = """
import json, sys, jax
jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
from mixjax.jobs import train_pixels
train_pixels.main(json.loads(sys.argv[3]), sys.argv[4])
"""


@pytest.mark.slow
def test_two_processes_go_on_with_what_one_began(config, whole, tmp_path):
  shutil.copytree(whole, tmp_path / "run")
  shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")  # as if killed after the fourth step
  (tmp_path / "run" / "checkpoints" / "manifest-6.json").unlink()
  shutil.rmtree(tmp_path / "run" / "model")
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
  said = [json.dumps(config(), default=str), str(tmp_path / "run")]
  jobs = [
    subprocess.Popen(
      [sys.executable, "-c", POD, address, str(process), *said],
      env=env,
      cwd=pathlib.Path(__file__).parent.parent,
    )
    for process in range(2)
  ]
  assert [job.wait(timeout=600) for job in jobs] == [0, 0]
  np.testing.assert_allclose(losses(tmp_path / "run"), losses(whole), rtol=1e-5)
  assert (tmp_path / "run" / "checkpoints" / "manifest-6.json").exists()
  ours, theirs = (
    load_file(folder / "model" / "model.safetensors") for folder in (tmp_path / "run", whole)
  )
  for key, array in theirs.items():
    np.testing.assert_allclose(ours[key], array, rtol=0, atol=1e-4, err_msg=key)


@pytest.mark.slow
def test_transformers_opens_what_is_exported_and_computes_the_same(whole):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  processor = transformers.AutoProcessor.from_pretrained(whole / "model")
  theirs = transformers.AutoModelForImageTextToText.from_pretrained(
    whole / "model", attn_implementation="eager"
  )
  asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
  text = processor.apply_chat_template(asked, add_generation_prompt=True)
  image = picture(1)
  inputs = processor(images=image, text=text, return_tensors="pt")
  with torch.no_grad():
    expected = theirs(**inputs).logits

  model = hf.load_llava_next(whole / "model")
  geometry, size = model.config.anyres, tiles_lib.size_of(image)
  pixels = clip.preprocess(jnp.asarray(tiles_lib.cut(image, geometry)[None]))
  np.testing.assert_allclose(
    pixels[0].transpose(0, 3, 1, 2), inputs["pixel_values"][0].numpy(), atol=1e-5
  )
  index = jnp.asarray(geometry.index([[size]], geometry.num_tokens(size)))
  features = model.encode_image(pixels)
  logits = model.logits(model(jnp.asarray(inputs["input_ids"].numpy()), Tiles(features, index)))
  np.testing.assert_allclose(logits, expected.numpy(), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_qwen2_and_a_clip_become_one_model(source, tmp_path):
  """The weights of both, a projector by the seed, and a folder that says what each said."""
  joined = hf.load_llava_next(source)
  clip_config = ClipConfig(CONFIG.vision, ClipTextConfig(16, 32, 1, 2, vocab_size=50))
  hf.save_clip(jax.jit(lambda: clip.Clip(clip_config, rngs=nnx.Rngs(1)))(), tmp_path / "clip")
  hf.save_qwen2(joined.text, tmp_path / "qwen2")
  described = json.loads((tmp_path / "qwen2" / "config.json").read_text())
  described |= {"max_position_embeddings": 77, "eos_token_id": 2}
  (tmp_path / "qwen2" / "config.json").write_text(json.dumps(described))
  start = Pretrained(str(tmp_path / "qwen2"), str(tmp_path / "clip"), str(source))
  tokenizer = start.load_tokenizer()
  config = start.config(tokenizer)
  with jax.set_mesh(mesh_lib.make_mesh(4, 2)):
    model = start.load(config, seed=0)
  start.lay_out(config, tokenizer, tmp_path / "frame")
  hf.save_llava_next(model, tmp_path / "out", source=tmp_path / "frame")
  again = hf.load_llava_next(tmp_path / "out")
  for name in ("embedding", "head"):
    ours, theirs = getattr(again.text, name)[...], getattr(joined.text, name)[...]
    np.testing.assert_array_equal(ours, theirs)
  tower = hf.load_clip(tmp_path / "clip").vision
  np.testing.assert_array_equal(again.vision.positions[...], tower.positions[...])
  assert np.std(again.projector.up.kernel[...]) == pytest.approx(32**-0.5, rel=0.1)
  said = hf.read_config(tmp_path / "out")
  assert said["text_config"]["max_position_embeddings"] == 77
  assert said["image_token_index"] == tokenizer.convert_tokens_to_ids("<image>")


def test_a_curriculum_and_caps_reach_the_loader(frame, cells, tmp_path):
  stages = [{"step": 0, "mixture": "uniform"}, {"step": 40, "mixture": {"noise/vqa": 1.0}}]
  (tmp_path / "stages.json").write_text(json.dumps({"stages": stages}))
  arg = (
    f"pixels,model={frame},cells={cells},mixture={tmp_path / 'stages.json'},steps=200,rows=8,"
    "seq=64,image_tokens=40,tiles=8,repetition=50"
  )
  tokenizer = Pretrained(str(frame)).load_tokenizer()

  def load(exhausted):
    config = train_config.get_config(f"{arg},exhausted={exhausted}").to_dict()
    shape = train_pixels.packed_shape(config, CONFIG, train_pixels.make_mesh(2))
    return train_pixels.make_loader(config, CONFIG, tokenizer, shape, tmp_path / "lengths")

  loader, plan = load("repeat")
  start = loader.start_of(40)
  assert [stage.start for stage in plan.stages] == [0, start]
  assert plan.stages.stages[1].weights["noise/vqa"] == 1.0
  # 12 rows of each, 50 times.
  assert plan.run_out == {"noise/caption": 1200, "noise/vqa": 1200}
  assert 40 <= loader.step_of(start, 200) < 200 and loader.step_of(10 * start, 200) is None
  assert loader.counts(200)["noise/vqa"]["epochs"] > 50
  with pytest.raises(ValueError, match=r"'noise/\w+' would give \d+ samples and has 600"):
    load("stop")
  with pytest.raises(ValueError, match="every cell with weight has run out at sample 1200"):
    load("redistribute")


def test_what_cannot_run_claims_nothing_and_what_is_claimed_stays(
  frame, cells, tmp_path, monkeypatch
):
  arg = (
    f"pixels,model={frame},cells={cells},steps=20,rows=8,seq=64,image_tokens=40,tiles=8,tensor=2"
  )
  config = train_config.get_config(f"{arg},repetition=1").to_dict()
  with pytest.raises(ValueError, match=r"'noise/\w+' would give \d+ samples and has 12"):
    train_pixels.main(config, str(tmp_path))
  assert {path.name for path in tmp_path.iterdir()} == {"lengths"}
  Stages.of({"noise/vqa": 1.0}).save(tmp_path / "stages.json")
  with pytest.raises(ValueError, match="of a run of other stages"):
    train_pixels.main(config | {"exhausted": "repeat"}, str(tmp_path))
  assert {path.name for path in tmp_path.iterdir()} == {"lengths", "stages.json"}

  claim(tmp_path / "other", {**config, "seed": 1})
  there = {path.name for path in (tmp_path / "other").iterdir()}
  monkeypatch.setattr(train_pixels, "measure_cells", lambda *_, **__: pytest.fail("measured"))
  with pytest.raises(ValueError, match="seed: 1 there, 0 asked for"):
    train_pixels.main(config, str(tmp_path / "other"))
  assert {path.name for path in (tmp_path / "other").iterdir()} == there


def test_a_tokenizer_without_an_image_token_gets_one(frame, tmp_path):
  said = (frame / "tokenizer.json").read_text()
  (tmp_path / "tokenizer.json").write_text(said.replace("<image>", "<other>"))
  tokenizer = Pretrained("", tokenizer=str(tmp_path)).load_tokenizer()
  image = tokenizer.convert_tokens_to_ids("<image>")
  assert image == len(tokenizer) - 1
  assert tokenizer("a<image>").input_ids[-1] == image


def test_what_does_not_go_together_is_refused(frame, tmp_path):
  (tmp_path / "bare").mkdir()
  shutil.copy(frame / "config.json", tmp_path / "bare")
  with pytest.raises(FileNotFoundError, match="bare holds no tokenizer"):
    Pretrained(str(tmp_path / "bare")).load_tokenizer()
  tokenizer = Pretrained(str(frame)).load_tokenizer()
  config = json.loads((frame / "config.json").read_text())
  shutil.copytree(frame, tmp_path / "other")
  wrong = config | {"image_token_index": 5}
  (tmp_path / "other" / "config.json").write_text(json.dumps(wrong))
  with pytest.raises(ValueError, match=r"is token 3 of the tokenizer, and image_token_index .* 5"):
    Pretrained(str(tmp_path / "other")).config(tokenizer)
  config["text_config"]["vocab_size"] = 100
  (tmp_path / "other" / "config.json").write_text(json.dumps(config))
  with pytest.raises(ValueError, match=r"tokens and .* knows 100"):
    Pretrained(str(tmp_path / "other")).config(tokenizer)
  with pytest.raises(ValueError, match="rows=6 do not divide among 4 chips"):
    sizes = dict(rows=6, seq=64, image_tokens=40, tiles=8, accumulate=1)
    train_pixels.packed_shape(sizes, CONFIG, train_pixels.make_mesh(2))
  with pytest.raises(ValueError, match="in accumulate=4 parts: give a multiple of 16"):
    sizes |= dict(rows=8, accumulate=4)
    train_pixels.packed_shape(sizes, CONFIG, train_pixels.make_mesh(2))
  with pytest.raises(ValueError, match="tensor=3 does not divide the 8 chips"):
    train_pixels.make_mesh(3)
  for wrong, message in (
    ("export=bf16", "export='bf16' is none of float32"),
    ("dtype=half", "dtype='half' is none of float32"),
    ("remat=nothing", "remat='nothing' is no policy"),
    ("exhausted=wrap", "exhausted is one of repeat, stop, redistribute, not 'wrap'"),
    ("repetition=-1", "the repetition is -1.0"),
    ("steps=0", "steps=0: a run takes one step"),
    ("cells=gs://b/cells", "cells=gs://b/cells is in a bucket"),
  ):
    config = train_config.get_config(f"pixels,model=here,cells=there,{wrong}").to_dict()
    with pytest.raises(ValueError, match=message):
      train_pixels.main(config, str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()
  with pytest.raises(ValueError, match="needs cells=DIR"):
    train_config.get_config("pixels,model=here")
