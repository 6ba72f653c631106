"""What was typed is read as what is meant, or refused."""

import pytest

from custom.utils.settings import UnfitError, guess, read_as, typed_settings

RAMP = {"start": 0.0, "end": 1.0, "rampup_iterations": 1}


@pytest.mark.parametrize(
    ("value", "examples", "expected"),
    [
        *((text, [True], False) for text in ("false", "False", "no", "off", "0", "N")),
        *((text, [False], True) for text in ("true", "TRUE", "yes", "on", "1", "y")),
        (0, [True], False),
        ("12", [1], 12),
        ("1e3", [1], 1000),
        (2.0, [1], 2),
        ("1e-3", [0.5], 0.001),
        (3, [0.5], 3),
        ("null", [0.5, None], None),
        ("None", ["a", None], None),
        ("~", [1, None], None),
        ("20240611", ["a"], "20240611"),
        (20240611, ["a"], "20240611"),
        ("1e3", ["a"], "1e3"),
        ("true", ["a"], "true"),
        ("liver", [["a"]], ["liver"]),
        ("liver, tumor", [["a"]], ["liver", "tumor"]),
        ("[no, yes]", [["a"]], ["no", "yes"]),
        ("['a,b', c]", [["a"]], ["a,b", "c"]),
        (("a", "b"), [["a"]], ["a", "b"]),
        ("96,96", [[256, 256]], [96, 96]),
        ("(96, 96,)", [[256, 256]], [96, 96]),
        ("[96, 96]", [[256, 256]], [96, 96]),
        (["96", 96.0], [[256, 256]], [96, 96]),
        ("3", [[1]], [3]),
        ("[]", [[1]], []),
        ("a", ["b", ["a"]], "a"),
        ("[a, c]", ["b", ["a"]], ["a", "c"]),
        (
            "{start: 0, end: 1e-1, rampup_iterations: 1e2}",
            [1.0, RAMP],
            {"start": 0, "end": 0.1, "rampup_iterations": 100},
        ),
        ("{a: 1.5, b: x}", [{"a": 0.1}], {"a": 1.5, "b": "x"}),
        ("$None", [True], "$None"),
        ("@seed", [1], "@seed"),
    ],
)
def test_a_value_becomes_of_the_kind_that_is_meant(value, examples, expected):
    found = read_as(value, examples)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "examples", "message"),
    [
        ("maybe", [True], "expected true or false, got maybe"),
        (2, [True], "expected true or false, got 2"),
        ("0,2", [0.5], "expected a number, got 0,2"),
        (True, [1], "expected a whole number, got true"),
        ("2.5", [1], "expected a whole number, got 2.5"),
        ("nan", [0.5], "expected a number, got nan"),
        ("inf", [1], "expected a whole number, got inf"),
        (None, [1], "expected a whole number, got null"),
        (0.1, ["a"], "expected a text, got 0.1"),  # 0.10 may have been written
        (True, ["a", None], "expected a text or null, got true"),
        ("96", [[256, 256]], "expected a list of whole numbers, got 96"),
        ("96,x", [[256, 256]], "expected a list of whole numbers, got 96,x"),
        ("a,,b", [["a"]], "expected a list of texts, got a,,b"),
        ("[a, b", [["a"]], "expected a list of texts"),
        ("half", [0.5, RAMP], "expected a number or a mapping, got half"),
        ({"a": 1}, [0.5], "expected a number, got {a: 1}"),
    ],
)
def test_what_is_of_another_kind_is_refused(value, examples, message):
    with pytest.raises(UnfitError) as caught:
        read_as(value, examples)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("no", False), ("1", 1), ("1e-3", 0.001), ("", None), ("y", "y"), ("a b", "a b"), ("[1, no, x]", [1, False, "x"])],
)
def test_a_text_of_which_nothing_is_known_is_read_as_yaml_reads_it(text, expected):
    assert guess(text) == expected


def test_flags_are_found_as_they_were_typed():
    line = "run training --output_dir out#1 --train#dataset::cache-rate=1e-1 --resume --seed -1 -x 2 --eta 1 --eta 0.10"
    assert typed_settings(line.split()) == {
        "output_dir": "out#1",
        "train::dataset::cache_rate": "1e-1",
        "resume": True,
        "seed": "-1",
        "x": "2",
        "eta": "0.10",
    }
