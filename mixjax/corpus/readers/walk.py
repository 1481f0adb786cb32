"""Files under a folder, on a disk or in an object store."""

from collections.abc import Iterator, Sequence

from etils import epath


def under(folder: epath.Path, suffixes: Sequence[str]) -> Iterator[epath.Path]:
  """Files whose name ends with one of `suffixes`, however deep, in the order of their names.

  Hidden files and folders are passed over.
  """
  for path in sorted(folder.iterdir()):
    if path.name.startswith("."):
      continue
    if path.name.lower().endswith(tuple(suffixes)) and path.is_file():
      yield path
    elif path.is_dir():
      yield from under(path, suffixes)
