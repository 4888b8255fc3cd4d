"""Files of prompts: both kinds, and every way to get one wrong."""

from __future__ import annotations

import pytest

from process_gen.core.errors import DataError
from process_gen.core.trajectory import MAX_TEXT
from process_gen.sampling.prompt_file import read_prompts


@pytest.fixture
def file(tmp_path):
    def write(data):
        path = tmp_path / "prompts.txt"
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return path

    return write


def test_plain_text(file):
    found = read_prompts(file("\n a red circle \r\n\n\ttwo stars, <b>\x00\u2028same line\n   "))
    assert found.items == ("a red circle", "two stars, <b>\x00\u2028same line")
    assert found.lines == (2, 4) and found.blank == 3


def test_metadata(file):
    text = '\ufeff{"prompt": "a", "tag": "x", "n": 1.5}\r\n\n{"prompt": "\\ud800\u2028"}'
    found = read_prompts(file(text))
    assert found.items == ({"prompt": "a", "tag": "x", "n": 1.5}, {"prompt": "\ud800\u2028"})
    assert found.lines == (1, 3) and found.blank == 1


def test_a_brace_later_on_is_plain_text(file):
    assert read_prompts(file('a star\n{"prompt": 3}')).items == ("a star", '{"prompt": 3}')


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("", "holds no prompts"),
        ("\n \n\t\n", "holds no prompts"),
        (b"a star\n\xff\xfe\n", "line 2: not valid UTF-8"),
        ("a star".encode("utf-16"), "line 1: not valid UTF-8"),
        ('{"prompt": "a"}\na star\n', "line 2: not valid JSON"),
        ('{"prompt": "a"}\n[1]\n', "line 2: wanted a JSON object"),
        ('\n\n{"prompt": 3}', "line 3: wanted a JSON object with a string 'prompt'"),
        ('{"text": "a"}', "line 1: wanted a JSON object with a string 'prompt'"),
        ('{"prompt": "a", "x": NaN}', "line 1: not valid JSON"),
        ('{"prompt": "a", "x": 1e999}', "line 1: not valid JSON"),
        ('{"x": ' + "[" * 200_000, "line 1: not valid JSON"),
        ('{"x": ' + "9" * 10_000 + "}", "line 1: not valid JSON"),
    ],
)
def test_bad_files_name_the_line(file, data, words):
    with pytest.raises(DataError) as error:
        read_prompts(file(data))
    assert words in str(error.value)


def test_files_that_are_none(tmp_path):
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(DataError, match="cannot read the prompts in"):
            read_prompts(path)


def test_a_prompt_of_any_length_is_not_read(file):
    assert read_prompts(file("x" * MAX_TEXT)).items
    with pytest.raises(DataError, match=f"line 2: {MAX_TEXT + 1} characters, more than"):
        read_prompts(file("a star\n" + "x" * (MAX_TEXT + 1)))
