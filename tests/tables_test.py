import numpy as np
import pytest

from mixjax.search import tables

RATIOS = "run,name,index,code,web,maths\na,r1,0,0.5,0.5,0\nb,r2,1,0.2,0.3,0.5\nc,r3,2,1,0,0\n"
METRICS = "run,name,index,acc,f1\nc,r3,2,0.3,0.6\na,r1,0,0.1,0.4\nb,r2,1,0.2,0.5\n"


@pytest.fixture
def olmix(tmp_path):
  def write(ratios=RATIOS, metrics=METRICS, prefix=""):
    (tmp_path / f"{prefix}ratios.csv").write_text(ratios)
    (tmp_path / f"{prefix}metrics.csv").write_text(metrics)
    return tmp_path

  return write


def test_olmix_files_are_joined_on_run(olmix):
  table = tables.read(olmix())
  assert table.runs == ("a", "b", "c") and table.domains == ("code", "web", "maths")
  np.testing.assert_allclose(table.mixtures, [[0.5, 0.5, 0], [0.2, 0.3, 0.5], [1, 0, 0]])
  assert list(table.metrics) == ["acc", "f1"]
  np.testing.assert_array_equal(table.metrics["acc"], [0.1, 0.2, 0.3])
  np.testing.assert_allclose(table.values("mean"), [0.25, 0.35, 0.45])
  assert table.test is None and table.fidelity is None and not table.losses
  assert table.targets("each") == ("acc", "f1") and table.targets("f1") == ("f1",)


def test_splits_are_matched_by_name_whatever_the_order_of_columns(tmp_path):
  (tmp_path / "train_mixture_1m.csv").write_text("index,code,web\n1,0.9,0.1\n2,0.4,0.6\n")
  (tmp_path / "train_pile_loss_1m.csv").write_text("index,x/code,x/web\n2,2,4\n1,1,3\n")
  (tmp_path / "test_mixture_1m.csv").write_text("index,web,code\n1,0.2,0.8\n")
  (tmp_path / "test_pile_loss_1m.csv").write_text("index,x/web,x/code\n1,7,6\n")
  table = tables.read(tmp_path)
  assert table.losses and table.runs == ("1", "2", "1") and table.domains == ("code", "web")
  np.testing.assert_allclose(table.mixtures, [[0.9, 0.1], [0.4, 0.6], [0.8, 0.2]])
  np.testing.assert_array_equal(table.metrics["x/code"], [1, 2, 6])
  np.testing.assert_array_equal(table.metrics["x/web"], [3, 4, 7])
  np.testing.assert_array_equal(table.test, [False, False, True])
  assert table.fidelity is None  # only one size was recorded


def test_olmix_files_may_be_split_too(olmix):
  olmix(prefix="train_")
  folder = olmix("run,maths,web,code\na,0.2,0.2,0.6\n", "run,f1,acc\na,0.9,0.8\n", prefix="test_")
  table = tables.read(folder)
  assert table.split == ("train",) * 3 + ("test",)
  np.testing.assert_allclose(table.mixtures[3], [0.6, 0.2, 0.2])
  assert table.metrics["acc"][3] == 0.8


def test_half_a_split_is_none(olmix):
  assert tables.read(olmix(prefix="train_")).split is None


def test_weights_are_renormalised_within_two_percent_and_refused_beyond(olmix):
  near = RATIOS.replace("0.2,0.3,0.5", "0.2,0.28,0.5")
  row = tables.read(olmix(near)).mixtures[1]
  np.testing.assert_allclose(row, np.array([0.2, 0.28, 0.5]) / 0.98)
  with pytest.raises(ValueError, match=r"run 'b' sum to 0\.97, not to 1"):
    tables.read(olmix(RATIOS.replace("0.2,0.3,0.5", "0.2,0.27,0.5")))
  with pytest.raises(ValueError, match=r"run 'b' sum to 100, not to 1"):
    tables.read(olmix(RATIOS.replace("0.2,0.3,0.5", "20,30,50")))


def test_missing_values_are_nan_and_metrics_without_any_are_left_out(olmix):
  metrics = "run,acc,f1,none\na,0.1,,\nb,NaN,0.5,nan\nc,0.3,inf,\n"
  table = tables.read(olmix(metrics=metrics))
  np.testing.assert_array_equal(table.metrics["acc"], [0.1, np.nan, 0.3])
  np.testing.assert_array_equal(table.metrics["f1"], [np.nan, 0.5, np.nan])
  assert table.empty == ("none",) and "none" not in table.metrics
  assert np.isnan(table.values("mean")).all()


def test_a_domain_without_weight_anywhere_is_kept(olmix):
  table = tables.read(olmix(RATIOS.replace("0.2,0.3,0.5", "0.5,0.5,0")))
  assert table.domains[2] == "maths" and not table.mixtures[:, 2].any()


def test_several_sizes_are_fidelities(tmp_path):
  for size, shift in (("1m", 0), ("60m", 10)):
    (tmp_path / f"train_mixture_{size}.csv").write_text("index,a,b\n1,0.5,0.5\n2,1,0\n")
    (tmp_path / f"train_loss_{size}.csv").write_text(f"index,y\n1,{shift + 1}\n2,{shift + 2}\n")
  table = tables.read(tmp_path)
  np.testing.assert_array_equal(table.fidelity, [1e6, 1e6, 60e6, 60e6])
  target = table.at_target()
  assert target.runs == ("1", "2") and len(target) == 2
  np.testing.assert_array_equal(target.metrics["y"], [11, 12])


def test_a_fidelity_column_is_no_domain(olmix):
  ratios = RATIOS.replace("index", "fidelity")
  table = tables.read(olmix(ratios))
  assert table.domains == ("code", "web", "maths")
  np.testing.assert_array_equal(table.fidelity, [0, 1, 2])
  assert table.at_target().runs == ("c",)


@pytest.mark.parametrize(
  ("ratios", "metrics", "message"),
  [
    (RATIOS + "b,r2,1,0.2,0.3,0.5\n", METRICS, r"ratios.csv has several rows for run 'b'"),
    (RATIOS + "d,r4,3,1,0,0\n", METRICS, r"metrics.csv has no row for run 'd' of ratios.csv"),
    (RATIOS, METRICS + "e,r5,4,1,1\n", r"ratios.csv has no row for run 'e' of metrics.csv"),
    (RATIOS.replace("run", "id"), METRICS, r"no column 'run' to join on; it has 'id'"),
    (RATIOS.replace("0.2,0.3,0.5", "0.2,,0.8"), METRICS, r"run 'b' has weight nan for 'web'"),
    (RATIOS.replace("0.2,0.3,0.5", "-0.2,0.7,0.5"), METRICS, r"'b' has weight -0.2 for 'code'"),
    (RATIOS, METRICS.replace("0.3,0.6", "high,0.6"), r"run 'c' has 'high' in column 'acc'"),
    (RATIOS, METRICS.replace("f1", "acc"), r"several columns called 'acc'"),
    (RATIOS, METRICS.replace("0.3,0.6", "0.3"), r"4 cells for 5 columns"),
    (RATIOS, "run,name\na,x\nb,y\nc,z\n", r"metrics.csv has no metric"),
    (RATIOS, "run,acc\na,\nb,\nc,\n", r"no run in .* has a value of any metric"),
  ],
)
def test_what_is_wrong_is_named(olmix, ratios, metrics, message):
  with pytest.raises(ValueError, match=message):
    tables.read(olmix(ratios, metrics))


def test_an_unknown_objective_names_the_choices(olmix):
  with pytest.raises(ValueError, match="'loss'; choose mean, each or one of its metrics: acc, f1"):
    tables.read(olmix()).targets("loss")


def test_splits_with_different_domains_are_refused(olmix):
  olmix(prefix="train_")
  folder = olmix("run,code,web\na,0.5,0.5\n", "run,acc\na,1\n", prefix="test_")
  with pytest.raises(ValueError, match="different domains: 'maths' in one only"):
    tables.read(folder)


def test_folders_without_a_table_say_what_they_lack(olmix, tmp_path):
  with pytest.raises(FileNotFoundError, match="no CSV file"):
    tables.read(tmp_path)
  with pytest.raises(FileNotFoundError, match="no folder"):
    tables.read(tmp_path / "nowhere")
  (tmp_path / "train_mixture.csv").write_text("index,a,b\n1,1,0\n")
  with pytest.raises(ValueError, match="needs exactly one"):
    tables.read(tmp_path)
  with pytest.raises(ValueError, match="one table a folder"):
    tables.read(olmix())
  (tmp_path / "train_mixture.csv").unlink()
  (tmp_path / "metrics.csv").unlink()
  with pytest.raises(ValueError, match="without its partner"):
    tables.read(tmp_path)


def test_the_digest_is_that_of_the_content(olmix):
  before = tables.read(olmix()).sha256
  assert tables.read(olmix()).sha256 == before
  assert tables.read(olmix(metrics=METRICS.replace("0.1", "0.11"))).sha256 != before
