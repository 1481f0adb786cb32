"""The plan job: one train step compiled for chips that are not here."""

import json
import os
import re

from mixjax.jobs.workdir import claim, write_whole
from mixjax.progress import Reporter


def main(config: dict, workdir: str) -> None:
  """The job as the front door calls it: leaves plan.json."""
  # This machine only lowers: the default device must not be an accelerator, and `cpu:8` wants eight
  # devices, for which jax must not have started.
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  if wanted := re.fullmatch(r"cpu:([\dx]+)", config["topology"]):
    count = 1
    for size in wanted[1].split("x"):
      count *= int(size or 1)
    flags = os.environ.get("XLA_FLAGS", "")
    if "host_platform_device_count" not in flags:
      os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={count}".strip()
  from mixjax.training.plan import PlanConfig, plan

  settings = PlanConfig(**{name: value for name, value in config.items() if name != "job"})
  folder = claim(workdir, config)
  reporter = Reporter()
  reporter.stage("compile")
  result = plan(settings)
  write_whole(folder / "plan.json", json.dumps(result, indent=1))
  reporter.close()
  says = "fits" if result["fits"] else "does not fit"
  reporter.say(
    f"{settings.model} on {settings.topology}: {says}, {result['peak_gib']} of "
    f"{result['limit_gib']} GiB a chip"
  )
  for kind, gib in result["gib"].items():
    reporter.say(f"  {kind:12} {gib:7.2f} GiB")
  for kind, found in result["collectives"].items():
    reporter.say(f"  {kind:18} {found['count']:5} {found['bytes'] / 2**30:7.2f} GiB a chip")
  if result["step_seconds"]:
    reporter.say(f"  about {result['step_seconds']} s a step (an estimate: see plan.json)")
  for advice in result["advice"]:
    reporter.say(f"  try {advice}")
  reporter.say(f"plan: {folder / 'plan.json'}")
