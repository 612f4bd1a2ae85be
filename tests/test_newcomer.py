"""What somebody meets who uses the commands for the first time: each mistake is refused with a message that says
what to do, before anything is computed or written; what only looks odd works."""
import json
import os
import subprocess

import pytest
from serving import LOOKUP, RELAY, handbook, read_lines, write_lines


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    return handbook(tmp_path_factory.mktemp("book"), 6, 3, 5)


@pytest.fixture
def place(tmp_path, book):
    """A directory with system.txt, requests.jsonl, and things that are no such files."""
    system, requests = book
    with open(system) as f:
        (tmp_path / "system.txt").write_text(f.read())
    write_lines(tmp_path / "requests.jsonl", requests)
    (tmp_path / "dir").mkdir()
    return tmp_path


def relay(place, *line, **more):
    return subprocess.run([RELAY, *line], capture_output=True, text=True, cwd=place, timeout=120,
                          stdin=subprocess.DEVNULL, **more)


def generate(place, *options, model=LOOKUP, **more):
    return relay(place, "generate", "--model", model, "--system", "system.txt", "--requests", "requests.jsonl",
                 "--out", "out.jsonl", *options, **more)


@pytest.mark.parametrize("command", ["", "generate", "chat", "bench", "bench attention", "bench generate", "check", "info"])
def test_every_command_helps(tmp_path, command):
    words = command.split()
    done = relay(tmp_path, *words, "--help")
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith(f"Usage: relay {command}".strip())
    assert all(len(line) <= 100 for line in done.stdout.splitlines()), "a line wider than a terminal"
    if command not in ("", "bench"):
        assert "Examples:\n  " in done.stdout and "  --help" in done.stdout
        wrong = relay(tmp_path, *words, "--nothing")
        assert wrong.returncode == 2 and wrong.stdout == ""
        assert wrong.stderr == f"relay {command}: unknown option --nothing\nTry 'relay {command} --help'.\n"


@pytest.mark.parametrize("options,says", [
    (["--batch"], "--batch needs a value: N"),
    (["--batch="], '--batch: expected a whole number: 1 to 4096; got ""'),
    (["--batch", "5000"], 'expected a whole number: 1 to 4096; got "5000"'),
    (["--seed", "-1"], 'expected a whole number: 0 or more; got "-1"'),
    (["--seed", "99999999999999999999"], "--seed: 99999999999999999999 is too large; at most 9223372036854775807"),
    (["--max-tokens", "99999999999"], "--max-tokens: 99999999999 is too large; at most 2147483647"),
    (["--kv-memory", "99999999999999999999"], "--kv-memory: 99999999999999999999 is too large; at most "),
    (["--kv-memory", "8388608T"], "--kv-memory: 8388608T is too large"),
    (["--kv-memory", "1GB"], "bytes, with K, M, G or T for units of 1024"),
    (["--kv-memory", "8000000T"], "too many"),
    (["--kv-memory", "1k"], "1024 bytes do not hold one page of 16 tokens, which takes 32768"),
    (["--temperature", "nan"], "a number from 0 to 1000"),
    (["-batch", "1"], 'unexpected argument "-batch": options begin with two hyphens'),
    (["requests.jsonl"], 'unexpected argument "requests.jsonl"'),
    (["--model", ""], "--model: the name of the directory is empty"),
    (["--model", "system.txt"], "--model: system.txt is a file: the directory that it lies in is what counts"),
    (["--model", "dir"], "dir/tokenizer.json: No such file"),
    (["--system", ""], "no file is named"),
    (["--system", "x="], "--system x=: no file is named"),
    (["--system", "dir"], "dir: not a regular file"),
    (["--requests", "dir"], "dir: is a directory"),
    (["--out", "dir"], "dir: is a directory"),
    (["--out", ""], "the name of the file is empty"),
    (["--out", "nowhere/out.jsonl"], "nowhere/out.jsonl: No such file or directory"),
    (["--stats", "dir"], "dir: is a directory"),
    (["--stats", "nowhere/stats.json"], "nowhere/stats.json: No such file or directory"),
    (["--stats", "out.jsonl"], "out.jsonl: is given for --stats and for --out"),
    (["--out", "requests.jsonl", "--force"], "requests.jsonl: is given for --out and for --requests: that would be lost"),
    (["--out", "system.txt", "--force"], "system.txt: is given for --out and for --system: that would be lost"),
    (["--out", "./dir/../system.txt", "--resume"], "is given for --out and for --system"),
    (["--stats", "requests.jsonl"], "requests.jsonl: is given for --stats and for --requests"),
])
def test_mistakes(place, options, says):
    before = {p.name: p.read_bytes() for p in place.iterdir() if p.is_file()}
    done = generate(place, *options)
    if options[0] == "--system":  # two prompts need names: only the one in question
        done = relay(place, "generate", "--model", LOOKUP, "--requests", "requests.jsonl", "--out", "out.jsonl", *options)
    assert done.returncode in (1, 2) and done.stdout == ""
    assert says in done.stderr, done.stderr
    assert all(line.startswith(("relay generate: ", "Try ")) for line in done.stderr.splitlines()), done.stderr
    assert {p.name: p.read_bytes() for p in place.iterdir() if p.is_file()} == before


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give it up")
@pytest.mark.parametrize("option", ["--out", "--stats"])
def test_directory_without_permission(place, option):
    (place / "dir").chmod(0o555)
    for path in [place, *place.parents]:
        if path.stat().st_mode & 0o005 != 0o005:
            path.chmod(path.stat().st_mode | 0o055)
        if path == place.parents[1]:
            break
    line = ["setpriv", "--reuid=65534", "--clear-groups", RELAY, "generate", "--model", LOOKUP, "--requests",
            "requests.jsonl", "--out", "/dev/null", option, "dir/file"]
    done = subprocess.run(line, capture_output=True, text=True, cwd=place)
    if "cannot execute" in done.stderr or "failed to execute" in done.stderr:
        pytest.skip("the command lies where others may not read")
    assert done.returncode == 1 and "dir/file: Permission denied" in done.stderr, done.stderr
    assert not list((place / "dir").iterdir())


def test_the_later_of_two_options_counts(place):
    done = generate(place, "--batch", "0x", "--batch", "1")
    assert done.returncode == 2  # each has to be right
    done = generate(place, "--max-tokens", "1", "--max-tokens", "8")
    assert done.returncode == 0, done.stderr
    assert all(a["completion_tokens"] > 1 for a in read_lines(place / "out.jsonl"))


@pytest.mark.parametrize("content", [b"", b"\n\r\n  \n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\r\n"])
def test_no_request(place, content):
    (place / "requests.jsonl").write_bytes(content)
    done = generate(place)
    assert done.returncode == 0 and "requests.jsonl: holds no request" in done.stderr
    assert (place / "out.jsonl").read_bytes() == b""


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("way", ["file", "stdin"])
def test_lines_from_other_systems(place, book, mark, end, way):
    data = mark + b"".join(json.dumps(r).encode() + end for r in book[1])
    (place / "requests.jsonl").write_bytes(data)
    line = [RELAY, "generate", "--model", LOOKUP, "--system", "system.txt", "--requests",
            "-" if way == "stdin" else "requests.jsonl", "--out", "out.jsonl"]
    done = subprocess.run(line, input=data if way == "stdin" else b"", capture_output=True, cwd=place)
    assert done.returncode == 0, done.stderr
    assert {a["id"]: a["text"] for a in read_lines(place / "out.jsonl")} == {r["id"]: r["expected"] for r in book[1]}


def test_a_mark_elsewhere_is_no_mark(place, book):
    lines = [json.dumps(r).encode() for r in book[1]]
    (place / "requests.jsonl").write_bytes(lines[0] + b"\n\xef\xbb\xbf" + lines[1] + b"\n")
    done = generate(place)
    assert done.returncode == 1 and "requests.jsonl: line 2: no JSON" in done.stderr


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_utf_16_is_named(place, book, encoding):
    mark = b"" if encoding == "utf-16" else b"\xfe\xff"
    text = "".join(json.dumps(r) + "\n" for r in book[1])
    (place / "requests.jsonl").write_bytes(mark + text.encode(encoding))
    done = generate(place)
    assert done.returncode == 1 and "requests.jsonl: is UTF-16: requests are read as UTF-8" in done.stderr


def test_stats_into_a_device(place):
    """A file is replaced, a device or a pipe is written to."""
    os.mkfifo(place / "pipe")
    reader = subprocess.Popen(["cat", "pipe"], stdout=subprocess.PIPE, cwd=place, text=True)
    done = generate(place, "--stats", "pipe")
    said, _ = reader.communicate(timeout=60)
    assert done.returncode == 0 and json.loads(said)["requests"] == 3
    assert (place / "pipe").is_fifo() and sorted(p.name for p in place.iterdir()) == [
        "dir", "out.jsonl", "pipe", "requests.jsonl", "system.txt"]


@pytest.mark.parametrize("line", ["generate --help", "info --threads 1", "check --only state", "bench attention --help"])
def test_a_reader_that_goes_away(place, line):
    """`relay ... | head -1`: it ends, and neither crashes nor hangs."""
    with subprocess.Popen([RELAY, *line.split()], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        run.stdout.readline()
        run.stdout.close()
        assert run.wait(timeout=120) in (0, 1, -13)


def test_answers_to_a_reader_that_goes_away(place, book):
    write_lines(place / "requests.jsonl", [dict(r, id=f"{i}/{r['id']}") for i in range(200) for r in book[1]])
    line = [RELAY, "generate", "--model", LOOKUP, "--system", "system.txt", "--requests", "requests.jsonl", "--out", "-"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=place, text=True) as run:
        first = json.loads(run.stdout.readline())
        run.stdout.close()
        said = run.stderr.read()
        assert run.wait(timeout=120) == 1
    assert first["finish_reason"] == "stop" and "relay generate: stdout: Broken pipe" in said
