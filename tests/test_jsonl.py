import pytest

from nas import jsonl
from nas.errors import NasError


def test_records_come_back_in_order(tmp_path):
    path = tmp_path / "log.jsonl"
    assert jsonl.read(path) == []
    for value in (1, 2.5, None):
        jsonl.append(path, {"value": value})
    assert [record["value"] for record in jsonl.read(path)] == [1, 2.5, None]


@pytest.mark.parametrize("cut", range(1, 13))
def test_a_torn_last_line_is_removed_and_the_file_can_grow_again(tmp_path, cut):
    path = tmp_path / "log.jsonl"
    jsonl.append(path, {"value": 1})
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:cut].rstrip(b"\n"))
    with pytest.warns(UserWarning, match="half-written"):
        assert jsonl.read(path) == [{"value": 1}]
    jsonl.append(path, {"value": 2})
    assert [record["value"] for record in jsonl.read(path)] == [1, 2]


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"value": 1}\nnonsense\n')
    with pytest.raises(NasError, match="line 2 is not JSON"):
        jsonl.read(path)
    path.write_text("[1]\n")
    with pytest.raises(NasError, match="line 1 is not a JSON object"):
        jsonl.read(path)


def test_not_a_number_is_never_written(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        jsonl.append(tmp_path / "log.jsonl", {"value": float("nan")})
    assert not (tmp_path / "log.jsonl").exists()
