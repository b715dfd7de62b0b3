"""Values read and printed as Go does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.cli import gotext


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"plain", '"plain"'),
        (b'\x01"\\\t<>&\n', r'"\x01\"\\\t<>&\n"'),
        ("é\u2028\U0001f600\u0085".encode(), '"é\\u2028\U0001f600\\u0085"'),
        ("\U000e0001".encode(), r'"\U000e0001"'),
        (b"\xff\x7f", r'"\xff\x7f"'),
    ],
)
def test_quote(data, text):
    assert gotext.quote(data) == text


@given(st.binary(max_size=40))
def test_unquote_undoes_quote(data):
    assert gotext.unquote(gotext.quote(data)) == data


@given(st.text(alphabet='\\xu0a8"U é', max_size=12))
def test_unquote_gives_bytes_or_says_no(text):
    outcome = "bytes"
    try:
        gotext.unquote(f'"{text}"')
    except ValueError as error:
        outcome = str(error)
    assert outcome in {"bytes", "invalid syntax"}


@pytest.mark.parametrize("text", ["", '"', "a", '"a', r'"\q"', r'"\x1"', r'"\ud800"', r'"\Uffffffff"'])
def test_unquote_refuses(text):
    with pytest.raises(ValueError, match="invalid syntax"):
        gotext.unquote(text)


def test_unquote_knows_every_escape():
    assert gotext.unquote(r'"\a\b\f\n\r\t\v\\\"\x41\101\u00e9\U0001f600"') == (
        b'\a\b\f\n\r\t\v\\"AA' + "é\U0001f600".encode()
    )
    assert gotext.unquote(r"`a\n`") == rb"a\n"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5s", 5), ("300ms", 0.3), ("1.5h", 5400), ("2m3.5s", 123.5), ("0", 0), ("-1s", -1), (".5s", 0.5)],
)
def test_parse_duration(text, seconds):
    assert gotext.parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 'time: invalid duration ""'),
        ("5", 'time: missing unit in duration "5"'),
        ("s", 'time: invalid duration "s"'),
        ("5 s", 'time: unknown unit " s" in duration "5 s"'),
        ("--5s", 'time: invalid duration "--5s"'),
        ("5x", 'time: unknown unit "x" in duration "5x"'),
        ("-", 'time: invalid duration "-"'),
        (".s", 'time: invalid duration ".s"'),
        ("9999999999h", 'time: invalid duration "9999999999h"'),
        ("1h2", 'time: missing unit in duration "1h2"'),
        ("1.5.2s", 'time: missing unit in duration "1.5.2s"'),
        ("+1d", 'time: unknown unit "d" in duration "+1d"'),
    ],
)
def test_parse_duration_refuses(text, words):
    with pytest.raises(ValueError, match="time: ") as caught:
        gotext.parse_duration(text)
    assert str(caught.value) == words


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0s"),
        (999, "999ns"),
        (1500, "1.5µs"),
        (2603594, "2.603594ms"),
        (301540782, "301.540782ms"),
        (5000746920, "5.00074692s"),
        (60_000_000_000, "1m0s"),
        (3_723_500_000_000, "1h2m3.5s"),
    ],
)
def test_format_duration(nanoseconds, text):
    assert gotext.format_duration(nanoseconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (24576, "25 kB"), (1_000_000, "1.0 MB")],
)
def test_format_bytes(count, text):
    assert gotext.format_bytes(count) == text


@pytest.mark.parametrize(
    ("text", "base", "value"),
    [("12", 10, 12), ("-7", 10, -7), ("ff", 16, 255), ("0x1_0", 0, 16), ("010", 0, 8)],
)
def test_parse_int(text, base, value):
    assert gotext.parse_int(text, base) == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x", 'parsing "x": invalid syntax'),
        ("1_0", 'parsing "1_0": invalid syntax'),
        (str(2**63), "value out of range"),
        ("", 'parsing "": invalid syntax'),
    ],
)
def test_parse_int_refuses(text, words):
    with pytest.raises(ValueError, match=r"strconv\.ParseInt") as caught:
        gotext.parse_int(text)
    assert words in str(caught.value)


def test_parse_bool_refuses():
    with pytest.raises(ValueError, match=r'strconv\.ParseBool: parsing "maybe": invalid syntax'):
        gotext.parse_bool("maybe")
