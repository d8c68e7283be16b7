import pytest

from nas.errors import RequestError
from nas.supernet import TrainingSettings


@pytest.mark.parametrize(
    "values", [{"epochs": 0}, {"precision": "int4"}, {"label_smoothing": 1.0}, {"batch_size": 1}]
)
def test_settings_out_of_range_are_named(values):
    with pytest.raises(RequestError, match=next(iter(values))):
        TrainingSettings(**values)


def test_checkpoints_of_earlier_versions_match_the_default_of_progressive_resizing():
    assert "progressive_resizing" not in TrainingSettings().identity()
    assert TrainingSettings(progressive_resizing=0.0).identity()["progressive_resizing"] == 0.0
