"""Plans: on 8 CPU devices everything but a TPU's compiler, which tests skip where it is missing."""

import dataclasses
import importlib.util
import json
import math
import re

import jax
import pytest
from flax import nnx
from tiny import TEXT, VISION

from mixjax.models import clip, sizes
from mixjax.models.qwen2 import Qwen2
from mixjax.training import collectives, plan, topology

TINY = plan.PlanConfig(
  model="qwen2_0_5b",
  topology="cpu:8",
  batch=8,
  seq=60,  # fewer tokens than the vocabulary has, as in a real step
  image_tokens=12,
  tiles=3,
  tensor=2,
  loss_chunk=16,
  dtype="float32",
)


def recorded(config):
  """(the plan of a config with the tiny sizes, its compiled program, abstract state and text)."""
  kept = {}

  class Keeping:
    def __init__(self, lowered):
      self.lowered = lowered

    def compile(self):
      kept["compiled"] = self.lowered.compile()
      return kept["compiled"]

  def lower(*args, real=plan.lower):
    lowered, state, batch = real(*args)
    kept.update(state=state, batch=batch, text=lowered.as_text())
    return Keeping(lowered), state, batch

  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(sizes.TEXT, config.model, TEXT)
    patch.setitem(sizes.VISION, config.vision, VISION)
    patch.setattr(plan, "lower", lower)
    return plan.plan(config), kept


@pytest.fixture(scope="module")
def planned():
  return recorded(TINY)


def test_a_plan_says_what_a_chip_holds(planned):
  result, kept = planned
  assert result == json.loads(json.dumps(result))
  assert result["fits"] and result["advice"] == [] and result["chips"] == 8
  assert result["mesh"] == {"data": 4, "model": 2}
  whole = 4 * result["total_parameters"] / topology.GIB
  # Nearly all is split over all 8; AdamW has two moments of each parameter.
  assert whole / 8 <= result["gib"]["parameters"] < 1.2 * whole / 8
  assert result["gib"]["optimiser"] == pytest.approx(2 * result["gib"]["parameters"], rel=0.02)
  memory = kept["compiled"].memory_analysis()
  held = sum(result["gib"][kind] for kind in ("parameters", "optimiser", "batch")) * topology.GIB
  assert held == pytest.approx(memory.argument_size_in_bytes, rel=0.02)
  assert result["peak_gib"] == pytest.approx(sum(result["gib"].values()), rel=0.02)
  assert result["step_seconds"] is None  # nobody publishes the speed of this machine


def test_the_collectives_of_a_plan_are_those_of_its_program(planned):
  result, kept = planned
  read = collectives.read(kept["compiled"].as_text())
  assert result["collectives"] == {kind: found._asdict() for kind, found in read.items()}
  # Each of 3 layers gathers 7 matrices for the step and 7 when remat computes it again.
  assert result["collectives"]["all-gather"]["count"] >= 2 * 7 * 3


def test_no_large_array_of_the_step_is_replicated(planned):
  """From the compiled program: 8 devices hold an eighth each of every matrix, in and out."""
  _, kept = planned
  state = kept["state"]
  (placed, _), _ = kept["compiled"].input_shardings
  left, _ = kept["compiled"].output_shardings
  total = sum(leaf.size for leaf in jax.tree.leaves(state))
  paths = jax.tree_util.tree_leaves_with_path(state)
  for (path, leaf), into, out in zip(
    paths, jax.tree.leaves(placed), jax.tree.leaves(left), strict=True
  ):
    name = jax.tree_util.keystr(path)
    for sharding in (into, out):
      share = math.prod(sharding.shard_shape(leaf.shape)) / max(leaf.size, 1)
      matrix = "kernel" in name or "embedding" in name or "head" in name
      if matrix and "class" not in name and "patch" not in name:
        assert share == 1 / 8, name
      assert share <= 1 / 4 or leaf.size < total / 1000, name


def needless(text, state, batch):
  """Arrays within a program's text that no device needs, of the split `state`: (what, sizes)."""
  whole = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
    name = jax.tree_util.keystr(path)
    table = "text" in name and ("embedding" in name or "head" in name)
    if table or ("layers" in name and "kernel" in name):
      axes = [*leaf.sharding.spec, *[None] * (leaf.ndim - len(leaf.sharding.spec))]
      parts = [2 if axis == "model" else 1 for axis in axes]
      whole[name] = leaf.shape
      whole[f"{name} gathered over data"] = tuple(map(int.__floordiv__, leaf.shape, parts))
  rows, length = batch["ids"].shape
  whole["hidden states"] = rows, length, TEXT.hidden_size
  whole["logits"] = rows // 4, length, TEXT.vocab_size // 2
  # What a slice of some other parameter looks like says nothing.
  slices = {key(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(state)}
  found = set(re.findall(r"\b(?:f32|bf16)\[([\d,]+)\]", text))
  found = {key(map(int, sizes.split(","))) for sizes in found} - slices
  return [(name, sizes) for name, sizes in whole.items() if key(sizes) in found]


def key(sizes):
  """Sizes in whatever order the compiler likes; axes of one element mean nothing."""
  return tuple(sorted(size for size in sizes if size > 1))


def test_nothing_within_the_step_is_whole_that_need_not_be(planned):
  """A device sees one layer's matrices at a time, its own rows, and never a table of the tokens."""
  _, kept = planned
  assert needless(kept["compiled"].as_text(), kept["state"], kept["batch"]) == []


@pytest.mark.slow
def test_a_plain_port_holds_everything_on_every_chip(planned):
  plain, kept = recorded(dataclasses.replace(TINY, tensor=1, replicated=True))
  assert plain["gib"]["parameters"] * topology.GIB == pytest.approx(
    4 * plain["total_parameters"], rel=0.01
  )
  assert set(plain["collectives"]) == {"all-reduce"}
  split = planned[1]
  assert len(needless(kept["compiled"].as_text(), split["state"], split["batch"])) > 10


@pytest.mark.slow
def test_rows_in_parts_take_less(planned):
  at_once, _ = recorded(dataclasses.replace(TINY, batch=32))
  in_parts, _ = recorded(dataclasses.replace(TINY, batch=32, accumulate=8))
  assert in_parts["gib"]["temporaries"] < 0.5 * at_once["gib"]["temporaries"]


@pytest.mark.slow
def test_rows_of_several_proxies_pass_in_parts(planned):
  many, _ = recorded(dataclasses.replace(TINY, proxies=2, tensor=1, batch=8, accumulate=2, seq=32))
  assert many["mesh"] == {"proxy": 2, "data": 4, "model": 1}


@pytest.mark.slow
def test_a_frozen_tower_has_no_moments(planned):
  frozen, kept = recorded(dataclasses.replace(TINY, frozen_tower=True))
  moving = [part for name, part in kept["state"].params.items() if name != "vision"]
  held = sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * 8 for leaf in jax.tree.leaves(moving)
  )
  assert frozen["gib"]["optimiser"] * topology.GIB == pytest.approx(held, rel=0.01)
  assert frozen["gib"]["optimiser"] < 0.9 * planned[0]["gib"]["optimiser"]


@pytest.mark.slow
def test_proxies_share_a_program_and_never_speak_to_each_other(planned):
  many, kept = recorded(dataclasses.replace(TINY, proxies=4, tensor=1, batch=2, seq=32))
  assert many["mesh"] == {"proxy": 4, "data": 2, "model": 1}
  for leaf in jax.tree.leaves((kept["state"], kept["batch"])):
    assert leaf.shape[0] == 4 and leaf.sharding.spec[0] == "proxy"
  left, _ = kept["compiled"].output_shardings
  for leaf, sharding in zip(jax.tree.leaves(kept["state"]), jax.tree.leaves(left), strict=True):
    assert sharding.shard_shape(leaf.shape)[0] == 1
  assert many["total_parameters"] == 4 * planned[0]["total_parameters"]
  assert many["proxies"]["planned"] == 4 and many["proxies"]["fit_about"] > 4
  sends = [line for line in kept["compiled"].as_text().splitlines() if "replica_groups=" in line]
  assert sends and {collectives.group(line) for line in sends} <= {1, 2}


def test_gradients_are_summed_where_they_are_scattered(planned):
  """Each matrix is gathered as `reduced`, so its gradient is never whole: XLA sees it unreduced."""
  assert planned[1]["text"].count("unreduced") >= 7


def test_the_published_sizes_have_the_published_parameters():
  counts = {
    "qwen2_0_5b": 494_032_768,
    "qwen2_1_5b": 1_543_714_304,
    "qwen2_7b": 7_615_616_512,
    "qwen2_5_7b": 7_615_616_512,
  }
  made = {
    name: nnx.eval_shape(lambda config=config: Qwen2(config, rngs=nnx.Rngs(0)))
    for name, config in sizes.TEXT.items()
  }
  assert {name: parameters(model) for name, model in made.items()} == counts
  tower = sizes.VISION["clip_l_336"]
  made = nnx.eval_shape(lambda: clip.ClipVision(tower, rngs=nnx.Rngs(0)))
  assert parameters(made) == 303_507_456


def parameters(model):
  return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


CHIP = topology.Chip("small", 16.0, 100e12, 100e9)


def advice(peak=20.0, gib=None, data=16, **changes):
  config = dataclasses.replace(TINY, model="qwen2_7b", batch=16, seq=4096, tensor=1, **changes)
  model = dataclasses.replace(config.llava_next("tpu"))
  gib = gib or {"parameters": 2.0, "optimiser": 4.0}
  return " ".join(plan.advise(config, model, CHIP, data, gib, peak))


def test_advice_names_what_would_make_it_fit():
  assert advice(peak=15.0) == ""
  assert "remat=nothing_saveable" in advice(remat=None)
  assert "remat" not in advice()
  assert "loss_chunk=512: the logits are 2.3 GiB" in advice(loss_chunk=None)
  assert "attention=auto" in advice(attention="xla")
  assert "batch=4: one row a chip in place of 4" in advice(data=4)
  assert "accumulate=4: one row a chip at once in place of 4" in advice(data=4)
  assert "accumulate" not in advice(data=4, accumulate=4)
  assert "tensor=2, batch=8" in advice()
  full = advice(gib={"parameters": 5.0, "optimiser": 10.0})
  assert "more chips" in full and "15.0 of 16.0 GiB on 16; 32 would" in full


def test_seconds_are_those_of_the_slower_part():
  sent = {"all-gather": collectives.Collectives(3, int(50e9))}
  flops = {"hardware": 8e14, "model": 6e14}
  found = plan.seconds(CHIP, 4, flops, sent)
  compute, links = 2e14 / (100e12 * plan.COMPUTE_SHARE), 50e9 / (100e9 * plan.LINK_SHARE)
  assert found["seconds"] == {"compute": round(compute, 3), "collectives": round(links, 3)}
  assert found["step_seconds"] == pytest.approx(max(compute, links), abs=1e-3)
  assert found["model_flops_utilisation"] == pytest.approx(
    1.5e14 / 100e12 / max(compute, links), abs=1e-3
  )


def test_the_compilers_figure_is_read_from_its_error():
  used = "RESOURCE_EXHAUSTED: Used 19.24G of 15.75G hbm. Exceeded hbm capacity by 3.49G."
  exceeds = "memory required for HLO temporaries (480.00G) exceeds available HBM (15.75G)."
  assert plan.needed_gib(used) == 19.24
  assert plan.needed_gib(exceeds) == 480
  assert plan.needed_gib("INTERNAL: something else") is None


def test_what_cannot_be_planned_is_refused_with_the_remedy(monkeypatch):
  with pytest.raises(ValueError, match=r"topology='v9:4x4': give FAMILY:SHAPE"):
    topology.devices("v9:4x4")
  with pytest.raises(ValueError, match="wants 16 devices and there are 8"):
    topology.devices("cpu:4x4")
  with pytest.raises(ValueError, match="batch=6 rows do not divide among 4 chips"):
    plan.plan(dataclasses.replace(TINY, batch=6))
  with pytest.raises(ValueError, match="batch=8 rows make no accumulate=3 parts on 4 chips"):
    plan.plan(dataclasses.replace(TINY, accumulate=3))
  with pytest.raises(ValueError, match="8 chips do not divide by 3"):
    plan.plan(dataclasses.replace(TINY, tensor=3))
  with pytest.raises(ValueError, match="model='qwen3': choose one of qwen2_0_5b"):
    dataclasses.replace(TINY, model="qwen3")
  with pytest.raises(ValueError, match="leave no text"):
    plan.plan(dataclasses.replace(TINY, seq=8))
  with pytest.raises(ValueError, match="give more tiles"):
    plan.plan(dataclasses.replace(TINY, seq=4096, image_tokens=2928, tiles=1))
  with pytest.raises(ValueError, match=r"attention=cudnn: .* use attention=xla"):
    dataclasses.replace(TINY, attention="cudnn", proxies=2)
  with pytest.raises(ValueError, match="topology=h100:16: give 1 to 8 GPUs"):
    topology.devices("h100:16")
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match=r"requirements-plan\.txt"):
    topology.devices("v5e:4x4")
  with pytest.raises(ValueError, match=r"requirements-plan-gpu\.txt"):
    topology.devices("h100:8")


def test_the_front_door_refuses_in_one_line(run_main, tmp_path):
  done = run_main("configs/plan.py:topology=v5e:three", tmp_path, check=False)
  assert done.returncode == 2 and done.stderr.startswith("mixjax: topology='v5e:three'")


needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason="libtpu, the TPU's compiler, is not installed: pip install -r requirements-plan.txt",
)


@needs_libtpu
@pytest.mark.slow
def test_a_tpu_plan_fits_and_scatters_its_gradients(monkeypatch):
  monkeypatch.setitem(sizes.TEXT, TINY.model, dataclasses.replace(TEXT, hidden_size=512))
  small = dataclasses.replace(
    TINY, topology="v5e:2x2", batch=4, seq=256, tensor=1, dtype="bfloat16", loss_chunk=64
  )
  result = plan.plan(small)
  assert result["fits"] and result["limit_gib"] == 15.75 and 0 < result["peak_gib"] < 2
  sent = result["collectives"]
  assert sent["reduce-scatter"]["bytes"] > sent["all-reduce"]["bytes"]
  assert result["step_seconds"] > 0


@needs_libtpu
def test_a_step_too_large_for_a_tpu_is_no_error():
  large = plan.PlanConfig(model="qwen2_7b", topology="v5e:2x2", batch=4, seq=4096, remat=None)
  result = plan.plan(large)
  assert not result["fits"] and result["peak_gib"] > result["limit_gib"] == 15.75
  assert any("remat=nothing_saveable" in advice for advice in result["advice"])
  assert any("more chips" in advice for advice in result["advice"])
  assert result["collectives"] == {} and result["step_seconds"] is None


@needs_libtpu
def test_a_slice_that_does_not_exist_is_named():
  with pytest.raises(ValueError, match=r"topology=v5e:3x5: .*not divisible"):
    topology.devices("v5e:3x5")


@pytest.mark.skipif(
  importlib.util.find_spec("jax_cuda12_plugin") is None,
  reason="XLA's CUDA plugin is not installed: pip install -r requirements-plan-gpu.txt",
)
@pytest.mark.slow
def test_a_gpu_plan_needs_no_gpu():
  small = dataclasses.replace(TINY, topology="h100:8", seq=256, tensor=1, dtype="bfloat16")
  result, kept = recorded(small)
  assert result["fits"] and result["chip"] == "H100 SXM" and 0 < result["peak_gib"] < 1
  assert "cudnn$fmha" in kept["compiled"].as_text()
  assert result["collectives"]["reduce-scatter"]["bytes"] > 0 and result["step_seconds"] >= 0
  held = sum(result["gib"][kind] for kind in ("parameters", "optimiser", "batch")) * topology.GIB
  memory = kept["compiled"].memory_analysis()
  assert held == pytest.approx(memory.argument_size_in_bytes, rel=0.02)
