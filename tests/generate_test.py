import pathlib

import jax
import jax.numpy as jnp
import meshes
import numpy as np
import pytest
import scipy.stats
from flax import nnx
from safetensors.numpy import load_file

from mixjax.evals.generate import decode, generate, likeliest, nucleus, score_answers
from mixjax.models import attention, hf

GOLDEN = pathlib.Path(__file__).parent / "golden" / "llava"
NEW, NEVER = 8, -1


@pytest.fixture(scope="module")
def model():
  return hf.load_llava(GOLDEN)


@pytest.fixture(scope="module")
def io(model):
  io = jax.tree.map(jnp.asarray, load_file(GOLDEN / "io.safetensors"))
  return {**io, "features": model.encode_image(io["pixels"])}


def say(model, ids, mask, features):
  return generate(model, ids, mask, features, NEW, NEVER)


@pytest.mark.parametrize("shape", meshes.SHAPES)
def test_tokens_match_the_golden(shape, model, io):
  said = meshes.run(say, model, io["ids"], io["mask"], io["features"], shape=shape)
  np.testing.assert_array_equal(said, io["said"])


def test_tokens_match_torch(tmp_path):
  pytest.importorskip("torch")
  from golden import make_golden

  make_golden.llava(tmp_path, seed=17)
  model = hf.load_llava(tmp_path)
  io = jax.tree.map(jnp.asarray, load_file(tmp_path / "io.safetensors"))
  features = model.encode_image(io["pixels"])
  said = generate(model, io["ids"], io["mask"], features, NEW, NEVER)
  np.testing.assert_array_equal(said, io["said"])
  ended = generate(model, io["ids"], io["mask"], features, NEW, int(io["end"]))
  np.testing.assert_array_equal(ended, io["ended"])


def test_after_the_end_token_comes_only_the_end_token(model, io):
  ended = generate(model, io["ids"], io["mask"], io["features"], NEW, int(io["end"]))
  np.testing.assert_array_equal(ended, io["ended"])
  assert np.any(io["ended"] != io["said"])


def test_the_cache_changes_nothing(model, io):
  """Each token is the most likely one of a full pass over everything before it."""
  mask = jnp.concatenate([io["mask"], jnp.ones_like(io["said"], bool)], axis=1)
  # Image tokens that the model itself says are words, not places for a patch.
  x = jnp.concatenate(
    [model.embed(io["ids"], io["features"]), model.text.embed(io["said"])], axis=1
  )
  positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
  logits = model.logits(model.text(x, positions, mask))
  best = jnp.argmax(logits, axis=-1)[:, -NEW - 1 : -1]
  np.testing.assert_array_equal(best, io["said"])


def scans(model, io, new):
  graph, parameters = nnx.split(model)
  traced = decode.trace(
    graph, parameters, io["ids"], io["mask"], io["features"], new, jnp.array([NEVER]), None
  )
  return str(traced.jaxpr).count("scan[")


def test_layers_are_taken_apart_on_a_cpu_alone_and_say_the_same(model, io, monkeypatch):
  assert scans(model, io, NEW - 1) == 2  # over the layers for the prompt, and over new tokens
  monkeypatch.setattr(attention, "platform", lambda: "tpu")
  assert scans(model, io, NEW - 2) == 3  # and over the layers for each of them
  stacked = generate(model, io["ids"], io["mask"], io["features"], NEW - 2, NEVER)
  np.testing.assert_array_equal(stacked, io["said"][:, : NEW - 2])


def test_the_likeliest_token_is_the_first_of_equals_and_always_a_token():
  logits = jnp.array([[0.0, 3, 1, 3], [-1, -2, -3, -4], [0, jnp.nan, 1, 2], [-jnp.inf] * 4])
  np.testing.assert_array_equal(likeliest(logits), [1, 0, 3, 0])


def test_padding_may_stand_on_the_right(model, io):
  pad = jnp.argmax(io["mask"], axis=1)
  ids, mask = (
    jnp.stack([jnp.roll(row, -n) for row, n in zip(io[name], pad, strict=True)])
    for name in ("ids", "mask")
  )
  assert not mask[2, -1] and mask[2, 0]
  said = generate(model, ids, mask, io["features"], NEW, NEVER)
  np.testing.assert_array_equal(said, io["said"])


def test_no_mask_means_no_padding(model, io):
  full = generate(model, io["ids"][3:], None, io["features"][3:], 1, NEVER)
  np.testing.assert_array_equal(full, io["said"][3:, :1])


def test_a_shape_is_compiled_once(model, io):
  generate(model, io["ids"], io["mask"], io["features"], NEW, NEVER)
  before = decode._cache_size()
  louder = jax.tree.map(lambda leaf: 2 * leaf, model)
  generate(louder, io["ids"], io["mask"], io["features"], NEW, 5)
  assert decode._cache_size() == before


def test_nothing_to_do_is_refused(model, io):
  with pytest.raises(ValueError, match="max_new_tokens=0"):
    generate(model, io["ids"], io["mask"], io["features"], 0, NEVER)


@pytest.fixture(scope="module")
def qwen2():
  return hf.load_qwen2(GOLDEN.parent / "qwen2_untied")


def ragged(seed):
  """Prompts of 3 to 11 tokens padded on the left, and the same padded on the right."""
  random = np.random.default_rng(seed)
  ids = random.integers(0, 40, (5, 11))
  lengths = np.array([11, 3, 7, 10, 5])
  left = np.arange(11)[None] >= 11 - lengths[:, None]
  rolled = np.stack([np.roll(row, -(11 - n)) for row, n in zip(ids, lengths, strict=True)])
  right = np.arange(11)[None] < lengths[:, None]
  return (ids, left), (rolled, right)


@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_64_tokens_match_torch(tied, tmp_path):
  torch = pytest.importorskip("torch")
  import transformers
  from golden import make_golden

  make_golden.qwen2(tmp_path, seed=23, tied=tied)
  model = hf.load_qwen2(tmp_path)
  theirs = transformers.Qwen2ForCausalLM.from_pretrained(tmp_path).eval()
  (ids, mask), right = ragged(23)
  inputs = dict(
    input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask.astype(int)), do_sample=False
  )
  said = theirs.generate(**inputs, max_new_tokens=64, pad_token_id=0, eos_token_id=None)
  said = said[:, ids.shape[1] :].numpy()
  assert len(np.unique(said)) > 10  # not one token over and over
  for prompt in ((ids, mask), right):
    ours = generate(model, *map(jnp.asarray, prompt), None, 64, NEVER)
    np.testing.assert_array_equal(ours, said)
  ends = [int(said[0, 40]), int(said[1, 20])]
  ended = theirs.generate(**inputs, max_new_tokens=64, pad_token_id=ends[0], eos_token_id=ends)
  ended = ended[:, ids.shape[1] :].numpy()
  ended = np.pad(ended, ((0, 0), (0, 64 - ended.shape[1])), constant_values=ends[0])
  np.testing.assert_array_equal(
    generate(model, jnp.asarray(ids), jnp.asarray(mask), None, 64, ends), ended
  )
  # Both stop: with the first alone, the row that the second ended goes on.
  alone = generate(model, jnp.asarray(ids), jnp.asarray(mask), None, 64, ends[0])
  assert np.any(alone != ended)


def truncated(logits, temperature, top_p):
  """The softmax over the temperature, cut to its nucleus, in float64."""
  share = np.exp((logits - logits.max()) / temperature)
  share /= share.sum()
  order = np.argsort(-share)
  kept = order[: 1 + np.searchsorted(np.cumsum(share[order]), top_p)]
  cut = np.zeros_like(share)
  cut[kept] = share[kept]
  return cut / cut.sum()


def agree(tokens, shares):
  """Whether counts of tokens could come from these shares (chi-square, one in a million)."""
  counts = np.bincount(tokens, minlength=len(shares))
  assert not counts[shares == 0].any()
  kept = shares > 0
  expected = shares[kept] * len(tokens)
  assert expected.min() > 3 and kept.sum() > 3, "too few to judge"
  excess = np.sum((counts[kept] - expected) ** 2 / expected)
  assert excess < scipy.stats.chi2.ppf(1 - 1e-6, kept.sum() - 1), (counts[kept], expected)


@pytest.mark.parametrize(
  ("temperature", "top_p"),
  [(1.5, 0.8), *(pytest.param(*odd, marks=pytest.mark.slow) for odd in ((1.0, 1.0), (2.5, 0.5)))],
)
def test_draws_follow_the_truncated_softmax(temperature, top_p, qwen2):
  draws = 4096
  prompt = np.array([5, 8, 13, 21])
  ids = jnp.tile(jnp.asarray(prompt)[None], (draws, 1))
  sampling = dict(temperature=temperature, top_p=top_p, key=jax.random.key(3))
  said = np.asarray(generate(qwen2, ids, None, None, 2, NEVER, **sampling))

  def shares(prompt):
    x = qwen2.embed(jnp.asarray(prompt)[None])
    logits = qwen2.logits(qwen2(x, jnp.arange(len(prompt))[None]))[0, -1]
    return truncated(np.asarray(logits, np.float64), temperature, top_p)

  def judge(tokens, shares):
    # Rare tokens are judged as one.
    rare = (shares * len(tokens) < 5) & (shares > 0)
    if rare.any():
      tokens = np.where(rare[tokens], np.argmax(rare), tokens)
      together = shares[rare].sum()
      shares = np.where(rare, 0, shares)
      shares[np.argmax(rare)] = together
    agree(tokens, shares)

  judge(said[:, 0], shares(prompt))
  common = np.bincount(said[:, 0]).argmax()
  second = said[said[:, 0] == common, 1]
  judge(second, shares([*prompt, common]))


def test_equal_keys_draw_equal_tokens(model, io):
  def draw(seed, mask=io["mask"], **sampling):
    sampling = dict(temperature=0.9, top_p=0.9, key=jax.random.key(seed)) | sampling
    return generate(model, io["ids"], mask, io["features"], NEW, NEVER, **sampling)

  once = draw(1)
  np.testing.assert_array_equal(draw(1), once)
  assert np.any(draw(2) != once)
  np.testing.assert_array_equal(draw(1, temperature=0.0), io["said"])
  np.testing.assert_array_equal(draw(1, top_p=1e-9), io["said"])  # the likeliest token alone
  before = decode._cache_size()
  draw(5, temperature=0.3, top_p=0.5)
  assert decode._cache_size() == before
  ended = generate(
    model,
    io["ids"],
    io["mask"],
    io["features"],
    NEW,
    int(once[0, 2]),
    temperature=0.9,
    top_p=0.9,
    key=jax.random.key(1),
  )
  assert np.all(np.asarray(ended[0, 2:]) == int(once[0, 2]))


@pytest.mark.slow
def test_on_a_mesh_equal_keys_draw_equal_tokens(model, io):
  def draw(model, ids, mask, features):
    sampling = dict(temperature=0.9, top_p=0.9, key=jax.random.key(1))
    return generate(model, ids, mask, features, NEW, NEVER, **sampling)

  batch = io["ids"], io["mask"], io["features"]
  alone, split = (meshes.run(draw, model, *batch, shape=shape) for shape in (None, (4, 2)))
  np.testing.assert_array_equal(alone, split)


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 1.0])
def test_the_nucleus_is_torchs(top_p):
  torch = pytest.importorskip("torch")
  from transformers import TopPLogitsWarper

  logits = 3 * np.random.default_rng(0).normal(size=(64, 200)).astype(np.float32)
  theirs = TopPLogitsWarper(top_p)(None, torch.tensor(logits)).numpy()
  np.testing.assert_array_equal(nucleus(jnp.asarray(logits), jnp.float32(top_p)), theirs > -np.inf)


@pytest.mark.parametrize(
  ("options", "says"),
  [
    (dict(temperature=-1.0), "temperature=-1.0"),
    (dict(temperature=1.0), "give key=jax.random.key"),
    (dict(top_p=0.0), "top_p=0.0"),
    (dict(top_p=1.1), "top_p=1.1"),
    (dict(eos_id=[]), "eos_id is empty"),
  ],
)
def test_odd_options_are_refused(options, says, model, io):
  options = dict(eos_id=NEVER) | options
  with pytest.raises(ValueError, match=says):
    generate(model, io["ids"], io["mask"], io["features"], NEW, **options)


def test_scores_are_those_of_a_pass_over_each_answer(model, io):
  """Answers of one to four tokens after ragged prompts, each row on its own and unpadded."""
  random = np.random.default_rng(2)
  answers, lengths = random.integers(0, 38, (4, 4)), np.array([4, 1, 3, 2])
  answers[0] = io["said"][0, :4]  # what greedy decoding says
  given = np.arange(4)[None] < lengths[:, None]
  batch = io["ids"], io["mask"], io["features"], answers, given
  shapes = None, (4, 2)
  found = [jax.device_get(meshes.run(score_answers, model, *batch, shape=s)) for s in shapes]
  for row in (0, 2):  # with and without an image
    prompt, answer = io["ids"][row][io["mask"][row]], answers[row, : lengths[row]]
    ids = np.concatenate([prompt, answer])[None]
    hidden = model(jnp.asarray(ids), io["features"][row : row + 1])
    shares = jax.nn.log_softmax(model.logits(hidden[0, len(prompt) - 1 : -1]))
    wanted = shares[np.arange(len(answer)), answer]
    for likelihood, count, greedy in found:
      np.testing.assert_allclose(likelihood[row], wanted.sum(), rtol=1e-5, atol=1e-5)
      assert count[row] == len(answer)
      assert greedy[row] == np.array_equal(shares.argmax(-1), answer) == (row == 0)


def test_scores_do_not_see_where_the_padding_stands(model, io):
  answers = jnp.asarray(np.random.default_rng(2).integers(0, 38, (4, 3)))
  pad = jnp.argmax(io["mask"], axis=1)
  ids, mask = (
    jnp.stack([jnp.roll(row, -n) for row, n in zip(io[name], pad, strict=True)])
    for name in ("ids", "mask")
  )
  given = jnp.ones_like(answers, bool)
  left = score_answers(model, io["ids"], io["mask"], io["features"], answers, given)
  right = score_answers(model, ids, mask, io["features"], answers, given)
  np.testing.assert_array_equal(left[0], right[0])
  with pytest.raises(ValueError, match="a token before them"):
    score_answers(model, ids[:, :0], None, io["features"], answers, given)
