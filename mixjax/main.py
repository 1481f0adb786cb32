"""The front door of every job.

python -m mixjax.main --config=configs/NAME.py[:key=value,...] --workdir=DIR
"""

import contextlib
import ctypes
import importlib
import os
import sys

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where everything is written, and resumed from.")


def keep_freed_memory() -> None:
  """Tells glibc to keep the memory that a train step frees for the next step, not to hand it back.

  XLA on a CPU allocates its temporaries anew each step; the page faults otherwise cost a tiny model
  more than half its speed. Elsewhere than on glibc this does nothing.
  """
  trim_threshold, mmap_max, arena_max = -1, -4, -8  # of malloc.h
  with contextlib.suppress(OSError, AttributeError):
    mallopt = ctypes.CDLL("libc.so.6").mallopt
    mallopt(arena_max, 1)
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)


def main(argv: list[str]) -> None:
  """Hands over to the job that the config names. Bad input ends with one clear line and status
  2.
  """
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments {argv[1:]}: everything is a flag")
  logging.set_verbosity(logging.WARNING)  # jobs report through mixjax.progress
  config = _CONFIG.value
  keep_freed_memory()  # before jax starts
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # of what is not installed
  job = importlib.import_module(f"mixjax.jobs.{config.job}")
  try:
    job.main(config.to_dict(), _WORKDIR.value)
  except (ValueError, FileNotFoundError, FloatingPointError) as error:
    logging.debug("where it happened", exc_info=True)
    print(f"mixjax: {error}", file=sys.stderr)
    sys.exit(2)
  except KeyboardInterrupt:
    print("\nmixjax: stopped; the same command goes on from here", file=sys.stderr, flush=True)
    os._exit(130)  # at once: workers end with their parent, and every file is whole


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "workdir"])
  app.run(main)
