"""What is printed where the encoding lacks a character."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dasearch.report.encoding import SPELLED, write_any, writes_all
from tests.report.stored import empty_study

TEXT = "0.1200 ±0.0100 Crème – 漢 \ud800"


@pytest.mark.parametrize(
    ("encoding", "written"),
    [
        ("ascii", rb"0.1200 +-0.0100 Cr\xe8me - \u6f22 \ud800"),
        ("cp1252", b"0.1200 \xb10.0100 Cr\xe8me \x96 \\u6f22 \\ud800"),
        ("utf-8", "0.1200 ±0.0100 Crème – 漢 ".encode() + rb"\ud800"),
    ],
)
def test_what_cannot_be_written_is_spelled(encoding: str, written: bytes) -> None:
    kept = io.BytesIO()
    stream = io.TextIOWrapper(kept, encoding=encoding)
    write_any(stream)
    stream.write(TEXT)
    stream.flush()
    assert kept.getvalue() == written
    assert writes_all(stream) == (encoding == "utf-8")


def test_spellings_can_be_written_anywhere() -> None:
    assert all(spelling.isascii() for spelling in SPELLED.values())


def test_reading_still_fails() -> None:
    write_any(sys.stdout)
    with pytest.raises(UnicodeDecodeError):
        b"\xff".decode("utf-8", "dasearch")


def printed(folder: Path, *arguments: str) -> bytes:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "dasearch", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_commands_print_in_ascii(tmp_path: Path) -> None:
    empty_study(tmp_path / "Käufe", source="Crème").close()
    said = printed(tmp_path, *["report", "toy", "--output", "Käufe", "--out", "Käufe/a.md", "--format", "md"])
    assert rb"report: K\xe4ufe/a.md" in said
    data = tmp_path / "Läden"
    data.mkdir()
    rows = [f"ü{user}\ti{item}\t{item}" for user in range(9) for item in range(5)]
    (data / "interactions.tsv").write_text("\n".join(["user_id\titem_id\ttimestamp", *rows]))
    items = [json.dumps({"item_id": f"i{item}", "attributes": {"title": "Crème"}}) for item in range(5)]
    (data / "items.jsonl").write_text("\n".join(items))
    assert json.loads(printed(tmp_path, "data", "stats", "Läden", "--json"))["name"] == "Läden"
