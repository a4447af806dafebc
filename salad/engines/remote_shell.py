"""Runs bash scripts on another machine whatever the login shell there is (bash, zsh, dash, tcsh, fish) and prints.

What our script prints stands between two marks: a banner, `.bash_profile`, `.tcshrc` or `.bash_logout` may print what
they like. The script itself travels as base64 within single quotes, which every shell reads alike.

    python remote_shell.py MARK ssh [OPTIONS] HOST rsync --server ...

is rsync's remote shell: as ssh, but what the login shell prints before rsync starts is kept from it.
"""

import base64
import io
import secrets
import subprocess
import sys
from itertools import pairwise

NOTHING_RAN = 254  # the login shell ended before our script began


def remote_command(script: str, mark: str, end: bool = True) -> str:
    """The command line that runs `script` in a login bash between marks on both streams; without `end`, the script
    replaces the shell and its output goes on to the end."""
    begin = f"echo {mark}; echo {mark} >&2; "
    whole = f"( {script}\n); code=$?; echo; echo {mark}; echo {mark} >&2; exit $code" if end else f"exec {script}"
    code = base64.b64encode((begin + whole).encode()).decode()
    return f"bash -lc 'eval \"$(echo {code} | base64 -d)\"'"


def run(ssh: list[str], script: str, stdin: str = "", timeout: float = 60) -> subprocess.CompletedProcess:
    """`script` under bash where `ssh` (the command with options and host) leads; stdout and stderr are the script's own.

    Return code 255 is ssh's own: the machine cannot be reached. NOTHING_RAN: it can, and bash did not come to our script;
    then stderr holds what was printed instead."""
    mark = f"salad-{secrets.token_hex(8)}"
    words = [*ssh, remote_command(script, mark)]
    try:
        done = subprocess.run(words, input=stdin, capture_output=True, text=True, errors="replace", timeout=timeout)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(words, 255, "", f"no answer within {timeout:g} s")
    out, err = _between(done.stdout, mark, 1), _between(done.stderr, mark, 0)
    if out is None:
        code = 255 if done.returncode == 255 else NOTHING_RAN
        return subprocess.CompletedProcess(words, code, "", done.stderr if done.stderr.strip() else done.stdout)
    return subprocess.CompletedProcess(words, done.returncode, out, err if err is not None else done.stderr)


def _between(text: str, mark: str, added: int) -> str | None:
    """What stands between the marks, or after the first where the second is missing; `added`: the line breaks that were
    put before the second one. None without a mark."""
    _, output, rest = text.partition(f"{mark}\n")
    if not output:
        return None
    inner, _, _ = rest.partition(f"{mark}\n")
    return inner[: len(inner) - added] if added and inner.endswith("\n") else inner


def rsync_shell(ssh: list[str]) -> list[str]:
    """What rsync takes as its `-e`, in words: ssh with its options, made deaf to what a login shell prints."""
    return [sys.executable, "-P", __file__, f"salad-{secrets.token_hex(8)}", *ssh]


def main(words: list[str]) -> int:
    """rsync's remote shell: `words` are the mark, then ssh with its options and the host, then the command for there."""
    mark, words = words[0], words[1:]
    start = next(index for index, pair in enumerate(pairwise(words)) if pair == ("rsync", "--server"))
    ssh, command = words[:start], words[start:]
    process = subprocess.Popen([*ssh, remote_command(" ".join(command), mark, end=False)], stdout=subprocess.PIPE)
    assert isinstance(process.stdout, io.BufferedReader)
    begun = False
    for line in process.stdout:
        if begun := line.rstrip(b"\r\n").endswith(mark.encode()):
            break
    while begun and (data := process.stdout.read1(1 << 16)):
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    return process.wait() if begun or process.wait() else NOTHING_RAN


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
