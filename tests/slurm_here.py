"""A real Slurm on this one machine for as long as a block lasts: munged, slurmctld, slurmd, two fake GPUs."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from tools import refuse, require

CONF = """
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={munge}
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
GresTypes=gpu
KillWait=10
MinJobAge=10
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=0
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPort={port}
SlurmdPort={port1}
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=1000 Gres=gpu:2 State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def require_slurm() -> None:
    """Skip unless Slurm is installed and root runs the tests."""
    require("slurmctld", "slurmd", "munged", "sbatch")
    if os.geteuid() != 0:
        refuse("Slurm's daemons need root", "slurm")


@contextlib.contextmanager
def slurm(folder: Path):
    """Run Slurm with its files in `folder`; SLURM_CONF is set inside the block. Needs root."""
    ports = [_free_port(), _free_port()]
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    conf = folder / "slurm.conf"
    own = Path(tempfile.mkdtemp(prefix="salad-munge-"))  # of its own, and at a short path: sockets' have a limit
    conf.write_text(CONF.format(munge=own / "socket", host=socket.gethostname().split(".")[0], folder=folder,
                                port=ports[0], port1=ports[1], cpus=os.cpu_count()))  # fmt: skip
    (folder / "gres.conf").write_text("Name=gpu File=/dev/zero\nName=gpu File=/dev/null\n")
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(conf)
    started = []
    try:
        (own / "key").write_bytes(os.urandom(1024))
        (own / "key").chmod(0o400)
        files = [f"--{what}={own / name}" for what, name in (("socket", "socket"), ("key-file", "key"), ("pid-file", "pid"),
                                                             ("log-file", "log"), ("seed-file", "seed"))]  # fmt: skip
        started.append(subprocess.Popen(["munged", "--foreground", "--force", *files], stderr=subprocess.DEVNULL))
        probe = ["munge", "--no-input", f"--socket={own / 'socket'}"]
        _until(lambda: subprocess.run(probe, capture_output=True).returncode == 0, "munged")
        started.append(subprocess.Popen(["slurmctld", "-D", "-f", conf], stderr=subprocess.DEVNULL))
        started.append(subprocess.Popen(["slurmd", "-D", "-f", conf], stderr=subprocess.DEVNULL))
        _until(lambda: "idle" in _told("sinfo", "--noheader", "--format=%T"), "slurmctld and slurmd")
        yield conf
    finally:
        _told("scancel", "--user=root")
        for process in reversed(started):
            process.terminate()
        for process in reversed(started):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
        shutil.rmtree(own, ignore_errors=True)
        if before is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = before


def _told(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True).stdout


def _until(done, what: str, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            raise RuntimeError(f"{what} did not come up")
        time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]
