"""`relay generate` on the lookup model: right answers, shared work, and what happens when things go wrong.

Run through ctest, or: RELAY_BIN=build/relay pytest tests/test_generate.py
"""
import json
import os
import re
import signal
import subprocess
import time

import pytest

from serving import Mixed, Run, command, handbook, read_lines, tokens_of, write_lines


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return handbook(tmp_path_factory.mktemp("small"), 40, 40)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    return handbook(tmp_path_factory.mktemp("large"), 1000, 32, seed=2)


# ---- right answers ----------------------------------------------------------


@pytest.mark.parametrize("kv", ["f32", "bf16"])
@pytest.mark.parametrize("batch", [1, 7, 32])
def test_relay_and_plain_agree(tmp_path, small, kv, batch):
    system, requests = small
    runs = {}
    for way in ("relay", "plain"):
        runs[way] = Run(tmp_path, requests, "--attention", way, "--kv-dtype", kv, "--batch", batch, systems=[system],
                        name=way).good()
        stats = runs[way].stats
        assert stats["system_tokens_computed"] == tokens_of(system)
        assert stats["kv_dtype"] == kv and stats["most_requests_at_once"] == min(batch, len(requests))
        assert all(a["shared_tokens"] == tokens_of(system) for a in runs[way].lines)
    assert runs["relay"].texts() == runs["plain"].texts()
    assert (runs["relay"].stats["relay_steps"] > 0) == (batch > 1)
    assert runs["plain"].stats["relay_steps"] == 0


def test_small_pool_preempts(tmp_path, small):
    """Pages for a few requests, answers that grow: the same texts as with plenty."""
    system, requests = small
    options = ["--ignore-eos", "--max-tokens", 40, "--repeatable", "--kv-dtype", "f32", "--batch", 16]
    plenty = Run(tmp_path, requests, *options, systems=[system], name="plenty")
    token_bytes = 4 * 2 * 2 * 64 * 4  # layers, K and V, heads, head dim, f32
    narrow = Run(tmp_path, requests, *options, "--kv-memory", 14 * 16 * token_bytes, systems=[system], name="narrow")
    assert plenty.code == narrow.code == 0
    assert plenty.stats["preemptions"] == 0 and narrow.stats["preemptions"] > 0
    assert plenty.texts() == narrow.texts()
    assert narrow.stats["peak_kv_pool_bytes"] <= 14 * 16 * token_bytes


# ---- the prompt cache -------------------------------------------------------


def test_second_run_computes_no_prompt(tmp_path, small):
    system, requests = small
    runs = [Run(tmp_path, requests, "--cache-dir", tmp_path / "cache", systems=[system], name=f"run{i}").good() for i in range(2)]
    assert [r.stats["system_tokens_computed"] for r in runs] == [tokens_of(system), 0]
    assert runs[0].texts() == runs[1].texts()
    assert runs[1].stats["cache_file_hits"] >= 1


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.999])
def test_damaged_cache_file_is_computed_again(tmp_path, small, share):
    system, requests = small
    cache = tmp_path / "cache"
    Run(tmp_path, requests[:4], "--cache-dir", cache, systems=[system], name="first").good()
    (kept,) = cache.glob("*.relay")
    whole = kept.read_bytes()
    kept.write_bytes(whole[:int(len(whole) * share)])
    again = Run(tmp_path, requests[:4], "--cache-dir", cache, systems=[system], name="again").good()
    assert again.stats["system_tokens_computed"] == tokens_of(system)
    assert again.stats["cache_rejected_files"] >= 1 and kept.name in again.err
    third = Run(tmp_path, requests[:4], "--cache-dir", cache, systems=[system], name="third").good()
    assert third.stats["system_tokens_computed"] == 0


def wait_for(what, seconds=120):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_killed_run_leaves_prompt_and_answers(tmp_path, large):
    system, requests = large
    cache, out = tmp_path / "cache", tmp_path / "out.jsonl"
    requests = [dict(r, max_tokens=8) for r in requests]
    options = ["--cache-dir", cache, "--batch", 2, "--max-tokens", 8]
    lines = write_lines(tmp_path / "requests.jsonl", requests)
    run = subprocess.Popen(command("--requests", lines, "--out", out, "--system", system, *options), stderr=subprocess.DEVNULL)
    wait_for(lambda: out.exists() and out.stat().st_size > 0 or run.poll() is not None)
    run.send_signal(signal.SIGKILL)
    run.wait()
    before = out.read_bytes()
    with open(out, "ab") as f:  # killed in the middle of a line
        f.write(b'{"id": 31, "text": "12')
    again = Run(tmp_path, requests, "--resume", *options, systems=[system], out=out).good()
    assert again.stats["system_tokens_computed"] == 0
    assert len(again.lines) == len(requests) and again.stats["resumed"] == before.count(b"\n")
    assert open(out, "rb").read().startswith(before[:before.rfind(b"\n") + 1])


def test_killed_run_leaves_nested_prompts(tmp_path):
    """Every prompt that was answered from is kept, and a run that goes on computes none of them."""
    mixed = Mixed(tmp_path, lambda name, entries, requests, seed: handbook(tmp_path / name, entries, requests, seed))
    requests = [dict(r, max_tokens=2) for r in mixed.requests(without=0)]
    busy = [{"id": "none", "text": "hello", "system": None, "max_tokens": 8000}]  # until it is killed
    cache, out = tmp_path / "cache", tmp_path / "out.jsonl"
    lines = write_lines(tmp_path / "requests.jsonl", requests + busy)
    line = command("--requests", lines, "--out", out, "--cache-dir", cache, "--ignore-eos")
    for system in mixed.systems():
        line += ["--system", system]
    run = subprocess.Popen(line, stderr=subprocess.DEVNULL)
    wait_for(lambda: out.exists() and {a["id"].split()[0] for a in whole_lines(out)} == set(mixed.paths) or run.poll() is not None)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    again = Run(tmp_path, mixed.requests(), "--resume", "--cache-dir", cache, systems=mixed.systems(), out=out).good()
    assert again.stats["system_tokens_computed"] == 0 and again.stats["cache_rejected_files"] == 0
    assert again.stats["resumed"] > 0


def whole_lines(path):
    with open(path, "rb") as f:
        return [json.loads(line) for line in f if line.endswith(b"\n")]


def test_kill_while_prompt_is_computed(tmp_path, large):
    system, requests = large
    cache = tmp_path / "cache"
    lines = write_lines(tmp_path / "requests.jsonl", requests)
    run = subprocess.Popen(command("--requests", lines, "--out", tmp_path / "first.jsonl", "--system", system, "--cache-dir", cache),
                           stderr=subprocess.DEVNULL)
    wait_for(cache.exists)
    time.sleep(0.1)
    run.send_signal(signal.SIGKILL)
    run.wait()
    again = Run(tmp_path, requests, "--cache-dir", cache, systems=[system]).good()
    assert again.stats["system_tokens_computed"] in (0, tokens_of(system))
    assert again.stats["cache_rejected_files"] == 0


# ---- lines in and out -------------------------------------------------------


def test_ids_are_kept_as_given(tmp_path, small):
    system, requests = small
    ids = ["1", 1, -7, 2.5, "ü\n\"", "", 9007199254740993]
    run = Run(tmp_path, [{"id": i, "text": requests[0]["text"]} for i in ids], systems=[system])
    assert run.code == 0 and run.stats["accuracy"] is None
    assert sorted(json.dumps(i) for i in ids) == sorted(run.answers)


def test_standard_streams(small):
    system, requests = small
    lines = "".join(json.dumps(r) + "\n" for r in requests).rstrip("\n")  # the last one without its newline
    done = subprocess.run(command("--requests", "-", "--out", "-", "--system", system), input=lines, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers = {a["id"]: a["text"] for a in map(json.loads, done.stdout.splitlines())}
    assert answers == {r["id"]: r["expected"] for r in requests}
    assert "\r" not in done.stderr  # no progress bar into a pipe


def test_answers_come_while_requests_do(small):
    """A pipe that stays open: the first answer does not wait for its end."""
    system, requests = small
    with subprocess.Popen(command("--requests", "-", "--out", "-", "--system", system), stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as run:
        for request in requests[:3]:
            run.stdin.write(json.dumps(request) + "\n")
            run.stdin.flush()
            assert json.loads(run.stdout.readline())["text"] == request["expected"]
        run.stdin.close()
    assert run.returncode == 0


def test_bad_lines_are_named_and_the_rest_is_served(tmp_path, small):
    system, requests = small
    lines = [json.dumps(r) for r in requests[:3]]
    lines[1:1] = ["{not JSON", "[1]", '{"text": "no id"}', '{"id": null, "text": "x"}', ""]
    bad = ['{"id": "a", "text": 7}', '{"id": "b", "text": "x", "system": "nobody"}', '{"id": "c", "text": "x", "max_tokens": 0}',
           '{"id": "d"}', '{"id": "e", "text": "x", "system": 1}', '{"id": "f", "text": "nul \\u0000"}',
           '{"id": "g", "text": "x", "expected": 5}']
    path = tmp_path / "requests.jsonl"
    path.write_text("\n".join(lines + bad) + "\n")
    run = Run(tmp_path, str(path), systems=[f"book={system}"])
    assert run.code == 1
    for line in (2, 3, 4, 5):
        assert f"line {line}:" in run.err
    assert run.stats["lines_refused"] == 4 and run.stats["errors"] == len(bad) and run.stats["answered"] == 3
    for line in bad:
        answer = run.answers[json.dumps(json.loads(line)["id"])]
        assert answer["finish_reason"] == "error" and answer["error"] and answer["text"] == ""
    assert "nobody" in run.answers['"b"']["error"] and "max_tokens" in run.answers['"c"']["error"]


def test_several_prompts_have_to_be_named(tmp_path, small):
    system, requests = small
    run = Run(tmp_path, [requests[0], dict(requests[1], system="b")], systems=[f"a={system}", f"b={system}"])
    assert run.code == 1 and run.answers["0"]["finish_reason"] == "error" and "system" in run.answers["0"]["error"]
    assert run.answers["1"]["text"] == requests[1]["expected"]


def test_duplicate_ids(tmp_path, small):
    system, requests = small
    run = Run(tmp_path, requests[:3] + [requests[1]], systems=[system])
    assert run.code != 0 and "line 4" in run.err and "line 2" in run.err
    assert not os.path.exists(run.out)
    lines = "".join(json.dumps(r) + "\n" for r in requests[:3] + [requests[1]])
    done = subprocess.run(command("--requests", "-", "--out", "-", "--system", system), input=lines, capture_output=True, text=True)
    assert done.returncode == 1 and "line 4" in done.stderr and len(done.stdout.splitlines()) == 3


def test_limits_of_one_request(tmp_path, small):
    system, requests = small
    token_bytes = 4 * 2 * 2 * 64 * 2  # bf16
    asks = [dict(requests[0], id="ok"), dict(requests[1], id="model", max_tokens=8100), dict(requests[2], id="pool", max_tokens=100),
            {"id": "prompt", "text": "hello " * 9000}]
    run = Run(tmp_path, asks, "--kv-memory", 4 * 16 * token_bytes, "--max-tokens", 4, systems=[system])
    assert run.code == 1 and run.answers['"ok"']["text"] == requests[0]["expected"]
    assert "8192" in run.answers['"model"']["error"] and "8192" in run.answers['"prompt"']["error"]
    assert "K/V pool" in run.answers['"pool"']["error"]


# ---- resume, stop, full disks ----------------------------------------------


def test_resume(tmp_path, small):
    system, requests = small
    out = tmp_path / "out.jsonl"
    Run(tmp_path, requests[:10], systems=[system], out=out, name="part").good()
    with open(out, "ab") as f:
        f.write(b'{"id": 3')
    whole = Run(tmp_path, requests, "--resume", systems=[system], out=out, name="whole").good()
    assert whole.stats["resumed"] == 10 and whole.stats["requests"] == 30 and whole.stats["expected"] == 40
    assert whole.texts() == {json.dumps(r["id"]): r["expected"] for r in requests}
    nothing = Run(tmp_path, requests, "--resume", systems=[system], out=out, name="nothing").good()
    assert nothing.stats["requests"] == 0 and nothing.lines == whole.lines and nothing.stats["system_tokens_computed"] == 0
    fresh = Run(tmp_path, requests[:5], "--resume", systems=[system], out=tmp_path / "fresh.jsonl", name="fresh").good()
    assert len(fresh.lines) == 5


def test_existing_answers_are_not_overwritten(tmp_path, small):
    system, requests = small
    out = tmp_path / "out.jsonl"
    first = Run(tmp_path, requests[:4], systems=[system], out=out).good()
    refused = Run(tmp_path, requests, systems=[system], out=out, name="refused")
    assert refused.code == 1 and "--resume" in refused.err and "--force" in refused.err and refused.lines == first.lines
    forced = Run(tmp_path, requests[4:8], "--force", systems=[system], out=out, name="forced").good()
    assert sorted(a["id"] for a in forced.lines) == [r["id"] for r in requests[4:8]]
    out.write_text("these are\nnot answers\n")
    foreign = tmp_path / "foreign.requests.jsonl"
    write_lines(foreign, requests)
    done = subprocess.run(command("--requests", foreign, "--out", out, "--system", system, "--resume"), capture_output=True, text=True)
    assert done.returncode == 1 and "line 1" in done.stderr and out.read_text() == "these are\nnot answers\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_finishes_lines_in_hand(tmp_path, small, number):
    system, requests = small
    out = tmp_path / "out.jsonl"
    lines = write_lines(tmp_path / "requests.jsonl", requests)
    options = ["--ignore-eos", "--max-tokens", 300, "--batch", 4]
    run = subprocess.Popen(command("--requests", lines, "--out", out, "--system", system, *options), stderr=subprocess.PIPE, text=True)
    wait_for(lambda: (out.exists() and out.stat().st_size > 0) or run.poll() is not None)
    run.send_signal(number)
    _, err = run.communicate(timeout=300)
    answers = read_lines(out)
    assert run.returncode == 128 + number and "--resume" in err, err
    assert 0 < len(answers) < len(requests)
    assert all(a["finish_reason"] == "length" and a["completion_tokens"] == 300 for a in answers)
    rest = Run(tmp_path, requests, "--resume", "--max-tokens", 4, systems=[system], out=out)
    assert rest.code == 0 and len(rest.lines) == len(requests)


def test_second_interrupt_quits_at_once(tmp_path, small):
    system, requests = small
    out = tmp_path / "out.jsonl"
    lines = write_lines(tmp_path / "requests.jsonl", requests)
    run = subprocess.Popen(command("--requests", lines, "--out", out, "--system", system, "--ignore-eos", "--max-tokens", 7000),
                           stderr=subprocess.DEVNULL)
    wait_for(lambda: out.exists() or run.poll() is not None)
    time.sleep(0.5)
    run.send_signal(signal.SIGINT)
    time.sleep(0.3)
    run.send_signal(signal.SIGINT)
    assert run.wait(timeout=20) == 130
    read_lines(out)


def test_interrupt_while_waiting_for_requests(small):
    system, requests = small
    with subprocess.Popen(command("--requests", "-", "--out", "-", "--system", system), stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        run.stdin.write(json.dumps(requests[0]) + "\n")
        run.stdin.flush()
        assert json.loads(run.stdout.readline())["text"] == requests[0]["expected"]
        run.send_signal(signal.SIGINT)
        assert run.wait(timeout=60) == 130


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_full_disk(tmp_path, small):
    system, requests = small
    lines = write_lines(tmp_path / "requests.jsonl", requests)
    done = subprocess.run(command("--requests", lines, "--out", "/dev/full", "--system", system), capture_output=True, text=True)
    assert done.returncode == 1 and "/dev/full" in done.stderr and "space" in done.stderr
    stats = subprocess.run(command("--requests", lines, "--out", tmp_path / "out", "--system", system, "--stats", "/dev/full"),
                           capture_output=True, text=True)
    assert stats.returncode == 1 and "/dev/full" in stats.stderr and len(read_lines(tmp_path / "out")) == len(requests)


def test_file_size_limit_leaves_whole_lines(tmp_path, small):
    """A disk that fills up while answers are written: those that were whole stay."""
    system, requests = small
    out = tmp_path / "out.jsonl"
    lines = write_lines(tmp_path / "requests.jsonl", requests)
    shell = "ulimit -f 1; trap '' XFSZ; exec \"$@\""  # 1 KiB: less than 40 lines take (512 bytes a block in some shells)
    done = subprocess.run(["bash", "-c", shell, "sh", *command("--requests", lines, "--out", out, "--system", system)],
                          capture_output=True, text=True)
    assert done.returncode == 1 and str(out) in done.stderr
    assert 0 < len(read_lines(out)) < len(requests)
    again = Run(tmp_path, requests, "--resume", systems=[system], out=out).good()
    assert len(again.lines) == len(requests)


def test_reader_that_goes_away(small):
    system, requests = small
    lines = "".join(json.dumps(r) + "\n" for r in requests)
    with subprocess.Popen(command("--requests", "-", "--out", "-", "--system", system), stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        run.stdout.close()
        try:
            run.stdin.write(lines)
            run.stdin.close()
        except BrokenPipeError:
            pass
        assert run.wait(timeout=60) == 1 and "stdout" in run.stderr.read()


# ---- mistakes on the command line ------------------------------------------


@pytest.mark.parametrize("options,says", [
    (["--batch", "0"], "--batch"),
    (["--kv-memory", "100"], "K/V pool"),
    (["--template", "klingon"], "klingon"),
    (["--top-p", "0"], "top_p"),
    (["--stop", ""], "--stop"),
    (["--resume", "--force"], "--force"),
    (["--kv-dtype", "int4"], "--kv-dtype"),
    (["--cache-dir", "/dev/null/x"], "/dev/null/x"),
    (["--system", "empty.txt"], "empty"),
    (["--system", "newline.txt"], "empty"),
    (["--system", "nul.txt"], "0 byte"),
    (["--system", "missing.txt"], "missing.txt"),
    (["--system", "=system.txt"], "name"),
    (["--system", "a=system.txt", "--system", "a=system.txt"], "two prompts"),
    (["--system", "system.txt", "--system", "a=system.txt"], "needs a name"),
    (["--system", "long.txt"], "8192"),
    (["--model", "nowhere"], "nowhere"),
    (["--requests", "nowhere.jsonl"], "nowhere.jsonl"),
    (["--requests", "."], "directory"),
    (["--out", "nowhere/out.jsonl"], "nowhere/out.jsonl"),
    (["--out", "."], "."),
])
def test_refused_before_anything_is_written(tmp_path, small, options, says):
    system, requests = small
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "newline.txt").write_text("\n")
    (tmp_path / "nul.txt").write_bytes(b"a\0b")
    (tmp_path / "long.txt").write_text("hello " * 9000)
    with open(system) as f:
        (tmp_path / "system.txt").write_text(f.read())
    write_lines(tmp_path / "requests.jsonl", requests[:2])
    line = command("--requests", "requests.jsonl", "--out", "out.jsonl", *options)
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode in (1, 2), done.stderr
    assert says in done.stderr and done.stdout == ""
    assert not (tmp_path / "out.jsonl").exists()


def test_help_names_every_option():
    text = subprocess.run([command()[0], "generate", "--help"], capture_output=True, text=True)
    assert text.returncode == 0
    for option in ("model", "system", "requests", "out", "batch", "max-tokens", "attention", "kv-memory", "cache-dir", "threads",
                   "stats", "resume", "seed", "template", "stop"):
        assert re.search(rf"--{option}\b", text.stdout), option


# ---- sampling ---------------------------------------------------------------


def test_draws_depend_on_seed_and_id_alone(tmp_path, small):
    system, requests = small
    options = ["--temperature", 40, "--repeatable", "--max-tokens", 6, "--compute", "f32"]
    runs = {}
    for name, extra in (("one", ["--seed", 3, "--batch", 1]), ("all", ["--seed", 3, "--batch", 32]), ("other", ["--seed", 4])):
        runs[name] = Run(tmp_path, requests, *options, *extra, systems=[system], name=name)
        assert runs[name].code == 0
    alone = Run(tmp_path, requests[20:22], *options, "--seed", 3, systems=[system], name="alone")
    assert runs["one"].texts() == runs["all"].texts() != runs["other"].texts()
    assert all(runs["one"].texts()[i] == text for i, text in alone.texts().items())
    same = [dict(requests[0], id=i) for i in range(8)]
    assert len(set(Run(tmp_path, same, *options, systems=[system], name="same").texts().values())) > 1


def test_stop_strings(tmp_path, small):
    system, requests = small
    run = Run(tmp_path, requests[:8], "--stop", " .", "--stop", "nothing", systems=[system])
    assert run.code == 0
    for request in requests[:8]:
        answer = run.answers[json.dumps(request["id"])]
        assert answer["text"] == request["expected"].split()[0] and answer["finish_reason"] == "stop"
    middle = requests[0]["expected"][1]  # inside the first token
    run = Run(tmp_path, requests[:1], "--stop", middle, systems=[system], name="middle")
    assert run.lines[0]["text"] == requests[0]["expected"].split(middle)[0]


def test_finish_reasons(tmp_path, small):
    system, requests = small
    run = Run(tmp_path, [dict(requests[0], id="cut", max_tokens=1), dict(requests[1], id="whole")], systems=[system])
    assert run.answers['"cut"']["finish_reason"] == "length" and run.answers['"cut"']["completion_tokens"] == 1
    assert run.answers['"whole"']["finish_reason"] == "stop"
    assert run.stats["tokens_per_second"] > 0 and run.stats["prefill_seconds"] > 0 and run.stats["peak_kv_bytes"] > 0
