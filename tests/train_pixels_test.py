"""The train job of a real model: from a Hugging Face folder to another, stopped and resumed."""

import json

import jax
import numpy as np
import pytest
from flax import nnx
from tiny import CONFIG, packed_batch

from configs import train as train_config
from mixjax.data import encode
from mixjax.jobs import train_pixels
from mixjax.jobs.pretrained import Pretrained
from mixjax.models import hf
from mixjax.models import mesh as mesh_lib
from mixjax.models.llava_next import LlavaNext


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  """The folder of a tiny LLaVA-NeXT, tokenizer included."""
  folder = tmp_path_factory.mktemp("source")
  encode.train_tokenizer(["What is this? A small thing."] * 3, 400, folder)
  model = jax.jit(lambda: LlavaNext(CONFIG, rngs=nnx.Rngs(0)))()
  hf.save_llava_next(model, folder)
  return folder


class Rows:
  """A loader of two batches in turn."""

  def __init__(self, shape):
    self.shape = shape

  def dataset(self, steps, start, process_index, process_count):
    return (packed_batch(step % 2, self.shape) for step in range(start, start + steps))

  def counts(self, steps):
    return {"all": {"realised": steps * self.shape.rows}}


@pytest.fixture
def run(source, monkeypatch):
  monkeypatch.setattr(train_pixels, "make_loader", lambda *parts: Rows(parts[-1]))

  def run(workdir, **options):
    options = {
      "model": source,
      "cells": "none",
      "steps": 6,
      "rows": 8,
      "seq": 56,
      "image_tokens": 32,
      "tiles": 6,
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
    train_pixels.main(train_config.get_config(arg).to_dict(), str(workdir))

  return run


def losses(workdir):
  return [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").open()]


def test_a_run_learns_and_stopped_and_resumed_gives_the_same_bits(run, source, tmp_path, capsys):
  run(tmp_path / "whole")
  assert losses(tmp_path / "whole")[-1] < losses(tmp_path / "whole")[0] - 0.2
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Rows, "dataset", stopped(Rows.dataset, after=3))
    with pytest.raises(KeyboardInterrupt):
      run(tmp_path / "parts")
  with pytest.MonkeyPatch.context() as patch:  # what is resumed reads no weights of the source
    patch.setattr(Pretrained, "load", None)
    run(tmp_path / "parts")
  assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
  files = [(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "parts")]
  assert files[0].read_bytes() == files[1].read_bytes()
  assert files[0].read_bytes() != (source / "model.safetensors").read_bytes()


def stopped(dataset, after):
  def until(*args, **options):
    for i, batch in enumerate(dataset(*args, **options)):
      if i == after:
        raise KeyboardInterrupt
      yield batch

  return until
