"""Engine `ssh` against a real OpenSSH server on 127.0.0.1: another user, another home, nothing shared."""

import contextlib
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest
import test_launch_here as here
from slurm_here import _free_port
from tools import PACKAGES, ROOT, refuse, require

import launch_gpu
import store
from salad.engines import Run, ssh
from salad.engines.targets import Target, resolve
from salad.errors import SaladError

pytestmark = [pytest.mark.sshd, pytest.mark.rsync]
USER = "saladtest"


class Server:
    """An OpenSSH server with its own port, keys and one user."""

    def __init__(self, folder, python):
        self.folder, self.python, self.port, self.process = folder, python, _free_port(), None
        for name in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
        folder.chmod(0o755)
        (folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile {folder}/pid\n"
            f"AuthorizedKeysFile {folder}/user.pub\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
            "MaxStartups 100\n"
        )
        os.makedirs("/run/sshd", exist_ok=True)
        self.up()

    def up(self):
        sshd = shutil.which("sshd") or "/usr/sbin/sshd"
        self.process = subprocess.Popen([sshd, "-D", "-f", self.folder / "sshd_config"], stderr=subprocess.DEVNULL)
        end = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            assert time.monotonic() < end and self.process.poll() is None
            time.sleep(0.1)

    def down(self):
        self.process.terminate()
        self.process.wait(20)

    def target(self, **fields) -> Target:
        home = pwd.getpwnam(USER).pw_dir
        options = ("-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={self.folder}/known")
        return Target(
            engine="ssh", host="127.0.0.1", port=self.port, user=USER, python=self.python,
            identity=str(self.folder / "user"), ssh_options=options, scratch=f"{home}/salad", **fields,
        )  # fmt: skip


def a_python() -> str:
    """An environment of the other user's own, with the packages of this one on its path: no 2.4 GB are installed."""
    packages, version = " ".join(PACKAGES), f"python{sys.version_info[0]}.{sys.version_info[1]}"
    for base in (os.path.realpath(sys.executable), f"/usr/bin/{version}"):
        script = (
            f"{base} -m venv --without-pip ~/env && printf '%s\\n' {packages} > ~/env/lib/{version}/site-packages/here.pth"
            " && ~/env/bin/python -c 'import pydantic, pyarrow, psutil' && echo ~/env/bin/python"
        )
        made = subprocess.run(["su", USER, "-c", script], capture_output=True, text=True, cwd="/")
        if made.returncode == 0:
            return made.stdout.strip()
    refuse(f"another user can use neither {sys.executable} nor {version}: {made.stderr.strip()}", "sshd")


@pytest.fixture(scope="module")
def server():
    require("ssh", "ssh-keygen", "sshd", "useradd", "rsync")
    if os.geteuid() != 0:
        refuse("a second user needs root", "sshd")
    # one that a killed test run left behind
    subprocess.run(["userdel", "--remove", "--force", USER], capture_output=True)
    subprocess.run(["useradd", "--create-home", "--shell", "/bin/bash", "--password", "*", USER], check=True)
    try:
        python = a_python()
        # not under pytest's own folder, which is closed to other users
        with tempfile.TemporaryDirectory(prefix="salad-sshd-") as folder:
            server = Server(Path(folder), python)
            yield server
            server.down()
    finally:
        for process in psutil.process_iter(["username"]):  # those of the user whom these tests made
            if process.info["username"] == USER:
                process.kill()
        subprocess.run(["userdel", "--remove", "--force", USER], capture_output=True)


def start(server, lab, target=None, fields=None, **config) -> Run:
    return here.start(lab, on="box", target=target or server.target(), fields=fields, **config)


def there(run: Run) -> dict:
    return json.loads((run.folder.path / "ssh.json").read_text())


def test_launched_from_a_notebook_with_a_live_curve_a_cut_connection_a_kill_a_resume_and_a_fetch(server, tmp_path, monkeypatch):
    plain = here.start(tmp_path / "plain", steps=80)
    (tmp_path / "lab" / "corpora" / "broad").mkdir(parents=True)
    (tmp_path / "lab" / "corpora" / "broad" / "part-0.parquet").write_bytes(b"text")
    cell = f"""
        import json, sys, time
        sys.path.insert(0, {str(ROOT / "tests")!r})
        import test_launch_here as here
        from salad.engines.targets import Target
        target = Target(**json.loads({server.target().model_dump_json()!r}))
        run = here.start({str(tmp_path / "lab")!r}, on="box", target=target, steps=80, pause=0.2, unit=7,
                         data={{"text": ["broad"]}})
        print(run.run_id, flush=True)
        time.sleep(600)
    """
    kernel = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(cell)], stdout=subprocess.PIPE, text=True, start_new_session=True, cwd=ROOT
    )
    run = Run.open(tmp_path / "lab", kernel.stdout.readline().strip())
    os.killpg(kernel.pid, signal.SIGKILL)
    kernel.wait()
    here.reach(run, 3)
    first = len(run.metrics())
    here.reach(run, first + 3)  # live
    place = there(run)
    assert place["code"] in run.logs() and USER in place["lab"]
    assert (tmp_path / "lab").joinpath("corpora/broad/part-0.parquet").read_bytes() == (
        subprocess.run(["cat", place["lab"] + "/corpora/broad/part-0.parquet"], capture_output=True).stdout
    )

    server.down()  # the connection is cut: the run goes on, and what is shown is what was heard last
    before = run.status()
    assert before["state"] in ("running", "stalled")
    assert (
        "cannot be asked"
        in here.handle.infer_status(
            before | {"state": "running", "heartbeat_at": "2020-01-01T00:00:00Z"}, None, run.spec, run.engine
        )["error"]
    )
    server.up()
    status = here.reach(run, 20)
    marked = json.loads(open(f"{place['lab']}/runs/{run.run_id}/supervisor.json").read())
    for part in marked.values():
        os.kill(part["pid"], signal.SIGKILL)
    status = here.until(run, lambda status: status["state"] == "failed", 20)
    assert "without a message" in status["error"]
    run.resume()
    status = run.wait(90)
    assert status["state"] == "done", run.logs()
    assert plain.wait(60)["state"] == "done" and here.losses(run) == here.losses(plain)

    assert not run.folder.checkpoints()
    assert run.fetch(tables_only=True)["units"] == 1 and not run.folder.checkpoints()
    _cut_a_fetch(run, monkeypatch)
    assert run.folder.checkpoints() == [] and store.verify(tmp_path / "lab") == []  # half a checkpoint is none
    result = run.fetch()
    assert result["checkpoints"] == len(run.folder.checkpoints()) >= 16 and result["damaged"] == []
    assert run.fetch() == result  # again: the same
    unit = next((tmp_path / "lab" / "tables").rglob("*.parquet"))
    data = bytearray(unit.read_bytes())
    at = unit.stat()
    data[10] ^= 1
    unit.write_bytes(data)
    os.utime(unit, ns=(at.st_atime_ns, at.st_mtime_ns))  # a flipped bit that size and time do not show
    assert run.fetch() == result and store.connect(tmp_path / "lab").execute("select count(*) from samples").fetchone() == (7,)


def _cut_a_fetch(run: Run, monkeypatch) -> None:
    """Fetch through a thin pipe, and kill rsync with -9 when the first of a checkpoint's files has come."""
    results = []

    def fetch():
        try:
            results.append(run.fetch())
        except SaladError as error:
            results.append(str(error))

    own = ssh.Ssh._rsync
    with monkeypatch.context() as patched:
        patched.setattr(ssh.Ssh, "_rsync", lambda self, *words, stdin="": own(self, "--bwlimit=1", *words, stdin=stdin))
        thread = threading.Thread(target=fetch)
        thread.start()
        while thread.is_alive():
            if any(path.is_file() for path in run.folder.path.glob("checkpoints/*/*")):
                for child in psutil.Process().children(recursive=True):
                    if child.name() == "rsync":
                        child.kill()
            time.sleep(0.02)
    assert len(results) == 1 and "do it again to go on" in results[0], results


def test_stop_resume_and_secrets_by_name(server, tmp_path, monkeypatch):
    value = f"hush-{os.urandom(8).hex()}"
    monkeypatch.setenv("TINY_TOKEN", value)
    run = start(server, tmp_path, target=server.target(env=("TINY_TOKEN",)), say="TINY_TOKEN", steps=150, pause=0.1)
    here.reach(run, 2)
    assert run.stop(wait_s=40)["state"] == "stopped"
    assert run.resume(max_hours=1).wait(60)["state"] == "done", run.logs()
    assert f"TINY_TOKEN has {len(value)} characters" in run.logs() and run.logs().count("from step") == 2
    for folder in (tmp_path, there(run)["lab"]):
        assert subprocess.run(["grep", "-rqF", value, folder]).returncode == 1


def test_the_shards_of_a_pass_work_there_side_by_side_and_each_unit_comes_back_once(server, tmp_path):
    run = start(server, tmp_path, steps=3, fields={"workers": 3})
    status = run.wait(90)
    assert status["state"] == "done" and status["shards"] == {"done": 3}, run.logs()
    assert run.fetch()["units"] == 3 and run.fetch()["units"] == 3
    counted = store.connect(tmp_path).execute("select count(*), count(distinct sample_id) from samples").fetchone()
    assert counted == (12, 12)


def test_the_same_lab_and_code_are_not_sent_twice_and_uncommitted_code_runs(server, tmp_path):
    first = start(server, tmp_path, steps=2)
    second = start(server, tmp_path, steps=3)
    assert there(first) == there(second) | {"started_at": there(first)["started_at"]}
    assert first.wait(60)["state"] == second.wait(60)["state"] == "done"
    code = first.spec.code
    sent = subprocess.run(["git", "hash-object", there(first)["code"] + "/salad/engines/ssh.py"], capture_output=True)
    own = subprocess.run(["git", "hash-object", ROOT / "salad/engines/ssh.py"], capture_output=True)
    assert sent.stdout == own.stdout and len(code["tree"]) == 40


NOISE = {  # what each login shell reads, whether a person is there or not
    "bash": (".bash_profile", ".bashrc", ".bash_logout"),
    "dash": (".profile",),
    "fish": (".config/fish/config.fish",),
    "tcsh": (".tcshrc", ".login", ".logout"),
}


@pytest.mark.parametrize("shell", NOISE)
def test_a_login_shell_that_prints_or_is_not_bash_changes_nothing(server, tmp_path, shell):
    if shell not in ("bash", "dash"):  # Debian's own
        require(shell)
    home = Path(pwd.getpwnam(USER).pw_dir)
    for name in NOISE[shell]:
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("""echo 'Welcome to {"life": "gone"} cluster'\nprintf 'python=none rsync= gpus=9'\n""")
        for folder in [path, *path.parents][: len(Path(name).parts)]:
            shutil.chown(folder, USER)
    subprocess.run(["usermod", "--shell", shutil.which(shell), USER], check=True)
    try:
        assert all(finding.ok for finding in ssh.Ssh(server.target()).check())
        run = start(server, tmp_path, steps=3, unit=4)
        assert run.wait(90)["state"] == "done", run.logs()
        assert run.fetch() == {"checkpoints": 0, "units": 1, "damaged": []}
    finally:
        subprocess.run(["usermod", "--shell", "/bin/bash", USER], check=True)
        for name in NOISE[shell]:
            (home / name).unlink()


def test_check_says_whether_it_would_work(server, tmp_path, capsys):
    path = tmp_path / "targets.toml"
    fields = server.target().model_dump(exclude_defaults=True)
    path.write_text("[box]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in fields.items()))
    assert resolve("box", path)[1] == server.target()
    assert launch_gpu.main(["check", "box", "--targets", str(path)]) == 0
    assert "box would work" in capsys.readouterr().out
    path.write_text(path.read_text().replace(f"port = {server.port}", f"port = {_free_port()}"))
    assert launch_gpu.main(["check", "box", "--targets", str(path)]) == 1
    output = capsys.readouterr().out
    assert "cannot reach" in output and "box would not work" in output


@pytest.mark.parametrize(
    ("change", "fields", "message"),
    [
        ({"port": 1}, {}, "cannot reach"),
        ({"user": "nobody-there"}, {}, "cannot reach"),
        ({}, {"gpus": 64}, "--gpus 64"),
        ({}, {"nodes": 2}, "one node"),
        ({"host": None}, {}, "no host"),
    ],
)
def test_what_cannot_work_is_one_line_and_starts_nothing(server, tmp_path, change, fields, message):
    with pytest.raises(SaladError, match=message) as caught:
        start(server, tmp_path, target=server.target().model_copy(update=change), fields=fields)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("ssh.json"))


def test_the_projects_own_install_is_made_once_for_each_set_of_versions(server, tmp_path, monkeypatch):
    """The whole install is 2.4 GB: pip itself is replaced, the way to it is real."""
    bare = server.target().model_copy(update={"python": None})
    asked = []
    own = ssh.Ssh._do

    def noted(self, script, what, *rest, **named):
        asked.append((what, script))
        return "" if what == "installing" else own(self, script, what, *rest, **named)

    monkeypatch.setattr(ssh.Ssh, "_do", noted)
    with pytest.raises(SaladError, match="starting on"):  # there is no environment behind it
        start(server, tmp_path, target=bare, steps=1)
    script = dict(asked)["installing"]
    assert "-m venv" in script and "--constraint" in script and ".ready" in script
