"""Real tables that pip packages carry, cut into slices of whole rows for the charts."""

import csv
import datetime
import functools
import gzip
import importlib.util
import json
import pathlib
from collections.abc import Iterator

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
LETTERS = ("k", "m", "r", "t", "z")
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
MAKES = {
  "ford": "ford", "fiat": "fiat", "opel": "opel", "saab": "saab", "audi": "audi", "bmw": "bmw",
  "amc": "amc", "volkswagen": "vw", "vw": "vw", "chevrolet": "chev", "buick": "buic",
  "dodge": "dodg", "toyota": "toyo", "honda": "hond", "datsun": "dats", "mazda": "mazd",
  "volvo": "volv", "pontiac": "pont", "plymouth": "plym", "mercury": "merc",
}  # fmt: skip
SLICE = 5  # rows, where a table has no calendar of its own
FEWEST = 4  # labels that a usable column needs

# A row is a label with the whole numbers of its columns, None where the value is no number to show.
Row = tuple[str, tuple[int | None, ...]]


def _folder(package: str, inside: str) -> pathlib.Path:
  spec = importlib.util.find_spec(package)
  if spec is None or not spec.submodule_search_locations:
    raise FileNotFoundError(f"the gallery's charts need the package {package}: pip install it")
  return pathlib.Path(spec.submodule_search_locations[0]) / inside


def _csv(package: str, file: str) -> list[list[str]]:
  path = _folder(package, file)
  with open(path, newline="") as lines:
    return list(csv.reader(lines))


def _whole(value: float | None) -> int | None:
  whole = -1 if value is None else int(value + 0.5)
  return whole if 1 <= whole <= 99 else None


def _weather() -> Iterator[tuple[str, list[Row]]]:
  weeks: dict[str, list[Row]] = {}
  for date, *columns, _ in _csv("vega_datasets", "_data/seattle-weather.csv")[1:]:
    year, week, day = datetime.datetime.strptime(date, "%Y/%m/%d").isocalendar()
    numbers = tuple(_whole(float(c)) for c in columns)
    weeks.setdefault(f"weather:{year}-{week}", []).append((DAYS[day - 1], numbers))
  yield from weeks.items()


def _stocks() -> Iterator[tuple[str, list[Row]]]:
  """Tens of dollars, or dollars for what costs less than 100, of a half-year's months."""
  halves: dict[str, list[Row]] = {}
  for symbol, date, price in _csv("vega_datasets", "_data/stocks.csv")[1:]:
    month, _, year = date.lower().split()
    half = f"stocks:{symbol.lower()}-{year}-{MONTHS.index(month) // 6}"
    dollars = float(price)
    halves.setdefault(half, []).append((month, (_whole(dollars), _whole(dollars / 10))))
  yield from halves.items()


def _cars() -> Iterator[tuple[str, list[Row]]]:
  """Five makes: litres per 100 km, tens of horsepower, seconds to 60 mph, hundreds of pounds."""
  cars = json.loads(_folder("vega_datasets", "_data/cars.json").read_text())
  waiting: list[list[Row]] = []
  number = 0
  for car in cars:
    make = MAKES.get(car["Name"].split()[0])
    if make is None:
      continue
    litres = 235.2 / car["Miles_per_Gallon"] if car["Miles_per_Gallon"] else None
    power = car["Horsepower"] / 10 if car["Horsepower"] else None
    values = (litres, power, car["Acceleration"], car["Weight_in_lbs"] / 100)
    row = (make, tuple(_whole(v) for v in values))
    free = next((rows for rows in waiting if make not in [m for m, _ in rows]), None)
    if free is None:
      free = []
      waiting.append(free)
    free.append(row)
    if len(free) == SLICE:
      waiting.remove(free)
      yield f"cars:{number}", free
      number += 1


def _samples(name: str, rows: list[list[float]]) -> Iterator[tuple[str, list[Row]]]:
  """Five samples of a table at a time, labelled by letters."""
  for start in range(0, len(rows) - SLICE + 1, SLICE):
    part = rows[start : start + SLICE]
    labelled = [(k, tuple(_whole(v) for v in row)) for k, row in zip(LETTERS, part, strict=True)]
    yield f"{name}:{start}", labelled


def _sklearn(name: str, file: str, scales: dict[int, float]) -> Iterator[tuple[str, list[Row]]]:
  """`scales`: column -> what one unit of the chart is worth."""
  path = _folder("sklearn", f"datasets/data/{file}")
  packed = path.read_bytes()
  text = gzip.decompress(packed) if path.suffix == ".gz" else packed
  parsed = [line.replace(",", " ").split() for line in text.decode().splitlines()]
  if not file.endswith(".gz"):
    parsed = parsed[1:]
  yield from _samples(name, [[float(row[c]) / s for c, s in scales.items()] for row in parsed])


def _tables() -> Iterator[tuple[str, list[Row]]]:
  yield from _weather()
  yield from _stocks()
  yield from _cars()
  yield from _sklearn("diabetes", "diabetes_data_raw.csv.gz", {0: 5, 2: 1, 3: 10, 7: 0.5, 9: 10})
  yield from _sklearn("cancer", "breast_cancer.csv", {0: 1, 1: 1, 6: 0.01, 3: 100, 12: 1, 13: 5})
  yield from _sklearn("wine", "wine_data.csv", {3: 1, 4: 5, 9: 0.5, 12: 100, 1: 0.25})
  yield from _sklearn("iris", "iris.csv", {0: 0.1, 2: 0.1, 3: 0.1, 1: 0.1})


@functools.lru_cache(maxsize=1)
def slices() -> dict[str, tuple[dict[str, int], ...]]:
  """source -> its columns, each {label: value}; no row of a table is in two slices.

  A column keeps the labels whose values differ, and is left out with fewer than FEWEST of them.
  """
  found = {}
  for source, rows in _tables():
    columns = []
    for c in range(len(rows[0][1])):
      column: dict[str, int] = {}
      for label, values in rows:
        value = values[c]
        if value is not None and label not in column and value not in column.values():
          column[label] = value
      if len(column) >= FEWEST:
        columns.append(column)
    if columns:
      found[source] = tuple(columns)
  return found
