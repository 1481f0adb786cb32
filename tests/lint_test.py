"""Lint: every injected fault is found under its reason, and nothing stops it."""

import io
import json
import re
import zlib

import numpy as np
import pytest
from PIL import Image

from configs import atlas as atlas_config
from mixjax.corpus import pixels
from mixjax.corpus.lint import languages, lookalike, picture, report
from mixjax.jobs import lint
from mixjax.progress import Reporter


def photo(seed, side=120):
  """A picture like no other: smooth noise."""
  rng = np.random.default_rng(seed)
  coarse = Image.fromarray(rng.integers(0, 256, (7, 7, 3), np.uint8))
  return coarse.resize((side, side), Image.Resampling.BICUBIC)


def encoded(image, kind="PNG", **options):
  out = io.BytesIO()
  image.save(out, kind, **options)
  return out.getvalue()


def png_of_size(width, height):
  """A PNG that says it has this size, with next to no data."""
  data = bytearray(encoded(Image.new("L", (1, 1))))
  data[16:24] = width.to_bytes(4) + height.to_bytes(4)
  data[29:33] = zlib.crc32(data[12:29]).to_bytes(4)
  return bytes(data)


def row(name, image=None, prompt="<image>\nWhat is this?", answer="a thing", **more):
  said = [{"from": "human", "value": prompt}, {"from": "gpt", "value": answer}]
  return {"id": name, "conversations": said} | ({"image": image} if image else {}) | more


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  """A LLaVA json with a fault of each kind, among good rows of every kind."""
  folder = tmp_path_factory.mktemp("corpus")
  good = encoded(photo(0), "JPEG", quality=95)
  frames = [photo(20), photo(21)]
  files = {
    "good.jpg": good,
    "copy.jpg": good,
    "small.jpg": encoded(photo(0, 60), "JPEG", quality=60),
    "empty.jpg": b"",
    "cut.jpg": good[: len(good) // 2],
    "cut.png": encoded(photo(1))[:-2000],
    "bomb.png": png_of_size(8_000, 7_000),
    "text.jpg": b"<html>404</html>",
    "cmyk.jpg": encoded(photo(2).convert("CMYK"), "JPEG"),
    "palette.png": encoded(photo(3).convert("P")),
    "deep.png": encoded(Image.fromarray((np.asarray(photo(4))[..., 0].astype(np.uint16)) * 257)),
    "moving.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
    "long.png": encoded(Image.new("RGB", (450, 3), "red")),
    "flat.png": encoded(Image.new("RGB", (50, 50), "blue")),
    "flat2.png": encoded(Image.new("RGB", (60, 50), "green")),
  }
  for name, data in files.items():
    (folder / name).write_bytes(data)
  rows = [row(name, name) for name in files] + [
    row("gone", "gone.jpg"),
    row("nan", "good.jpg", answer="a cat [0.1, nan, 0.5, 0.6]"),
    row("beyond", "good.jpg", bbox=[[10, 10, 500, 60]]),
    row("no number", "good.jpg", objects={"bbox": [[0.1, float("nan"), 1, 1]]}),
    row("silent", "good.jpg", answer=""),
    row("markers", "good.jpg", prompt="<image><image>?"),
    row("utf8", "good.jpg", answer="cafX"),
    row("good.jpg", "good.jpg"),  # its key is another's
    row("text", prompt="Was ist 2 + 2 und wie viel ist das?", answer="Das ist vier."),
    row("talk", "good.jpg", task="ocr", source="signs"),
  ]
  rows[-1]["conversations"] += row("", prompt="And now?")["conversations"]
  path = folder / "train.json"
  path.write_bytes(json.dumps(rows).encode().replace(b"cafX", b"caf\xe9"))
  leaked = folder.parent / "benchmark" / "deep"
  leaked.mkdir(parents=True, exist_ok=True)
  (leaked / "a.jpg").write_bytes(good)
  (leaked / "b.png").write_bytes(encoded(photo(2, 200)))
  (leaked / "c.png").write_bytes(encoded(photo(99)))
  (leaked / "flat.png").write_bytes(encoded(Image.new("RGB", (8, 8), "red")))
  (leaked / "broken.png").write_bytes(b"?")
  return path


@pytest.fixture(scope="module")
def found(corpus, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("lint")
  questions = corpus.parent.parent / "benchmark"
  config = atlas_config.get_config(f"corpus={corpus},questions={questions},lint").to_dict()
  assert config["job"] == "lint"
  lint.main(config | {"workers": 0}, workdir)
  return json.loads((workdir / "lint.json").read_text()) | {"workdir": workdir}


def test_every_fault_is_found_under_its_reason(found):
  broken = {
    kind: [re.split(", row ", e["where"])[1] for e in entry["examples"]]
    for kind, entry in found["broken"].items()
  }
  assert broken == {
    "zero bytes": ["3"],
    "truncated": ["4", "5"],
    "too many pixels": ["6"],
    "unreadable": ["7"],
    "missing file": ["15"],
    "bad box": ["16", "17", "18"],
    "missing text": ["19"],
    "more markers than images": ["20"],
    "bad UTF-8": ["21"],
  }
  details = {e["where"]: e["detail"] for b in found["broken"].values() for e in b["examples"]}
  assert "8000 x 7000, over" in details["train.json, row 6"]
  assert "beyond a picture of 120 x 120" in details["train.json, row 17"]
  assert "not finite" in details["train.json, row 16"] and details["train.json, row 18"]


def test_counts(found):
  assert (found["rows"], found["usable"]) == (25, 13)
  assert found["turns"] == {"1": 21, "2": 1}
  assert found["images_of_row"] == {"0": 1, "1": 21}
  assert found["repeated_keys"] == 1
  assert found["labels"]["rows"] == {"rule": 21, "data": 1}
  assert found["tasks"]["ocr"] == 1
  assert found["languages"] == {"en": 21, "de": 1}
  assert found["sources"] == {"": 21, "signs": 1}


def test_pictures_are_told(found):
  pictures = found["pictures"]
  assert pictures["count"] == 10
  assert pictures["kinds"]["JPEG CMYK"] == pictures["kinds"]["PNG P"] == 1
  assert pictures["kinds"]["PNG I;16"] == 1 and pictures["animated"] == 1
  assert pictures["longer_than_wide_by_100"] == 1 and pictures["plain"] == 3
  assert pictures["longer_side"]["to 64"] == 3 and pictures["longer_side"]["to 672"] == 1
  # 120 x 120: the base view, and 336 x 336 with a newline after each of its 24 lines.
  assert pictures["tokens"]["median"] == 24 * 24 + 24 * 25


def test_duplicates_and_leakage_are_named(found):
  same, alike = (found["duplicates"][name] for name in ("same_bytes", "look_alike"))
  assert (same["groups"], same["largest"][0]["names"]) == (1, ["good.jpg", "copy.jpg"])
  assert alike["groups"] == 1
  assert alike["largest"][0]["names"] == ["good.jpg", "copy.jpg", "small.jpg"]
  leakage = found["leakage"]
  assert (leakage["benchmark_pictures"], leakage["unreadable"]) == (4, ["deep/broken.png"])
  assert [(p["benchmark"], p["how"]) for p in leakage["found"]] == [
    ("deep/a.jpg", "same bytes"), ("deep/b.png", "looks alike")
  ]  # fmt: skip
  assert [p["corpus"] for p in leakage["found"]] == ["good.jpg", "cmyk.jpg"]


def test_the_page_stands_alone(found):
  page = (found["workdir"] / "lint.html").read_text()
  assert "13 of 25 rows" in page and "2 of 4 benchmark pictures" in page
  assert page.count('src="data:image/jpeg') == 12  # of 13 usable rows one is text
  assert not re.search(r'(src|href)="(?!data:|#)', page)
  assert "&lt;html&gt;404" in page and "<html>404" not in page


def test_workers_and_blocks_change_nothing(corpus, found, tmp_path, monkeypatch):
  monkeypatch.setattr("mixjax.corpus.readers.llava_json.BLOCK", 4)
  config = lint.LintConfig(str(corpus), str(corpus.parent.parent / "benchmark"), workers=2)
  again = lint.run(config, tmp_path, Reporter(io.StringIO()))
  for name in set(again) - {"seconds", "parts"}:
    assert again[name] == found[name], name
  assert again["parts"] == 7


def test_what_cannot_be_linted_is_refused(corpus, tmp_path):
  quiet = Reporter(io.StringIO())
  with pytest.raises(ValueError, match="lint needs corpus=PATH"):
    lint.LintConfig("gallery")
  with pytest.raises(ValueError, match="labels='guess'; known: rules, classifier"):
    lint.run(lint.LintConfig(str(corpus), labels="guess"), tmp_path, quiet)
  with pytest.raises(ValueError, match="1 rows have a task of their own"):
    lint.run(lint.LintConfig(str(corpus), labels="classifier", workers=0), tmp_path, quiet)
  (tmp_path / "none").mkdir()
  with pytest.raises(ValueError, match=r"holds no picture .* to look for"):
    lint.run(lint.LintConfig(str(corpus), str(tmp_path / "none")), tmp_path, quiet)
  with pytest.raises(FileNotFoundError, match="no corpus at"):
    lint.run(lint.LintConfig(str(tmp_path / "x.json")), tmp_path, quiet)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_picture_cut_anywhere_is_told(kind):
  data = encoded(photo(5), kind)
  assert picture.inspect(data)[0].size == (120, 120)
  for share in (0.02, 0.3, 0.6, 0.9):
    with pytest.raises(pixels.BadPicture) as error:
      picture.inspect(data[: int(len(data) * share)])
    assert error.value.kind in (pixels.TRUNCATED, pixels.UNREADABLE)


def looks(image, kind="PNG", **options):
  return picture.inspect(encoded(image, kind, **options))[0].looks


def apart(one, other):
  return sum((a ^ b).bit_count() for a, b in zip(one, other, strict=True))


def test_alike_pictures_have_near_hashes():
  base = looks(photo(7, 400))
  for other in (looks(photo(7, 90)), looks(photo(7, 400), "JPEG", quality=40)):
    assert apart(other, base) <= lookalike.BOUND
  assert min(apart(looks(photo(i)), base) for i in range(8, 30)) > 3 * lookalike.BOUND


def test_near_pairs_are_those_that_comparing_all_finds(monkeypatch):
  monkeypatch.setattr(lookalike, "_DIRECT", 20)  # so that crowded bands are split further
  rng = np.random.default_rng(0)
  alone = rng.integers(0, 2**63, (300, 2), dtype=np.uint64)
  near = alone.copy()
  for _ in range(7):
    word, bit = rng.integers(0, 2, 300), rng.integers(0, 64, 300).astype(np.uint64)
    near[np.arange(300), word] ^= np.uint64(1) << bit
  crowded = rng.integers(0, 2**9, (150, 2), dtype=np.uint64)
  hashes, _ = lookalike.distinct(np.concatenate([alone, near, crowded]))
  distance = np.bitwise_count(hashes[:, None] ^ hashes[None]).sum(-1)
  for bound in (1, 6, 7):
    first, second, bits = lookalike.near_pairs(hashes, bound)
    wanted = np.argwhere(np.triu(distance <= bound, 1))
    np.testing.assert_array_equal(np.stack([first, second], 1), wanted)
    np.testing.assert_array_equal(bits, distance[first, second])
  with pytest.raises(ValueError, match="bound=8 bits"):
    lookalike.near_pairs(hashes, 8)


def test_groups_join_chains_and_matches_cross_sets():
  # 0, 63 and 4095 are a chain of 6 bits each.
  hashes = np.array([[0, 0], [0, 63], [0, 4095], [2**64 - 1, 0], [0, 0]], np.uint64)
  group = lookalike.groups(hashes)
  assert len({int(group[i]) for i in (0, 1, 2, 4)}) == 1 and group[3] != group[0]
  theirs = np.array([[0, 1], [0, 0x5555555555555555]], np.uint64)
  found = zip(*lookalike.matches(theirs, hashes), strict=True)
  assert list(found) == [(0, 0, 1), (0, 4, 1), (0, 1, 5)]
  different, which = lookalike.distinct(hashes)
  assert len(different) == 4
  np.testing.assert_array_equal(different[which], hashes)


@pytest.mark.parametrize(
  ("text", "code"),
  [
    ("What is in this image?", "en"), ("Was ist auf dem Bild? Ein Bus und ein Hund.", "de"),
    ("Que voit-on sur cette image ? Un bus dans la rue.", "fr"), ("¿Qué hay en la imagen?", "es"),
    ("Cosa c'è nella foto? Un autobus che non è rosso.", "it"), ("O que há na imagem?", "pt"),
    ("图片里有什么？一辆公共汽车。", "zh"), ("この写真には何がありますか。", "ja"),
    ("이 그림에 무엇이 있나요?", "ko"),
    ("Что на картинке? Автобус.", "ru"), ("Що на зображенні? Її автобус.", "uk"),
    ("ماذا في الصورة؟", "ar"), ("در تصویر چه چیزی است؟", "fa"), ("चित्र में क्या है?", "hi"),
    ("Trong hình ảnh này có gì?", "vi"), ("Apa yang ada dalam gambar ini?", "id"),
    ("Bu resimde ne var?", "tr"), ("[0.1, 0.2] 42", "zxx"), ("xkcd", "und-Latn"),
    ("「STOP」は何という意味ですか。", "ja"),
  ],
)  # fmt: skip
def test_languages(text, code):
  assert languages.detect(text) == code


def test_tokens_are_llava_nexts():
  assert report.anyres_tokens([336, 336], [336, 1000]).tolist() == [576 + 24 * 25, 576 + 24 * 73]
