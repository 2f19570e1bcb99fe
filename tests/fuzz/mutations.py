"""Files that are nearly right: a valid record or text with a few faults, as people and broken copies make them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import strategies as st

NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.sampled_from([10**6, 2**31, 2**63, -(2**63) - 1, 10**30, 0.5, -0.0, 1e-320, 1e308, 1e400, float("nan")]),
)
WORDS = st.sampled_from(
    [
        "", " ", "x", "null", "true", "NaN", "-1", "1e999", "auto", "darec", "tiny-opt", "cuda:99", "../..", "/", "~", "~x",
        "a" * 300,
        "zoë",
        "\u0000", "\ud800", "\u2028", "a\nb", "a\tb", "%s", "{}", "'", '"', "*", "SPS-PPS", "2020-13-45", "0x1g", "[", "&a",
    ]
)  # fmt: skip
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, WORDS, st.text(max_size=8))
KEYS = st.one_of(WORDS, st.text(max_size=6))
JUNK = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=4
)
Path = tuple[Any, ...]


def paths(record: Any, before: Path = ()) -> Iterator[Path]:
    """Of every value in nested dictionaries and lists, the record itself first."""
    yield before
    inner = record.items() if isinstance(record, dict) else enumerate(record) if isinstance(record, list) else ()
    for key, value in inner:
        yield from paths(value, (*before, key))


def at(record: Any, path: Path) -> Any:
    for key in path:
        record = record[key]
    return record


@st.composite
def records(draw: st.DrawFn, valid: Callable[[], Any]) -> Any:
    """A record with one to three faults: a value of another kind, a key that is gone, misspelt or new, a value twice wrapped."""
    found = {"": copy.deepcopy(valid())}
    for _ in range(draw(st.integers(1, 3))):
        *before, key = draw(st.sampled_from([path for path in paths(found) if path]))
        holder = at(found, tuple(before))
        fault = draw(st.sampled_from(["value", "value", "gone", "renamed", "added", "wrapped", "like"]))
        if fault == "value":
            holder[key] = draw(JUNK)
        elif fault == "gone" and before:
            del holder[key]
        elif fault == "renamed" and isinstance(holder, dict) and before:
            holder[draw(KEYS)] = holder.pop(key)
        elif fault == "added" and isinstance(holder[key], dict):
            holder[key][draw(KEYS)] = draw(JUNK)
        elif fault == "added" and isinstance(holder[key], list):
            holder[key].append(draw(JUNK))
        elif fault == "wrapped":
            holder[key] = draw(st.sampled_from([[holder[key]], {"x": holder[key]}, str(holder[key])]))
        elif fault == "like":
            holder[key] = copy.deepcopy(at(found, draw(st.sampled_from(list(paths(found))))))
    return found[""]


@st.composite
def contents(draw: st.DrawFn, valid: bytes) -> bytes:
    """A file's bytes with one to three faults: lines that are gone, doubled or new, cells and bytes that changed, a cut."""
    found = valid
    for _ in range(draw(st.integers(1, 3))):
        lines = found.split(b"\n")
        number = draw(st.integers(0, len(lines) - 1))
        place = draw(st.integers(0, len(found)))
        junk = draw(st.one_of(WORDS, st.text(max_size=12), SCALARS.map(str)).map(encoded) | st.binary(max_size=6))
        fault = draw(
            st.sampled_from(
                ["gone", "doubled", "line", "cell", "cell", "inserted", "byte", "cut", "all", "crlf", "mark"]
            )
        )
        if fault == "gone":
            del lines[number]
        elif fault == "doubled":
            lines.insert(number, lines[number])
        elif fault == "line":
            lines.insert(number, junk)
        elif fault == "cell":
            lines[number] = with_cell(draw, lines[number], junk)
        if fault in ("gone", "doubled", "line", "cell"):
            found = b"\n".join(lines)
        elif fault == "inserted":
            found = found[:place] + junk + found[place:]
        elif fault == "byte":
            found = found[:place] + draw(st.binary(min_size=1, max_size=1)) + found[place + 1 :]
        elif fault == "cut":
            found = found[:place]
        elif fault == "all":
            found = junk
        elif fault == "crlf":
            found = found.replace(b"\n", b"\r\n")
        else:
            found = b"\xef\xbb\xbf" + found
    return found


def with_cell(draw: st.DrawFn, line: bytes, junk: bytes) -> bytes:
    """A line with one of its cells replaced, by whatever seems to separate them."""
    separators = [mark for mark in (b"\t", b",", b"::", b"|", b": ", b" ") if mark in line]
    if not separators:
        return junk
    mark = draw(st.sampled_from(separators))
    cells = line.split(mark)
    cells[draw(st.integers(0, len(cells) - 1))] = junk
    return mark.join(cells)


def encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
