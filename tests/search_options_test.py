"""What a config may ask of the search, and a search that goes on past what goes wrong."""

import concurrent.futures
import dataclasses
import json
import pathlib

import numpy as np
import pytest
from etils import epath

from configs.search import get_config
from mixjax.data import mixture
from mixjax.evals.benchmarks import BENCHMARKS
from mixjax.jobs import pool as pool_lib
from mixjax.jobs.runner import Ask, Diverged, Runner
from mixjax.jobs.search import _baselines, main, search
from mixjax.jobs.search_config import SPACES, parse, spaces
from mixjax.jobs.trial import TrialSpec
from mixjax.progress import Reporter
from mixjax.search import structured
from mixjax.search.policies.mixatlas import MixAtlas
from mixjax.search.space import Space
from mixjax.search.study import Study

CONCEPTS, TASKS = ("animals", "boards", "charts", "diagrams"), ("ocr", "vqa")
SIZES = (30, 40, 0, 50, 60, 20, 45, 35)
ROWS = dict(zip((f"{c}/{t}" for c in CONCEPTS for t in TASKS), SIZES, strict=True))
OFTEN = 1.6  # how often a row may be seen: uniform shows those of charts/vqa more often
KNOWN = {"uniform": mixture.uniform(ROWS), "natural": mixture.natural(ROWS)}
BOX = "<1><1><5><5>"  # an answer for any benchmark
RISING = np.random.default_rng(0).uniform(-20, 20, (len(BENCHMARKS), len(ROWS)))


def scores_of(spec):
  noise = np.random.default_rng([spec.seed, *(int(1e6 * w) for w in spec.weights.values())])
  values = 50 + RISING @ list(spec.weights.values()) + noise.normal(size=len(BENCHMARKS))
  return {name: {"score": value} for name, value in zip(BENCHMARKS, values.tolist(), strict=True)}


class Pool:
  """Stands where the pool of processes does, and as it only reads a result that is there."""

  def __init__(self, diverges=lambda spec: False, scores=scores_of):
    self.diverges, self.scores, self.ran = diverges, scores, []

  def run(self, specs, on_done, on_diverged):
    for spec in specs:
      path = pathlib.Path(spec.folder) / "result.json"
      if path.exists():
        on_done(spec, json.loads(path.read_text()))
        continue
      self.ran.append(spec)
      if self.diverges(spec):
        on_diverged(spec, FloatingPointError("the loss is nan at step 2"))
        continue
      path.write_text(json.dumps({"scores": {"validation": self.scores(spec)}}))
      on_done(spec, json.loads(path.read_text()))


def configured(axis="product", **changes):
  budget = dict(seeds=3, runs=7, replicates=2)
  return parse(get_config("tiny").to_dict() | dict(axes={axis: budget}, headline=axis) | changes)


def search_with(folder, config, pool):
  runner = Runner(folder, pool, config.proxy, config.seed, Reporter(), config.weights)
  return search(config, runner, ROWS, KNOWN, Reporter())


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
  """(study, what search.json would hold) of a search in which nothing goes wrong."""
  folder = tmp_path_factory.mktemp("plain")
  return folder, search_with(folder, configured(), Pool())


def test_the_defaults_of_the_config_are_those_of_the_policy():
  options = dataclasses.asdict(parse(get_config().to_dict()).search)
  assert options.pop("repetition") == 0
  fields = {field.name: field.default for field in dataclasses.fields(MixAtlas)}
  assert options == {name: fields[name] for name in options}


def test_nothing_new_is_told_of_a_search_with_the_defaults(plain):
  _, found = plain
  assert set(found) == {"benchmarks", "noise", "baselines", "axes"}
  assert "diverged" not in found["axes"]["product"]
  assert list(SPACES)[:3] == ["task", "concept", "product"]


def test_the_joint_space_weighs_each_cell_with_rows_and_names_all():
  space = Space.joint(CONCEPTS, TASKS, empty={"boards/ocr"})
  assert space.names == tuple(cell for cell, n in ROWS.items() if n)
  assert space.cells(space.uniform()) == pytest.approx(KNOWN["uniform"])
  point = np.arange(1, 8) / 28
  cells = space.cells(point)
  assert list(cells) == list(ROWS) and cells["boards/ocr"] == 0
  assert [w for w in cells.values() if w] == pytest.approx(point.tolist())
  assert isinstance(structured.form_of(space), structured.Grid)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(axes={"tasks": {"seeds": 1, "runs": 2}}), "'tasks'.*task, concept, product, joint"),
    (dict(axes={"product": dict(seeds=8, runs=9, replicates=2)}), "9 runs for 8 seeds and 2 rep"),
    (dict(headline="joint"), "'joint', which is not searched: make headline one of product"),
    (dict(search={"kapa": 1.0}), "no option .'kapa'.; known are acquisition, kappa"),
    (dict(search={"acquisition": "ei"}), "acquisition is one of .*log_ei.*not 'ei'"),
    (dict(search={"acquisition": "thompson", "continuous": True}), "thompson"),
    (dict(search={"kappa": float("nan")}), "search.kappa is nan"),
    (dict(search={"repetition": -1.0}), "search.repetition is -1"),
    (dict(objective={"charts": -1.0}), "weight of 'charts' is -1"),
    (dict(objective={"charts": 0.0}), "no benchmark has a weight"),
  ],
)
def test_what_cannot_be_is_named_when_the_config_is_read(changes, message):
  with pytest.raises(ValueError, match=message):
    parse(get_config("tiny").to_dict() | changes)


def test_what_is_no_benchmark_is_named_before_the_workdir_is_claimed(tmp_path):
  config = get_config("tiny").to_dict() | dict(job="search", objective={"chrats": 1.0})
  with pytest.raises(ValueError, match=r"'chrats'.*no benchmarks; known are relations"):
    main(config, str(tmp_path))
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  "axis",
  [pytest.param("joint", marks=pytest.mark.slow), "product"],  # a minute of climbing
)
def test_every_method_keeps_to_the_supply_and_every_score_to_the_objective(tmp_path, axis):
  objective = {"charts": 3.0, "maths": 1.0}
  options = dict(acquisition="log_ei", continuous=axis == "joint", repetition=OFTEN)
  config = configured(axis, search=options, objective=objective)
  found = search_with(tmp_path, config, Pool())
  side = found["axes"][axis]
  proposed = [trial.mixture for trial in Study(tmp_path).trials() if trial.axis == axis]
  assert len(proposed) > 10
  for cells in proposed + [advice["weights"] for advice in side["recommended"].values()]:
    assert all(256 * share <= OFTEN * ROWS[cell] + 1e-6 for cell, share in cells.items())
  assert any(256 * share > OFTEN * ROWS[cell] for cell, share in KNOWN["uniform"].items())
  assert found["baselines"]["uniform"]["weights"] == KNOWN["uniform"]
  assert found["objective"] == {"charts": 0.75, "maths": 0.25}
  assert found["search"]["repetition"] == OFTEN
  for run in side["history"]:
    by_name = dict(zip(found["benchmarks"], run["vector"], strict=True))
    assert run["score"] == pytest.approx(0.75 * by_name["charts"] + 0.25 * by_name["maths"])
  observed = side["leave_one_out"]["observed"]
  mine = [run["score"] for run in side["history"] if run["purpose"] != "random"]
  assert observed == pytest.approx(found["noise"]["uniform"] + mine)


@pytest.mark.parametrize("axis", list(SPACES))
def test_every_axis_has_a_pool_within_the_supply(axis):
  config = configured(axis, search=dict(repetition=OFTEN))
  space, limits = spaces(config, ROWS)[axis]
  shares = np.array([list(space.cells(point).values()) for point in space.pool])
  assert len(space.pool) == config.pool and limits.within(space.pool).all()
  assert (256 * shares <= OFTEN * np.array(list(ROWS.values())) + 1e-6).all()


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(search=dict(repetition=0.5)), "on the product axis .* 0.5 times in 256 target samples"),
    (dict(pool=4), "a pool of 4 candidates for 7 runs"),
  ],
)
def test_a_search_that_cannot_end_does_not_begin(tmp_path, changes, message):
  pool = Pool()
  with pytest.raises(ValueError, match=message):
    search_with(tmp_path, configured(**changes), pool)
  assert not pool.ran


@pytest.mark.parametrize("names", [("invoices", "parts"), ("parts",)])
def test_a_search_follows_the_benchmarks_of_ones_own_questions(tmp_path, names):
  asked = [
    {"id": name, "benchmark": name, "image": "i.png", "prompt": "What?", "answer": "a"}
    | {"metric": "exact match"}
    for name in names[::-1]
  ]
  (tmp_path / "i.png").touch()
  for split in ("validation", "benchmark"):
    (tmp_path / f"{split}.json").write_text(json.dumps(asked))
  arg = f"tiny,corpus=train.json,questions={tmp_path}"
  budget = dict(seeds=3, runs=7, replicates=2)
  changes = dict(axes=dict(product=budget), objective={"parts": 2.0})
  config = parse(get_config(arg).to_dict() | changes)

  def scores(spec):
    return dict(zip(names, list(scores_of(spec).values()), strict=False))

  found = search_with(tmp_path, config, Pool(scores=scores))
  assert found["benchmarks"] == list(names) and found["objective"] == {"parts": 1.0}
  for run in found["axes"]["product"]["history"]:
    assert run["score"] == run["vector"][names.index("parts")] and len(run["vector"]) == len(names)


def infeasible(folder):
  return [trial for trial in Study(folder).trials() if trial.state == "infeasible"]


def test_the_search_goes_on_past_proxies_that_diverge_and_so_does_a_resumed_one(tmp_path):
  def diverges(spec):
    return spec.weights["diagrams/ocr"] + spec.weights["diagrams/vqa"] > 0.3

  pool = Pool(diverges)
  found = search_with(tmp_path, configured(), pool)
  side = found["axes"]["product"]
  lost = infeasible(tmp_path)
  assert {run["purpose"] == "random" for run in side["diverged"]} == {True, False}
  assert {trial.detail for trial in lost} == {"the loss is nan at step 2"}
  assert {run["trial"] for run in side["diverged"]} == {trial.id for trial in lost}
  # A run that diverged is spent, and its mixture proposed to nobody again.
  runs = side["history"] + side["diverged"]
  assert sum(run["purpose"] != "random" for run in runs) == 7
  assert sum(run["purpose"] == "random" for run in runs) == 7
  assert len({(spec.seed, *spec.weights.values()) for spec in pool.ran}) == len(pool.ran)
  assert not {run["trial"] for run in side["history"]} & {trial.id for trial in lost}
  again = Pool(diverges)
  assert json.dumps(search_with(tmp_path, configured(), again)) == json.dumps(found)
  assert not again.ran


def test_what_looks_best_and_diverges_is_proposed_once(tmp_path):
  pull = RISING.mean(axis=0)
  pool = Pool(lambda spec: pull @ list(spec.weights.values()) > 1.2)  # a third of the candidates
  axes = {"product": dict(seeds=3, runs=9, replicates=1)}
  found = search_with(tmp_path, configured(batch=1, axes=axes), pool)
  diverged = found["axes"]["product"]["diverged"]
  lost = [run["trial"] for run in diverged if run["purpose"] == "mixatlas"]
  assert len(lost) > 1 and len(lost) == len(set(lost))


def test_scores_that_are_not_finite_are_a_divergence_too(tmp_path):
  def scores(spec):
    return scores_of(spec) | ({"charts": {"score": float("nan")}} if spec.seed else {})

  runner = Runner(tmp_path, Pool(scores=scores), configured().proxy, 0, Reporter())
  asks = [Ask("uniform", "none", KNOWN["uniform"], {}, replicate=i) for i in range(2)]
  first, second = runner.run(asks)
  assert first.score > 0 and second == Diverged(1, infeasible(tmp_path)[0].detail)
  assert "lower the learning rate" in second.why


@pytest.mark.parametrize("name", KNOWN)
def test_a_baseline_that_diverges_ends_the_search_with_the_remedy(tmp_path, name):
  for ran in (3, 0):
    pool = Pool(lambda spec: spec.weights == KNOWN[name])
    with pytest.raises(ValueError, match=f"baseline '{name}'.*step 2.*lower proxy.learning_rate"):
      search_with(tmp_path, configured(), pool)
    assert len(pool.ran) == ran


def test_a_replicate_that_diverges_is_left_out(tmp_path):
  config = configured(uniform_seeds=1)
  found = search_with(tmp_path, config, Pool(lambda spec: spec.seed == 2))
  side = found["axes"]["product"]
  assert [run["purpose"] for run in side["diverged"]] == ["replicate"]
  assert [run["purpose"] for run in side["history"]].count("replicate") == 1
  assert len(side["leave_one_out"]["observed"]) == 1 + 7 - 1


def test_where_every_proxy_diverges_the_remedy_is_named(tmp_path):
  def diverges(spec):
    return spec.weights not in KNOWN.values()

  with pytest.raises(ValueError, match="every proxy of mixatlas on the product axis diverged"):
    search_with(tmp_path, configured(), Pool(diverges))


def test_a_search_with_torn_trials_goes_on_with_the_same_command(plain):
  folder, found = plain
  before = {path: path.read_bytes() for path in folder.glob("trials/*/*.json")}
  for trial in (4, 9):
    path = folder / "trials" / f"{trial:05d}" / "mixture.json"
    path.write_bytes(before[path][:40])
  # What is left there may be of any mixture: it is not to pass for this one's.
  (folder / "trials" / "00004" / "result.json").write_text(
    json.dumps({"scores": {"validation": {name: {"score": 1.0} for name in BENCHMARKS}}})
  )
  pool = Pool()
  assert json.dumps(search_with(folder, configured(), pool)) == json.dumps(found)
  assert [pathlib.Path(spec.folder).name for spec in pool.ran] == ["00004", "00009"]
  assert {path: path.read_bytes() for path in before} == before
  kept = [path.name.split("-", 2)[2] for path in folder.glob("trials/00004/orphan-*")]
  assert sorted(kept) == ["mixture.json", "result.json", "scores.json", "status.json"]


def test_only_who_asks_for_it_survives_a_divergence(monkeypatch):
  def run(spec):
    if spec.seed == 1:
      raise FloatingPointError("the loss is nan")
    return {"seed": spec.seed}

  monkeypatch.setattr(pool_lib, "_run", run)
  budget = configured().proxy
  specs = [TrialSpec("", {}, seed, budget) for seed in range(3)]
  lost = []
  with concurrent.futures.ThreadPoolExecutor(1) as executor:
    pool = pool_lib.LocalPool(executor)
    results = pool.run(specs, on_diverged=lambda spec, error: lost.append((spec.seed, str(error))))
    assert results == [{"seed": 0}, None, {"seed": 2}] and lost == [(1, "the loss is nan")]
    with pytest.raises(FloatingPointError):
      pool.run(specs)


def test_the_matched_mixture_is_the_gallerys_alone_and_knows_renamed_concepts(tmp_path):
  folder = tmp_path / "atlas"
  (folder / "questions").mkdir(parents=True)
  counts = {"a-b": {"charts": 3}, "c-d": {"emoji": 3}}
  (folder / "card.json").write_text(json.dumps({"domains": counts}))
  (folder / "atlas.json").write_text(json.dumps({"names": ["plots", "c-d"]}))
  asked = [
    {"id": name, "benchmark": name, "image": "i.png", "prompt": "What?", "answer": BOX}
    | {"choices": [BOX, "b"], "domain": "charts"}
    for name in BENCHMARKS
  ]
  (folder / "questions" / "validation.json").write_text(json.dumps(asked))
  rows = {"plots/ocr": 3, "plots/vqa": 3, "c-d/vqa": 3}
  config = parse(get_config("tiny").to_dict())
  weights = _baselines(config, epath.Path(folder), rows)["matched"]
  assert weights["c-d/vqa"] == 0
  assert weights["plots/vqa"] > weights["plots/ocr"] > 0
  theirs = dataclasses.replace(config.atlas, corpus="train.json", questions="q")
  found = _baselines(dataclasses.replace(config, atlas=theirs), epath.Path(folder), rows)
  assert set(found) == {"uniform", "natural"}
