"""Plans: on 8 CPU devices everything but a TPU's compiler, which tests skip where it is missing."""

import dataclasses
import importlib.util
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mixjax.models import clip, sizes
from mixjax.models.qwen2 import Qwen2
from mixjax.training import arithmetic, collectives, plan, topology, vlm

TEXT = dataclasses.replace(
  sizes.TEXT["qwen2_7b"],
  vocab_size=512,
  hidden_size=64,
  intermediate_size=128,
  num_hidden_layers=3,
  num_attention_heads=4,
  num_key_value_heads=2,
)
VISION = dataclasses.replace(
  sizes.VISION["clip_l_336"],
  hidden_size=32,
  intermediate_size=64,
  num_hidden_layers=3,
  num_attention_heads=2,
  image_size=28,
)
TINY = plan.PlanConfig(
  model="qwen2_0_5b",
  topology="cpu:8",
  batch=8,
  seq=64,
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


def test_flops_by_hand():
  """A row of 8 tokens, 5 of them predicted; a layer has 4 heads of 16, 2 of them for keys."""
  found = arithmetic.text_flops(TEXT, 8, 5)
  layer = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128  # q, k and v, o, feed-forward
  assert found["layers"] == 2 * 8 * 3 * layer
  # 1 + 2 + ... + 8 pairs, each a product of 16 in 4 heads, for scores and again for values.
  assert found["attention"] == 3 * 36 * 4 * 16 * 2 * 2
  assert found["head"] == 2 * 5 * 64 * 512
  # 2 of 3 layers, 2 x 2 patches and the class token.
  block = 2 * 5 * (4 * 32 * 32 + 2 * 32 * 64) + 2 * 2 * 5 * 5 * 32
  assert arithmetic.vision_flops(VISION, 3, -2) == 3 * (2 * block + 2 * 4 * 588 * 32)
  assert arithmetic.projector_flops(32, 64, 12) == 2 * 12 * (32 * 64 + 64 * 64)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_step_is_three_forward_passes_and_remat_a_fourth(frozen):
  step = dict(batch=2, length=8, tiles=3, layer=-2, frozen=frozen)
  plain = arithmetic.step_flops(TEXT, VISION, **step)
  forward = plain["forward"]
  moved = sum(forward.values()) - (forward["tower"] if frozen else 0)
  assert plain["model"] == sum(forward.values()) + 2 * moved
  assert plain["hardware"] == plain["model"] + forward["head"]
  again = dict(remat="nothing_saveable")
  remat = arithmetic.step_flops(
    dataclasses.replace(TEXT, **again), dataclasses.replace(VISION, **again), **step
  )
  assert remat["model"] == plain["model"]
  assert remat["hardware"] == remat["model"] + moved - forward["projector"]


def test_a_7b_is_six_flops_a_parameter_and_token():
  config = sizes.TEXT["qwen2_7b"]
  forward = arithmetic.text_flops(config, 4096, 4096)
  looked_up = config.vocab_size * config.hidden_size
  matrices = 7_615_616_512 - looked_up
  linear = forward["layers"] + forward["head"]
  assert linear == pytest.approx(2 * 4096 * matrices, rel=1e-3)


CHIP = topology.Chip("small", 16.0, 100e12, 100e9)


def advice(peak=20.0, gib=None, data=16, **changes):
  config = dataclasses.replace(TINY, model="qwen2_7b", batch=16, seq=4096, tensor=1, **changes)
  model = dataclasses.replace(config.vlm("tpu"))
  gib = gib or {"parameters": 2.0, "optimiser": 4.0}
  return " ".join(plan.advise(config, model, CHIP, data, gib, peak))


def test_advice_names_what_would_make_it_fit():
  assert advice(peak=15.0) == ""
  assert "remat=nothing_saveable" in advice(remat=None)
  assert "remat" not in advice()
  assert "loss_chunk=512: the logits are 2.3 GiB" in advice(loss_chunk=None)
  assert "attention=splash" in advice(attention="xla")
  assert "batch=4: one row a chip in place of 4" in advice(data=4)
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
  with pytest.raises(ValueError, match="8 chips do not divide by 3"):
    plan.plan(dataclasses.replace(TINY, tensor=3))
  with pytest.raises(ValueError, match="model='qwen3': choose one of qwen2_0_5b"):
    dataclasses.replace(TINY, model="qwen3")
  with pytest.raises(ValueError, match="leave no text"):
    plan.plan(dataclasses.replace(TINY, seq=8))
  with pytest.raises(ValueError, match="give more tiles"):
    plan.plan(dataclasses.replace(TINY, seq=4096, image_tokens=2928, tiles=1))
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match="requirements-plan"):
    topology.devices("v5e:4x4")


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


@pytest.fixture(scope="module")
def model():
  config = vlm.VlmConfig(TEXT, VISION, batch=2, length=32, image_tokens=12, tiles=3)
  return jax.jit(lambda: vlm.Vlm(config, rngs=nnx.Rngs(0)))()


def batch_of(model):
  chance = np.random.default_rng(0)
  shapes = model.config.batch_shapes()
  batch = {
    "ids": chance.integers(0, 512, shapes["ids"].shape),
    "positions": np.tile(np.arange(32), (2, 1)),
    "segments": np.ones((2, 32)),
    "loss_mask": np.tile(np.arange(32) >= 20, (2, 1)),
    "shown": np.full((2, 32), -1),
    "tiles": chance.integers(0, 256, shapes["tiles"].shape),
  }
  batch["shown"][0, 3:7] = [5, 12, 0, 11]  # 3 tiles of 4 patches; 12 is the newline
  return {name: jnp.asarray(value, shapes[name].dtype) for name, value in batch.items()}


def test_image_tokens_show_the_patch_of_their_number_and_the_newline(model):
  batch = batch_of(model)

  @jax.jit
  def both(model):
    x = model.embed(batch["ids"], batch["tiles"], batch["shown"])
    features = model.vision.features(clip.preprocess(batch["tiles"][0]), -2)
    return x, model.projector(features.reshape(1, 12, -1))[0], model.text.embed(batch["ids"])

  x, patches, text = both(model)
  newline = model.image_newline[...]
  expected = jnp.stack([patches[5], newline, patches[0], patches[11]])
  np.testing.assert_allclose(x[0, 3:7], expected, rtol=0, atol=1e-5)
  np.testing.assert_array_equal(x[1], text[1])


@pytest.mark.parametrize("frozen", [False, True])
def test_a_full_fine_tune_moves_the_tower_and_a_frozen_one_stays(model, frozen):
  config = dataclasses.replace(model.config, frozen_tower=frozen)
  graphdef, _ = nnx.split(nnx.eval_shape(lambda: vlm.Vlm(config, rngs=nnx.Rngs(0))))
  _, params = nnx.split(model)
  slope = jax.jit(jax.grad(vlm.objective(graphdef, 16)))(params, batch_of(model))
  size = {
    name: sum(float(jnp.sum(jnp.abs(leaf))) for leaf in jax.tree.leaves(slope[name]))
    for name in ("vision", "projector", "text")
  }
  assert (size["vision"] == 0) == frozen and size["projector"] > 0 and size["text"] > 0
