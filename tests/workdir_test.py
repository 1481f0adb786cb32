import pytest

from mixjax.jobs import workdir


def test_the_same_config_goes_on_and_another_is_refused_by_key(tmp_path):
  config = {"job": "search", "proxy": {"samples": 4096, "rate": 1e-3}}
  workdir.claim(tmp_path, config)
  workdir.claim(tmp_path, config)
  with pytest.raises(ValueError, match=r"proxy.samples: 4096 there, 8 asked for"):
    workdir.claim(tmp_path, {"job": "search", "proxy": {"samples": 8, "rate": 1e-3}})


def test_tuples_and_lists_are_the_same_config(tmp_path):
  workdir.claim(tmp_path, {"job": "search", "axes": ("task", "concept")})
  workdir.claim(tmp_path, {"job": "search", "axes": ["task", "concept"]})


def test_a_file_is_written_whole(tmp_path):
  workdir.write_whole(tmp_path / "a" / "x.json", "{}")
  assert [p.name for p in (tmp_path / "a").iterdir()] == ["x.json"]
