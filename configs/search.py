"""The main job on the gallery: search on cheap proxies, a recipe, target runs, a report.

  python -m mixjax.main --config=configs/search.py --workdir=RUN
  python -m mixjax.main --config=configs/search.py:full --workdir=RUN

The first is what launch/quickstart.sh runs; the second makes the README's table, within an hour on
2 cores. A corpus of your own: `configs/search.py:corpus=train.json,questions=DIR,checkpoints=DIR`.
"""

from ml_collections import ConfigDict

from configs.common import parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
  """full: larger budgets and 3 target seeds; tiny: a minute, for tests.

  text_length: tokens of a row beside its picture's; longer answers are cut, and rows whose prompt
    alone is longer give way to others of their cell. Both are counted.
  concepts, reading, split, images, labels: see configs/atlas.py.
  """
  args = parse_arg(
    arg,
    full=False,
    tiny=False,
    seed=0,
    corpus="gallery",
    questions="",
    checkpoints="",
    text_length=48,
    concepts=10,
    reading="",
    split="",
    images="",
    labels="rules",
  )
  described = ("reading", "split", "images", "labels")
  checkpoints = args["checkpoints"] or "mixjax/standins"
  config = dict(
    job="search",
    seed=args["seed"],
    headline="product",
    pool=2000,
    batch=4,
    uniform_seeds=4,
    target_seeds=1,
    correlation_mixtures=0,
    top=16,
    floor=0.1,
    # repetition: how often a target run may see a row; 0 is as often as it likes
    search=dict(acquisition="ucb", kappa=1.0, continuous=False, repetition=0.0),
    objective=dict(),  # {benchmark: weight}; empty weighs all alike
    atlas=dict(
      corpus=args["corpus"], questions=args["questions"], checkpoints=args["checkpoints"],
      concepts=args["concepts"], seed=args["seed"], gallery_scale=1.0, per_benchmark=150,
      workers=2, text_length=args["text_length"], **{name: args[name] for name in described},
    ),
    # runs: proxies a method may spend on the axis, one of task, concept, product and joint
    axes=dict(
      task=dict(seeds=8, runs=12, replicates=0),
      concept=dict(seeds=8, runs=12, replicates=0),
      product=dict(seeds=16, runs=32, replicates=4),
    ),
    proxy=dict(
      model=f"{checkpoints}/proxy", samples=2048, batch_size=32, learning_rate=2e-3, save_every=0,
      curve_points=0,
    ),
    target=dict(
      model=f"{checkpoints}/target", samples=8192, batch_size=32, learning_rate=1e-3, save_every=64,
      curve_points=8,
    ),
  )  # fmt: skip
  if args["full"]:
    config |= dict(target_seeds=3, correlation_mixtures=12, uniform_seeds=6)
    config["axes"] = dict(
      task=dict(seeds=12, runs=32, replicates=4),
      concept=dict(seeds=12, runs=32, replicates=4),
      product=dict(seeds=24, runs=64, replicates=6),
    )
    config["proxy"]["samples"] = 3072
    config["target"] |= dict(samples=12288, curve_points=16)
  if args["tiny"]:
    config |= dict(pool=64, batch=2, uniform_seeds=2, top=4)
    config["axes"] = dict(product=dict(seeds=2, runs=5, replicates=1))
    config["atlas"] |= dict(gallery_scale=0.05, per_benchmark=8)
    config["proxy"]["samples"] = 64
    config["target"] |= dict(samples=256, save_every=4, curve_points=2)
  return ConfigDict(config)
