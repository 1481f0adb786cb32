"""k-means of mixjax beside faiss and scikit-learn: seconds, inertia and memory.

  pip install faiss-cpu==1.15.1
  python tests/benchmarks/kmeans_bench.py [--rows 1000000] [--dim 768] [--clusters 100]
  python tests/benchmarks/kmeans_bench.py growth [--dim 64] [--clusters 100]

The first compares; the second runs mixjax alone on 10^5, 10^6 and 10^7 rows. Rows are unit vectors
like those of images: 2,000 groups of Zipf sizes below 100 larger ones, each spread along few
directions. They are written in chunks to a file under --folder, which is deleted at the end.

Contenders take turns, each in a process of its own with --threads threads, and all map the file.
Inertia is the sum over all rows of 1 - cosine to the nearest centroid, counted here by the same
code for all. faiss runs its 25 iterations over all rows, spherical; "faiss, sampled" is its default
of 256 rows a cluster; scikit-learn's MiniBatchKMeans is Euclidean with batches of 1,024 (default)
and its centroids are put on the sphere. Seconds are those of fitting alone, after a first read of
the file, and CPU seconds those of all threads, which other work on the machine changes less; memory
is the peak that no file backs, above what it was before.

Prints one line of JSON a run, then for each contender the ratios to mixjax of the same round.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np

CONTENDERS = ("mixjax", "mixjax, mini-batch", "faiss", "faiss, sampled", "scikit-learn")
GROWTH = (10**5, 10**6, 10**7)


def write(path, rows, dim, groups=2000, chunk=50_000):
  """Clustered unit vectors as float32 [rows, dim]."""
  rng = np.random.default_rng(0)
  larger = rng.normal(size=(100, dim))
  centres = larger[rng.integers(100, size=groups)] + 0.7 * rng.normal(size=(groups, dim))
  centres /= np.linalg.norm(centres, axis=1, keepdims=True)
  share = np.arange(1, groups + 1) ** -0.7
  rank = min(64, dim)
  spread = np.linalg.qr(rng.normal(size=(dim, dim)))[0][:rank]
  spread *= np.arange(1, rank + 1)[:, None] ** -0.5
  out = np.lib.format.open_memmap(path, "w+", np.float32, (rows, dim))
  for start in range(0, rows, chunk):
    count = min(chunk, rows - start)
    x = centres[rng.choice(groups, count, p=share / share.sum())]
    x = x + 0.35 * rng.normal(size=(count, rank)) @ spread
    x += 0.3 * dim**-0.5 * rng.normal(size=(count, dim))
    out[start : start + count] = x / np.linalg.norm(x, axis=1, keepdims=True)
  out.flush()


def mixjax(x, k, seed, **settings):
  from mixjax.atlas import lloyd
  from mixjax.models.mesh import make_mesh

  mesh = make_mesh()

  def fit():
    found = lloyd.fit(x, k, seed, mesh, lloyd.Settings(**settings))
    return found.centroids, len(found.history)

  return fit


def faiss(x, k, seed, **options):
  import faiss

  found = faiss.Kmeans(x.shape[1], k, niter=25, spherical=True, seed=seed + 1, **options)

  def fit():
    found.train(x)
    return found.centroids, 25

  return fit


def sklearn(x, k, seed):
  from sklearn.cluster import MiniBatchKMeans

  found = MiniBatchKMeans(k, random_state=seed, n_init=1)

  def fit():
    found.fit(x)
    return found.cluster_centers_, found.n_steps_ * found.batch_size / len(x)

  return fit


def contender(name, x, k, seed):
  """What is to be timed."""
  if name.startswith("mixjax"):
    return mixjax(x, k, seed, **({"mini_batch": 2.0} if "mini" in name else {}))
  if name == "faiss":
    return faiss(x, k, seed, max_points_per_centroid=len(x), min_points_per_centroid=1)
  if name == "faiss, sampled":
    return faiss(x, k, seed)
  return sklearn(x, k, seed)


def anonymous():
  """Bytes of memory of this process that no file backs."""
  status = pathlib.Path("/proc/self/status").read_text()
  return 1024 * int(status.split("RssAnon:")[1].split()[0])


def run(name, path, k, seed):
  """One contender, in this process."""
  x = np.load(path, mmap_mode="r")
  for start in range(0, len(x), 10**5):
    x[start : start + 10**5].sum()  # into the page cache
  fit = contender(name, x, k, seed)
  start, peak, stop = anonymous(), [0], threading.Event()

  def watch():
    while not stop.wait(0.01):
      peak[0] = max(peak[0], anonymous() - start)

  watcher = threading.Thread(target=watch)
  watcher.start()
  began, computed = time.perf_counter(), time.process_time()
  centroids, passes = fit()
  seconds, computed = time.perf_counter() - began, time.process_time() - computed
  stop.set()
  watcher.join()
  centroids = centroids / np.linalg.norm(centroids, axis=1, keepdims=True)
  inertia = sum(
    float(np.sum(1 - (x[start : start + 20_000] @ centroids.T).max(axis=1), dtype=np.float64))
    for start in range(0, len(x), 20_000)
  )
  return {
    "contender": name,
    "rows": len(x),
    "dim": x.shape[1],
    "clusters": k,
    "seed": seed,
    "seconds": round(seconds, 2),
    "cpu_seconds": round(computed, 2),
    "inertia": round(inertia, 1),
    "passes": round(passes, 1),
    "peak_mib": round(peak[0] / 2**20),
  }


def in_a_process(args, name, path, seed):
  threads = {
    name: str(args.threads)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
  }
  root = str(pathlib.Path(__file__).parent.parent.parent)
  search = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
  env = os.environ | threads | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": search}
  command = [sys.executable, __file__, "run", "--name", name, "--path", str(path)]
  command += ["--seed", str(seed), "--clusters", str(args.clusters)]
  done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
  print(done.stdout.splitlines()[-1], flush=True)
  return json.loads(done.stdout.splitlines()[-1])


def compare(args, path):
  write(path, args.rows, args.dim)
  names = args.contenders.split(";") if args.contenders else CONTENDERS
  rounds = [
    {name: in_a_process(args, name, path, seed) for name in names} for seed in range(args.repeats)
  ]
  for name in names[1:]:
    line = f"{name:20}"
    for figure in ("seconds", "cpu_seconds", "inertia", "peak_mib"):
      ratios = [one[name][figure] / one[names[0]][figure] for one in rounds]
      line += f"  {figure} x {statistics.median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f})"
    print(line)


def growth(args, path):
  for rows in GROWTH:
    write(path, rows, args.dim)
    for seed in range(args.repeats):
      in_a_process(args, "mixjax", path, seed)


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("what", nargs="?", choices=["compare", "growth", "run"], default="compare")
  parser.add_argument("--rows", type=int, default=10**6)
  parser.add_argument("--dim", type=int)
  parser.add_argument("--clusters", type=int, default=100)
  parser.add_argument("--repeats", type=int, default=2)
  parser.add_argument("--threads", type=int, default=2)
  parser.add_argument("--contenders", help="some of them, with ; in between", default="")
  parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path(tempfile.gettempdir()))
  parser.add_argument("--name")
  parser.add_argument("--path")
  parser.add_argument("--seed", type=int)
  args = parser.parse_args()
  if args.what == "run":
    print(json.dumps(run(args.name, args.path, args.clusters, args.seed)))
    return
  args.dim = args.dim or (64 if args.what == "growth" else 768)
  folder = args.folder / f"kmeans_bench_{os.getpid()}"
  folder.mkdir(parents=True)
  try:
    {"compare": compare, "growth": growth}[args.what](args, folder / "rows.npy")
  finally:
    shutil.rmtree(folder)


if __name__ == "__main__":
  main()
