"""Eight fake devices for every test, shapes checked, and one finished tiny search shared by all."""

import os
import pathlib
import subprocess
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
# XLA's older code for fused loops compiles in two thirds of the time, and half of the tests' time
# is compilation. `run_main` drops the flags: the front door is tested with what users have.
os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

import pytest
from jaxtyping import install_import_hook

# Shape annotations are enforced here and cost nothing in production. Only where arrays alone go in:
# the search and the encoder also take lists, which they turn into arrays themselves.
CHECKED = ("models", "training", "evals", "atlas.embed", "atlas.kmeans", "data.loader")
install_import_hook([f"mixjax.{name}" for name in CHECKED], "beartype.beartype")

ROOT = pathlib.Path(__file__).parent.parent


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items):
  """Of two test processes one has all that share the finished search, and begins with it.

  A file is a group, or states that of which it is: files of one group share fits or programs.
  """
  for item in items:
    if "finished" in item.fixturenames:
      item.add_marker(pytest.mark.xdist_group("finished"))
    elif item.get_closest_marker("xdist_group") is None:
      item.add_marker(pytest.mark.xdist_group(item.path.name))
  items.sort(key=lambda item: "finished" not in item.fixturenames)


@pytest.fixture(scope="session")
def regmix():
  """The folder of RegMix's recorded runs, which are not part of this repository."""
  folder = pathlib.Path(os.environ.get("MIXJAX_RECORDED") or "missing") / "regmix"
  if not folder.exists():
    pytest.skip("MIXJAX_RECORDED names no folder with regmix/*_1m.csv (github.com/sail-sg/regmix)")
  return folder


@pytest.fixture(scope="session")
def run_main():
  """Runs the front door in a process of its own, as a user would."""

  def run(config, workdir, *flags, wait=True, check=True):
    command = [
      sys.executable,
      "-m",
      "mixjax.main",
      f"--config={config}",
      f"--workdir={workdir}",
      *flags,
    ]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    if not wait:
      return subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
      )
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    if check:
      assert done.returncode == 0, done.stdout + done.stderr
    return done

  return run


@pytest.fixture(scope="session")
def finished(run_main, tmp_path_factory):
  """The workdir of `configs/search.py:tiny`."""
  workdir = tmp_path_factory.mktemp("finished")
  run_main("configs/search.py:tiny", workdir)
  return workdir
