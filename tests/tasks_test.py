import pytest

from mixjax.corpus import tasks


def test_a_box_survives_writing_and_reading_to_within_a_bin():
  box = (0.1, 0.2, 0.55, 1.0)
  (read,) = tasks.read_boxes(f"cat {tasks.write_box(box)} and more")
  assert all(abs(a - b) <= 1 / tasks.BINS for a, b in zip(box, read, strict=True))


@pytest.mark.parametrize(
  "box", [(0.5, 0, 0.4, 1), (-0.1, 0, 1, 1), (0, 0, 1, 1.2), (0, float("nan"), 1, 1)]
)
def test_an_impossible_box_is_refused(box):
  with pytest.raises(ValueError, match="ymin < ymax"):
    tasks.write_box(box)


@pytest.mark.parametrize("text", ["", "cat", "<1><2><3>", "<9><2><3><4>", "<1><2><3><99>"])
def test_malformed_boxes_are_left_out(text):
  assert tasks.read_boxes(text) == []
