"""Our Qwen2 beside transformers' and torch's on this machine's CPU, from one checkpoint.

  python tests/benchmarks/models_bench.py [--repeats 5] [--steps 4] [--batch 8] [--length 256]

A random model of about 54 million parameters, float32. `train` is whole steps of AdamW on the
next-token loss, `decode` greedy decoding of 64 tokens after prompts of 64 with a key-value cache,
each by its library's own `generate`; tokens a second, compilation not counted. Each library has a
process of its own with as many threads as there are cores; they take turns, never two at once, and
ratios are of neighbours. `by CPU seconds` are the same ratios from the processor time of all
threads: other work on the machine disturbs them less, but a thread that spins while it waits is
counted as busy. Before that both must agree: on the loss of the first steps to 1e-4, on the decoded
tokens exactly.
"""

import argparse
import concurrent.futures
import contextlib
import multiprocessing
import os
import pathlib
import sys
import tempfile
import time

import numpy as np

# The repository, where mixjax is not installed.
sys.path.append(str(pathlib.Path(__file__).parents[2]))

# Modules that bring in jax or torch are imported where they are used, each in its own process.
LEARNING_RATE, PROMPT, NEW = 1e-4, 64, 64
SIZES = dict(
  vocab_size=16384,
  hidden_size=640,
  intermediate_size=1728,
  num_hidden_layers=10,
  num_attention_heads=10,
  num_key_value_heads=2,
)
_library = None


def make_checkpoint(folder: str) -> int:
  """Writes the model both libraries start from; returns how many parameters it has."""
  import jax
  from flax import nnx

  from mixjax.models import hf
  from mixjax.models.qwen2 import Qwen2, Qwen2Config

  model = Qwen2(Qwen2Config(**SIZES), rngs=nnx.Rngs(0))
  hf.save_qwen2(model, folder)
  return sum(leaf.size for leaf in jax.tree.leaves(model))


class Mixjax:
  def __init__(self, folder: str):
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx

    from mixjax.main import keep_freed_memory
    from mixjax.models import hf

    keep_freed_memory()
    self._model = hf.load_qwen2(folder, unroll=True)  # as the search trains its proxies
    graph, params = nnx.split(self._model)
    self._params = jax.tree.map(jnp.array, params)  # the step consumes them
    tx = optax.adamw(LEARNING_RATE, weight_decay=0.0)
    self._state = tx.init(self._params)

    def loss(params, ids):
      model = nnx.merge(graph, params)
      hidden = model(model.embed(ids), jnp.arange(ids.shape[1])[None])
      logits = model.logits(hidden[:, :-1])
      chosen = jnp.take_along_axis(logits, ids[:, 1:, None], axis=-1)[..., 0]
      return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - chosen)

    def step(params, state, ids):
      value, grads = jax.value_and_grad(loss)(params, ids)
      updates, state = tx.update(grads, state, params)
      return optax.apply_updates(params, updates), state, value

    self._step = jax.jit(step, donate_argnums=(0, 1))

  def train(self, ids: np.ndarray, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
      self._params, self._state, value = self._step(self._params, self._state, ids)
      losses.append(value)
    return [float(value) for value in losses]

  def decode(self, ids: np.ndarray) -> np.ndarray:
    from mixjax.evals.generate import generate

    return np.asarray(generate(self._model, ids, None, None, NEW, eos_id=-1))


class Transformers:
  def __init__(self, folder: str):
    import torch
    from transformers import Qwen2ForCausalLM

    torch.set_num_threads(os.cpu_count())
    self._torch = torch
    self._model = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    self._trained = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    self._optimizer = torch.optim.AdamW(
      self._trained.parameters(), LEARNING_RATE, weight_decay=0.0, fused=True
    )

  def train(self, ids: np.ndarray, steps: int) -> list[float]:
    ids, losses = self._torch.as_tensor(ids, dtype=self._torch.long), []
    for _ in range(steps):
      self._optimizer.zero_grad()
      loss = self._trained(input_ids=ids, labels=ids, use_cache=False).loss
      loss.backward()
      self._optimizer.step()
      losses.append(float(loss.detach()))
    return losses

  def decode(self, ids: np.ndarray) -> np.ndarray:
    ids = self._torch.as_tensor(ids, dtype=self._torch.long)
    with self._torch.no_grad():
      made = self._model.generate(
        ids,
        attention_mask=self._torch.ones_like(ids),
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
      )
    return made[:, ids.shape[1] :].numpy()


LIBRARIES = {"mixjax": Mixjax, "transformers": Transformers}


def start(name: str, folder: str) -> None:
  global _library
  _library = LIBRARIES[name](folder)


def train(ids: np.ndarray, steps: int) -> tuple[np.ndarray, list[float]]:
  """Tokens a second, by the clock and by processor time; and the losses."""
  began = clocks()
  losses = _library.train(ids, steps)
  return steps * ids.size / (clocks() - began), losses


def decode(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Tokens a second, by the clock and by processor time; and the tokens."""
  began = clocks()
  tokens = _library.decode(ids)
  return tokens.size / (clocks() - began), tokens


def clocks() -> np.ndarray:
  return np.array([time.perf_counter(), time.process_time()])


def spread(values: np.ndarray, form: str = ".2f") -> str:
  return f"{np.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--steps", type=int, default=4)
  parser.add_argument("--batch", type=int, default=8)
  parser.add_argument("--length", type=int, default=256)
  args = parser.parse_args()
  rng = np.random.default_rng(0)
  ids = rng.integers(0, SIZES["vocab_size"], (args.batch, args.length)).astype(np.int32)
  prompts = ids[:, :PROMPT]
  context = multiprocessing.get_context("spawn")
  with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
    workers = {
      name: stack.enter_context(concurrent.futures.ProcessPoolExecutor(1, context))
      for name in ("checkpoint", *LIBRARIES)
    }
    parameters = workers["checkpoint"].submit(make_checkpoint, folder).result()
    for name in LIBRARIES:
      workers[name].submit(start, name, folder).result()
    ask = {name: workers[name].submit for name in LIBRARIES}
    losses = {name: ask[name](train, ids, 2).result()[1] for name in LIBRARIES}
    tokens = {name: ask[name](decode, prompts).result()[1] for name in LIBRARIES}
    np.testing.assert_allclose(losses["mixjax"], losses["transformers"], atol=1e-4)
    np.testing.assert_array_equal(tokens["mixjax"], tokens["transformers"])
    print(f"{parameters / 1e6:.1f} million parameters; losses and decoded tokens agree")
    speeds: dict[str, dict[str, list[np.ndarray]]] = {"train": {}, "decode": {}}
    for repeat in range(args.repeats):
      for name in sorted(LIBRARIES, reverse=bool(repeat % 2)):
        speeds["train"].setdefault(name, []).append(ask[name](train, ids, args.steps).result()[0])
        speeds["decode"].setdefault(name, []).append(ask[name](decode, prompts).result()[0])
  for what, found in speeds.items():
    ours, theirs = (np.array(found[name]).T for name in ("mixjax", "transformers"))
    wall, processor = ours / theirs
    print(
      f"{what:7}tokens/s: mixjax {spread(ours[0], '.0f')}, transformers "
      f"{spread(theirs[0], '.0f')}; ratio {spread(wall)}, by CPU seconds {spread(processor)}"
    )


if __name__ == "__main__":
  main()
