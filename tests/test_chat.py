"""`relay chat` through a pipe and in a terminal."""
import os
import pty
import re
import select
import signal
import subprocess
import time

import pytest

from serving import LOOKUP, RELAY, handbook


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    return handbook(tmp_path_factory.mktemp("book"), 200, 8)


def chat(*options):
    return [RELAY, "chat", "--model", LOOKUP, *map(str, options)]


def talk(lines, *options):
    return subprocess.run(chat(*options), input=lines, capture_output=True, text=True, timeout=300)


def test_questions_from_a_pipe(tmp_path, book):
    system, requests = book
    lines = "\n".join(r["text"] for r in requests[:1]) + "\n\n"
    first, second = (talk(lines, "--system", system, "--cache-dir", tmp_path / "cache") for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr
    assert first.stdout == second.stdout == requests[0]["expected"] + "\n"
    assert re.search(r"system prompt: \d+ tokens computed in [\d.]+ s", first.stderr)
    assert re.search(r"system prompt: \d+ tokens from the cache in [\d.]+ s; computing them took [\d.]+ s", second.stderr)


def test_a_second_turn_goes_on_from_the_first(book):
    """Kept pages or not, a turn is answered on all that was said: a long first line leaves its mark."""
    system, requests = book
    done = talk("".join(r["text"] + "\n" for r in requests[:3]), "--system", system, "--max-tokens", 8)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 3
    assert done.stdout.splitlines()[0] == requests[0]["expected"]


def test_conversation_longer_than_the_model(book):
    system, requests = book
    done = talk("hello " * 8200 + "\n" + requests[0]["text"] + "\n", "--system", system)
    assert done.returncode == 0 and "8192" in done.stderr and "anew" in done.stderr
    assert done.stdout.splitlines()[-1] == requests[0]["expected"]


def test_without_system_prompt():
    done = talk("what is the code of babebi ? answer :\n")
    assert done.returncode == 0 and done.stdout == "unknown .\n"


@pytest.mark.parametrize("options,says", [(["--system", "/nowhere"], "/nowhere"), (["--model", "/nowhere"], "/nowhere")])
def test_mistakes(options, says):
    done = talk("x\n", *options)
    assert done.returncode == 1 and says in done.stderr and done.stdout == ""


class Terminal:
    def __init__(self, *options):
        pid, self.fd = pty.fork()
        if pid == 0:
            os.execv(RELAY, chat(*options))
        self.pid, self.seen = pid, ""

    def wait_for(self, text, seconds=120):
        end = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < end, self.seen
            if select.select([self.fd], [], [], 0.1)[0]:
                self.seen += os.read(self.fd, 4096).decode()
        self.seen = self.seen[self.seen.index(text) + len(text):]

    def type(self, text):
        os.write(self.fd, text.encode())

    def code(self):
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_terminal(book):
    system, requests = book
    t = Terminal("--system", system)
    t.wait_for("> ")
    t.type(requests[0]["text"] + "\n")
    t.wait_for(requests[0]["expected"])
    t.wait_for("> ")
    t.type("\x04")
    assert t.code() == 0


def test_interrupt_at_the_prompt(book):
    system, _ = book
    t = Terminal("--system", system)
    t.wait_for("> ")
    t.type("\x03")
    t.wait_for("Ctrl-D leaves")
    t.wait_for("> ")
    t.type("\x03")
    assert t.code() == 128 + signal.SIGINT
