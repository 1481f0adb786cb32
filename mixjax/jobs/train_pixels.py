"""The train job of a real model: packed rows of pixels and text, on all the chips there are.

On a pod every process runs this job; a process makes the rows of its own chips, and the first one
writes what is not a checkpoint.
"""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from mixjax.atlas.shards import open_cells
from mixjax.data.conversation import ConversationEncoder
from mixjax.data.encode import Tokenizer
from mixjax.data.lengths import measure_cells
from mixjax.data.packed import PackedShape
from mixjax.data.packed_loader import PackedLoader
from mixjax.data.packed_stages import planned_loader
from mixjax.data.supply import Plan, Supply
from mixjax.jobs import mixtures
from mixjax.jobs.pretrained import Pretrained
from mixjax.jobs.workdir import claim, write_whole
from mixjax.models import attention, hf, layers
from mixjax.models import mesh as mesh_lib
from mixjax.models.llava_next import LlavaNextConfig
from mixjax.progress import Reporter
from mixjax.training import step as step_lib
from mixjax.training import train as train_lib
from mixjax.training import vlm
from mixjax.training.loss import Batch
from mixjax.training.optimizer import OptimizerConfig, make_optimizer

# Where a run takes place: it may go on elsewhere.
PLACE = ("distributed", "workers")


def main(config: dict, workdir: str) -> None:
  """The job as the front door calls it.

  Leaves stages.json, checkpoints/, metrics.jsonl, model/ (a folder that `transformers` opens) and
  result.json.
  """
  check(config, workdir)
  if config["distributed"]:
    jax.distributed.initialize()
  first = jax.process_index() == 0
  folder = epath.Path(workdir)
  pretrained = Pretrained(config["model"], config["vision"], config["tokenizer"])
  tokenizer = pretrained.load_tokenizer()
  model = pretrained.config(tokenizer, **running(config))
  mesh = make_mesh(config["tensor"])
  shape = packed_shape(config, model, mesh)
  if first:  # a config that cannot run has claimed nothing
    claim(workdir, {name: value for name, value in config.items() if name not in PLACE})
    pretrained.lay_out(model, tokenizer, folder / "frame")
  multihost_utils.sync_global_devices("claimed")
  loader, plan = make_loader(config, model, tokenizer, shape, folder / "lengths")
  mixtures.check_kept(folder, plan.stages)
  reporter = Reporter()
  if first:
    mixtures.keep(folder, plan.stages)
    planned = mixtures.describe(plan, lambda sample: loader.step_of(sample, config["steps"]))
    mixtures.say(reporter, plan, planned, config["exhausted"])
    reporter.stage("train", config["steps"])
  seen = 0

  clock = folder / "seconds.json"  # of all processes that have worked on this run
  before = json.loads(clock.read_text()) if clock.exists() else 0.0
  began = time.time()

  def seconds() -> float:
    return round(before + time.time() - began, 1)

  def on_step(step: int, loss: float) -> None:
    nonlocal seen
    if first:
      reporter.advance(step - seen, note=f"loss={loss:.3f}")
      write_whole(clock, json.dumps(seconds()))
    seen = step

  with jax.set_mesh(mesh):
    graphdef, state = train(config, pretrained, model, loader, mesh, folder, on_step)
    trained = nnx.merge(graphdef, state.params)
  hf.save_llava_next(trained, folder / "model", config["export"], source=folder / "frame")
  if first:
    result = {
      "planned": planned,
      "counts": loader.counts(config["steps"]),
      "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
      "mesh": dict(mesh.shape),
      "seconds": seconds(),
    }
    write_whole(folder / "result.json", json.dumps(result, indent=1))
    reporter.close()
    reporter.say(f"model: {folder / 'model'}")


def check(config: dict[str, Any], workdir: str) -> None:
  """Raises ValueError for what would only show when a model is loaded, or after all steps."""
  layers.check_running(config["remat"], dtype=config["dtype"], export=config["export"])
  Supply({}, config["repetition"], config["exhausted"])
  for name, path in (("--workdir", workdir), ("cells", config["cells"])):
    if "://" in path:
      raise ValueError(
        f"{name}={path} is in a bucket: mount it, and give a path that all processes share"
      )


def rates(config: dict[str, Any]) -> tuple[tuple[str, float], ...]:
  """The learning rates of parts of the model: the tower has its own, a frozen text none."""
  tower = ("vision", config["vision_rate"])
  return (tower, ("text", 0.0)) if config["freeze_text"] else (tower,)


def running(config: dict[str, Any]) -> dict[str, Any]:
  """How the model is computed, here."""
  name = config["attention"]
  name = attention.best(jax.default_backend(), config["dtype"]) if name == "auto" else name
  return dict(remat=config["remat"], dtype=config["dtype"], attention=name)


def make_mesh(tensor: int) -> Mesh:
  """All chips, `tensor` of them to each matrix product; raises ValueError where those do not fit.

  Chips of a product share their rows, and rows belong to one process.
  """
  if tensor < 1 or jax.local_device_count() % tensor:
    raise ValueError(
      f"tensor={tensor} does not divide the {jax.local_device_count()} chips of this process"
    )
  mesh = mesh_lib.make_mesh(jax.device_count() // tensor, tensor)
  for row in mesh.devices:
    if len({device.process_index for device in row}) > 1:
      raise ValueError(f"tensor={tensor} chips that share a product are of several processes")
  return mesh


def packed_shape(config: dict[str, Any], model: LlavaNextConfig, mesh: Mesh) -> PackedShape:
  """The batch: as many groups of rows for each device along `data` as it passes in parts.

  Raises ValueError unless they fit.
  """
  chips, parts = mesh.shape["data"], config["accumulate"]
  groups = chips * parts
  if parts < 1 or config["rows"] % groups:
    raise ValueError(
      f"rows={config['rows']} do not divide among {chips} chips in accumulate={parts} parts: give "
      f"a multiple of {groups}, or more tensor"
    )
  return PackedShape(
    rows=config["rows"],
    length=config["seq"],
    image_tokens=config["image_tokens"],
    tiles=config["tiles"] * config["rows"] // groups,
    groups=groups,
    side=model.vision.image_size,
  )


def make_loader(
  config: dict[str, Any],
  model: LlavaNextConfig,
  tokenizer: Tokenizer,
  shape: PackedShape,
  folder: epath.Path,
) -> tuple[PackedLoader, Plan]:
  """The batches of the run's mixture, and what that is; lengths are found once, for `folder`."""
  cells = open_cells(config["cells"])
  weights = mixtures.named_stages(config["mixture"], cells.rows)
  encoder = ConversationEncoder.of(tokenizer, model.anyres, shape)
  first = jax.process_index() == 0
  if not first:  # what the first process has found is there for all
    multihost_utils.sync_global_devices("measured")
  measured = measure_cells(cells, encoder, folder, workers=config["workers"])
  if first:
    multihost_utils.sync_global_devices("measured")
  run = (config["seed"], shape, config["steps"], config["repetition"], config["exhausted"])
  return planned_loader(measured, weights, *run)


def train(
  config: dict[str, Any],
  pretrained: Pretrained,
  model: LlavaNextConfig,
  loader: PackedLoader,
  mesh: Mesh,
  folder: epath.Path,
  on_step: Callable[[int, float], None],
) -> tuple[nnx.GraphDef, step_lib.TrainState]:
  """(the model's graph, the state after all steps), on the mesh that is set."""
  optimizer = OptimizerConfig(**{**config["optimizer"], "rates": rates(config)})
  tx = make_optimizer(optimizer, config["steps"])
  graphdef, like = vlm.abstract_state(model, tx, mesh)

  def start() -> step_lib.TrainState:
    params = nnx.split(pretrained.load(model, config["seed"]))[1]
    places = jax.tree.map(lambda leaf: leaf.sharding, (like.opt_state, like.step))
    rest = jax.jit(lambda params: (tx.init(params), jnp.zeros((), jnp.int32)), out_shardings=places)
    return step_lib.TrainState(params, *rest(params))

  places = {name: leaf.sharding for name, leaf in vlm.abstract_batch(loader.shape, mesh).items()}

  def batches(first: int) -> Iterator[Batch]:
    mine = dict(process_index=jax.process_index(), process_count=jax.process_count())
    remaining = config["steps"] - first
    for batch in loader.dataset(remaining, first, **mine, workers=config["workers"]):
      yield {
        name: jax.make_array_from_process_local_data(places[name], array)
        for name, array in batch.items()
      }

  update = vlm.compiled_step(
    graphdef, optimizer, config["steps"], config["loss_chunk"], config["accumulate"]
  )
  run = train_lib.TrainConfig(
    config["steps"], log_every=config["log_every"], save_every=config["save_every"]
  )
  return graphdef, train_lib.fit(update, like, start, batches, run, folder, on_step=on_step)
