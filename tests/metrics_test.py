import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixjax.evals import metrics


def test_exact_match_ignores_case_and_spacing_only():
  assert metrics.exact_match(" Total  12", "total 12") == 1
  assert metrics.exact_match("total 13", "total 12") == 0


@pytest.mark.parametrize(
  ("said", "answer", "score"),
  [
    ("kitten", "sitting", 1 - 3 / 7),
    ("abcd", "abcd", 1),
    ("ab", "abcde", 0),
    ("", "", 1),
    ("x", "y", 0),
  ],
)
def test_anls_of_known_pairs(said, answer, score):
  assert metrics.anls(said, answer) == pytest.approx(score)


@pytest.mark.parametrize(
  ("said", "answer", "score"),
  [
    ("105", "100", 1),
    ("106", "100", 0),
    ("-95", "-100", 1),
    ("95", "-100", 0),
    ("25%", "0.25", 1),
    ("1,040", "1000", 1),
    ("25", "2,5", 0),
    ("34", "3,4", 0),
    ("0", "0", 1),
    ("0.01", "0", 0),
    ("Blue ", "blue", 1),
    ("blue", "12", 0),
    ("nan", "NaN", 1),
    ("inf", "3", 0),
  ],
)
def test_relaxed_accuracy_of_known_pairs(said, answer, score):
  assert metrics.relaxed_accuracy(said, answer) == score


@given(st.text(max_size=8), st.text(max_size=8), st.text(max_size=8))
def test_edit_distance_is_a_metric(a, b, c):
  ab, bc, ac = (metrics.edit_distance(*pair) for pair in ((a, b), (b, c), (a, c)))
  assert (ab == 0) == (a == b)
  assert ab == metrics.edit_distance(b, a)
  assert ac <= ab + bc


def test_iou_of_known_boxes():
  assert metrics.box_iou((0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 1.0, 1.0)) == 1
  assert metrics.box_iou((0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)) == 0
  assert metrics.box_iou((0.0, 0.0, 1.0, 0.5), (0.0, 0.25, 1.0, 0.75)) == pytest.approx(1 / 3)


def test_grounding_counts_the_first_box_and_no_box_is_a_miss():
  answer = "<2><2><9><9>"
  assert metrics.grounding("cat <2><2><9><9> or <0><0><1><1>", answer) == 1
  assert metrics.grounding("<0><0><1><1> or <2><2><9><9>", answer) == 0
  assert metrics.grounding("no idea", answer) == 0
