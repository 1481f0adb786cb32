"""The recipe: a chosen mixture with its uncertainty, its evidence, and what it was made from."""

import hashlib
import importlib.metadata
import json

from etils import epath

FORMAT = 1
PACKAGES = ("jax", "flax", "optax", "grain", "tinygp", "orbax-checkpoint", "numpy", "scipy")


def sha256(path: epath.Path) -> str:
  return hashlib.sha256(path.read_bytes()).hexdigest()


def make(found: dict, headline: str, workdir: epath.Path) -> dict:
  """The recipe of `search.json` on its headline axis.

  `objective` is the posterior mean and sd of the recommended mixture (mean answer likelihood over
  the benchmarks, or their weighted sum, 0-100), never the luckiest run. It holds no clock and no
  path: same search, same bytes.
  """
  side = found["axes"][headline]
  chosen = side["recommended"]["mixatlas"]
  uniform_mean, uniform_sd = side["uniform_posterior"]
  trials = [h for h in side["history"] if h["purpose"] != "random"]
  return {
    "format": FORMAT,
    "axis": headline,
    "weights": chosen["weights"],
    "point": chosen["point"],
    "objective": {
      "name": _objective(found.get("objective")),
      "mean": chosen["mean"],
      "sd": chosen["sd"],
      "uniform": {"mean": uniform_mean, "sd": uniform_sd},
    },
    "evidence": {
      "policy": "mixatlas",
      "proxy_runs": len(trials),
      "noise_sd": found["noise"]["sd"],
      "best_observed": max(h["score"] for h in trials),
      "trials": [h["trial"] for h in trials],
    },
    "provenance": {
      "corpus_sha256": json.loads((workdir / "atlas" / "embedded.json").read_text())[
        "corpus_sha256"
      ],
      "atlas_sha256": sha256(workdir / "atlas" / "atlas.json"),
      "centroids_sha256": sha256(workdir / "atlas" / "centroids.npy"),
      "study_sha256": _study_digest(workdir / "study" / "trials"),
      "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    },
  }


def _objective(weights: dict[str, float] | None) -> str:
  if weights is None:
    return "mean answer likelihood over the benchmarks, 0-100"
  shares = ", ".join(f"{100 * share:.3g}% {name}" for name, share in weights.items())
  return f"answer likelihood weighted over the benchmarks ({shares}), 0-100"


def _study_digest(folder: epath.Path) -> str:
  """Over every trial's mixture and scores, in order."""
  digest = hashlib.sha256()
  for trial in sorted(folder.iterdir()):
    for name in ("mixture.json", "scores.json"):
      if (trial / name).exists():
        digest.update((trial / name).read_bytes())
  return digest.hexdigest()


def describe(recipe: dict, lines: int = 8) -> str:
  """A few lines for a terminal."""
  objective = recipe["objective"]
  top = sorted(recipe["weights"].items(), key=lambda item: -item[1])[:lines]
  said = [
    f"recipe ({recipe['axis']} axis): expected {objective['mean']:.2f} +- {objective['sd']:.2f}, "
    f"uniform {objective['uniform']['mean']:.2f} +- {objective['uniform']['sd']:.2f}"
  ]
  said += [f"  {100 * weight:5.1f}%  {cell}" for cell, weight in top]
  return "\n".join([*said, f"  ... over {len(recipe['weights'])} cells"])


def load(path: epath.PathLike) -> dict:
  """Reads a recipe; ValueError when its format is not this version's or its weights are missing."""
  recipe = json.loads(epath.Path(path).read_text())
  if recipe.get("format") != FORMAT or "weights" not in recipe:
    raise ValueError(f"{path} is not a recipe of format {FORMAT}")
  return recipe
