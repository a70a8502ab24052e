"""Result files hold numbers, or are neither written nor read."""

import json
import math

import pytest

from espnet_ext.errors import UserError
from espnet_ext.report.schema import text
from espnet_ext.results import SCORE, check, read_json, to_json


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_measurement_that_is_no_number_is_not_written(value):
    result = {"offline": {"ms": [1.5, 2, value]}, "name": "nan", "missing": None}
    with pytest.raises(UserError, match=r"offline\.ms\.2.*not a number"):
        to_json(result)
    result["offline"]["ms"][2] = 3
    assert json.loads(to_json(result)) == result


@pytest.mark.parametrize("written", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_number_that_is_none_is_not_read(tmp_path, written):
    path = tmp_path / "profile.json"
    path.write_text(f'{{"ms": [1.5, {written}]}}')
    with pytest.raises(UserError, match="profile.json.*not a number"):
        read_json(path)
    path.write_text('{"ms": [1.5, 2], "name": "NaN"}')
    assert read_json(path) == {"ms": [1.5, 2], "name": "NaN"}


def test_missing_and_broken_result_files_are_named(tmp_path):
    with pytest.raises(UserError, match="none.json.*cannot be read"):
        read_json(tmp_path / "none.json")
    (tmp_path / "half.json").write_text('{"ms": [1.5')
    with pytest.raises(UserError, match="half.json.*not JSON"):
        read_json(tmp_path / "half.json")


def test_tables_never_show_a_number_that_is_none():
    assert [text(v) for v in (math.nan, math.inf, 1.5, None)] == [
        "not a number",
        "not a number",
        "1.5",
        "missing",
    ]


SCORED = {key: 1.0 for key in ("corr", "sub", "del", "ins", "err", "s_err")}
SCORED |= {"snt": 2, "wrd": 3, "err_interval_95": [0.5, 1], "new": {"x": []}}


@pytest.mark.parametrize(
    "changed,words",
    [
        ({}, None),
        ({"drawn": None}, None),
        ({"snt": None}, "snt: is None"),
        ({"snt": True}, "snt: is True"),
        ({"err": "1"}, "err: is '1'"),
        ({"err_interval_95": [1]}, "err_interval_95: is [1], not a list"),
        ({"err_interval_95": [1, "a"]}, "err_interval_95.1: is 'a'"),
        ({"err_interval_95": {}}, "err_interval_95: is {}, not a list"),
    ],
)
def test_result_has_what_its_schema_asks_for(tmp_path, changed, words):
    path = tmp_path / "score.json"
    path.write_text(json.dumps(SCORED | changed))
    if words is None:
        assert read_json(path, SCORE) == SCORED | changed
        return
    with pytest.raises(UserError) as error:
        read_json(path, SCORE)
    assert str(error.value).startswith(f"{path}: ") and words in str(error.value)


@pytest.mark.parametrize("content", ["[1]", "{}", "null", "[" * 10**5, "1" * 5000, '"\ud800"'])
def test_json_of_another_kind_is_one_line(tmp_path, content):
    path = tmp_path / "score.json"
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError) as error:
        read_json(path, SCORE)
    assert str(error.value).startswith(f"{path}: ") and len(str(error.value)) < 300


def test_list_that_must_hold_something_is_not_empty():
    check({"streams": [1, 2]}, {"streams": [int, ...]})
    for value in ([], None, {}, [None]):
        with pytest.raises(UserError, match="^streams"):
            check({"streams": value}, {"streams": [int, ...]})
