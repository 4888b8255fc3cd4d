import threading

from process_gen.curation.answer_cache import AnswerCache, content_key, default_folder


def test_keys_depend_on_content_alone():
    assert content_key({"a": 1, "b": [2]}) == content_key({"b": [2], "a": 1})
    assert len({content_key(x) for x in ({"a": 1}, {"a": "1"}, {"a": 1.5}, {"b": 1}, {})}) == 5


def test_answers_come_back(tmp_path):
    cache = AnswerCache(tmp_path / "new" / "folder")
    key = content_key({"question": "?"})
    assert cache.get(key) is None
    cache.put(key, {"question": "?"}, {"text": "é"})
    assert cache.get(key) == {"text": "é"}
    assert [p.name for p in (tmp_path / "new" / "folder").rglob("*") if p.is_file()] == [
        f"{key}.json"
    ]


def test_damaged_files_are_no_answers(tmp_path):
    cache = AnswerCache(tmp_path)
    for damage in (b"", b"[]", b'{"version": 1, "ans', b'{"version": 99, "answer": 1}', b"\xff"):
        cache.put("ab" * 32, {}, 1)
        assert cache.get("ab" * 32) == 1
        cache.path("ab" * 32).write_bytes(damage)
        assert cache.get("ab" * 32) is None


def test_many_writers_of_one_answer(tmp_path):
    """A reader sees a whole answer or none, whoever writes at that moment."""
    cache, seen = AnswerCache(tmp_path), []
    text = "x" * 200_000

    def write():
        for _ in range(10):
            cache.put("cd" * 32, {}, text)
            seen.append(cache.get("cd" * 32) == text)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 40 and all(seen)


def test_the_default_folder_follows_the_environment(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_folder() == "/somewhere/process_gen/answers"
