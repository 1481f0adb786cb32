"""What a compiled program sends between chips, read from its HLO text.

A collective inside a loop counts once for each turn, and each counts with the bytes that a chip
must send in the best known algorithm: (n - 1) / n of the whole array for a gather or scatter among
n chips, twice that for an all-reduce.
"""

import collections
import math
import re
from typing import NamedTuple

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s64": 8, "u64": 8}
BYTES |= {"f64": 8, "f32": 4, "s32": 4, "u32": 4}

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_OPERATION = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_CALLED = re.compile(r"(?:body|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r"known_trip_count[^\d}]*(\d+)")
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_LIMIT = re.compile(r"= s32\[\][^ ]* constant\((\d+)\)")
_CHANNEL = re.compile(r"channel_id=(\d+)")
# Groups of devices: [groups,size]<=[...], {{0,1,...},...}, or axes {'b'} of mesh['a'=4,'b'=2].
_SIZED_GROUPS = re.compile(r"replica_groups=\[\d+,(\d+)\]")
_LISTED_GROUPS = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_MESH_GROUPS = re.compile(r"replica_groups=mesh\[(.*?)\].*? \{([^}]*)\}")


class Collectives(NamedTuple):
  """Collectives of one kind in one run of a program: how many, and bytes sent by each chip."""

  count: int
  bytes: int


def read(hlo: str) -> dict[str, Collectives]:
  """Collectives by kind of a compiled program's text (`compiled.as_text()`).

  A loop whose number of turns the text does not tell counts once. Raises ValueError for other text.
  """
  bodies, entry = _computations(hlo)
  runs: dict[str, int] = collections.Counter()

  def visit(name: str, times: int):
    runs[name] += times
    for line in bodies[name]:
      turns = _turns(line, bodies) if " while(" in line else 1
      for called in _called(line):
        if called in bodies:
          visit(called, times * turns)

  visit(entry, 1)
  # A TPU's compiler spreads one collective over several fusions, all of the same channel.
  channels: dict[tuple[str, str], Collectives] = {}
  for name, times in runs.items():
    for line in bodies[name]:
      operation = _OPERATION.search(line)
      if operation is None:
        continue
      # So a TPU's compiler writes a reduce-scatter.
      scattered = operation[2] == "all-reduce" and name.startswith("all-reduce-scatter")
      kind = "reduce-scatter" if scattered else operation[2]
      channel = _CHANNEL.search(line)
      key = kind, channel[1] if channel else f"{name} {line}"
      size = times * _sent(line, operation, scattered)
      channels[key] = max(channels.get(key, Collectives(0, 0)), Collectives(times, size))
  found = {kind: Collectives(0, 0) for kind in KINDS}
  for (kind, _), (count, size) in channels.items():
    found[kind] = Collectives(found[kind].count + count, found[kind].bytes + size)
  return {kind: each for kind, each in found.items() if each.count}


def _computations(hlo: str) -> tuple[dict[str, list[str]], str]:
  """{name: lines} of every computation, and which one the program begins with."""
  bodies: dict[str, list[str]] = {}
  entry, lines = "", []
  for line in hlo.splitlines():
    if header := _COMPUTATION.match(line):
      lines = bodies[header[1]] = []
      if line.startswith("ENTRY"):
        entry = header[1]
    elif line.startswith(" "):
      lines.append(line)
  if not entry:
    raise ValueError("this is not the text of a compiled program: it has no ENTRY computation")
  return bodies, entry


def _turns(line: str, bodies: dict[str, list[str]]) -> int:
  """How often a loop turns: as the compiler notes, or the bound in its condition."""
  if noted := _TRIPS.search(line):
    return int(noted[1])
  condition = _CONDITION.search(line)
  bounds = _LIMIT.findall("\n".join(bodies.get(condition[1], []))) if condition else []
  return int(bounds[0]) if len(bounds) == 1 else 1


def _called(line: str) -> list[str]:
  called = _CALLED.findall(line)
  for names in _BRANCHES.findall(line):
    called += [name.strip().lstrip("%") for name in names.split(",")]
  return called


def _sent(line: str, operation: re.Match, scattered: bool) -> int:
  """Bytes that one chip sends for one collective."""
  kind, started = operation[2], operation[3]
  sizes = [
    BYTES.get(element, 4) * math.prod(int(n) for n in shape.split(",") if n)
    for element, shape in _ARRAY.findall(operation[1])
  ]
  # The result of a start holds its operand and the array to come.
  size = max(sizes) if started else sum(sizes)
  chips = group(line)
  if kind == "collective-permute":
    return size
  if kind == "reduce-scatter" and not started:
    size *= chips
  share = size * (chips - 1) / chips
  return round(2 * share if kind == "all-reduce" and not scattered else share)


def group(line: str) -> int:
  """How many chips take part in each group of the collective in a line of HLO."""
  if sized := _SIZED_GROUPS.search(line):
    return int(sized[1])
  if listed := _LISTED_GROUPS.search(line):
    return len(listed[1].split(","))
  if named := _MESH_GROUPS.search(line):
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
    # An axis may be named in part: 'a':(2)4 is 4 of its devices.
    axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", named[2])
    return math.prod(int(part or sizes[axis]) for axis, part in axes)
  return 1
