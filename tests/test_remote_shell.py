"""Scripts on another machine through login shells that print, fail or are not bash; ssh itself is in test_launch_ssh."""

import shlex
import subprocess
import sys

import pytest

from salad.engines import remote_shell

SCRIPT = """\
read -r line
printf '%s\\n' "$line" 'single'\\''s "double" $HOME \\\\ `x` !! *'
cd / && echo "é 😀 $(pwd)"
echo grumble >&2
(exit 7)
"""
PRINTED = """a line
single's "double" $HOME \\\\ `x` !! *
é 😀 /
"""


@pytest.fixture
def login(tmp_path, monkeypatch):
    """A stand-in for `ssh HOST COMMAND`: a login shell of this machine with a home of its own, and what it prints there."""

    def make(noise: str = "", logout: str = "") -> list[str]:
        home = tmp_path / "home"
        home.mkdir(exist_ok=True)
        (home / ".bash_profile").write_text(noise)
        (home / ".bash_logout").write_text(logout)
        monkeypatch.setenv("HOME", str(home))
        monkeypatch.setenv("PATH", "/usr/local/bin:/usr/bin:/bin")  # as another machine has it
        path = tmp_path / "ssh"
        path.write_text(f'#!/bin/sh\necho "Welcome to the cluster"; echo banner >&2\nshift\n{shlex.quote("/bin/sh")} -c "$*"\n')
        path.chmod(0o755)
        return [str(path), "host"]

    return make


NOISE = {
    "quiet": ("", ""),
    "prints": ("echo hello from .bash_profile; echo oops >&2; printf 'no line break'", "echo bye"),
    "prints like JSON": ("""echo '{"life": "gone"}'; echo '[1]'""", """echo '{"life": "gone"}'"""),
    "prints bytes": ("printf '\\377\\376\\000'", ""),
}


@pytest.mark.parametrize("noise", NOISE)
def test_what_a_script_prints_is_told_from_what_the_login_shell_prints(login, noise):
    done = remote_shell.run(login(*NOISE[noise]), SCRIPT, "a line\n")
    assert (done.returncode, done.stdout, done.stderr) == (7, PRINTED, "grumble\n")


def test_a_script_that_replaces_its_shell_and_one_without_a_last_line_break(login):
    ssh = login(*NOISE["prints"])
    assert remote_shell.run(ssh, "exec printf abc").stdout == "abc"
    assert remote_shell.run(ssh, "printf 'abc\\n\\n'").stdout == "abc\n\n"
    assert remote_shell.run(ssh, "").stdout == ""


def test_a_shell_that_does_not_run_it_and_a_machine_that_is_not_there_are_two_things(login, tmp_path):
    done = remote_shell.run(login("echo this account is closed >&2; exit 1"), "echo yes")
    assert done.returncode == remote_shell.NOTHING_RAN and done.stdout == "" and "this account is closed" in done.stderr
    unreachable = remote_shell.run(["sh", "-c", "echo ssh: no route to host >&2; exit 255"], "echo yes")
    assert unreachable.returncode == 255 and "no route" in unreachable.stderr
    assert remote_shell.run(["sh", "-c", "sleep 20"], "echo yes", timeout=0.5).returncode == 255


def test_rsyncs_remote_shell_hands_on_bytes_alone(login, tmp_path):
    """A peer that sends back what it is sent, as rsync's other side talks: both ways, before either has ended."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    echo = "import sys\nwhile data := sys.stdin.buffer.read1(): sys.stdout.buffer.write(data); sys.stdout.buffer.flush()"
    (binaries / "rsync").write_text(f"#!/bin/sh\nexec {sys.executable} -c {shlex.quote(echo)}\n")
    (binaries / "rsync").chmod(0o755)
    ssh = login(f"echo hello; printf 'no line break'; PATH={shlex.quote(str(binaries))}:$PATH", "echo bye")
    process = subprocess.Popen(
        [*remote_shell.rsync_shell(ssh), "rsync", "--server", ".", "/x y"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    for data in (b"\0\1\2", b"salad\n" * 1000):
        process.stdin.write(data)
        process.stdin.flush()
        assert process.stdout.read(len(data)) == data
    process.stdin.close()
    assert process.stdout.read() == b"" and process.wait() == 0
