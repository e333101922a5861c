"""A real Slurm on one machine for tests: munged, slurmctld and several slurmd with fake GPUs, without systemd.

Everything it writes is in one folder. The nodes live in namespaces of their own: each has its own host name, as
on a cluster, and sees the folder's configuration at /etc/slurm, since Snakemake's job step drops SLURM_CONF.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from viny.runtime.signals import end_with_parent

PACKAGES = ("slurm-wlm", "munge")
PROGRAMS = ("munged", "munge", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "srun")
ETC = Path("/etc/slurm")


class NoSlurmError(Exception):
    """Slurm cannot run here; the message says why."""


def install() -> None:
    """Install Debian's packages if they are missing; no daemon is started.

    Raises:
        NoSlurmError: they are not available, or this process may not do what the cluster needs.
    """
    if os.geteuid() != 0:
        raise NoSlurmError("Slurm's nodes need root: they have namespaces of their own")
    if not all(shutil.which(name) for name in PROGRAMS):
        if shutil.which("apt-get") is None:
            raise NoSlurmError(f"{', '.join(PACKAGES)} are not installed, and there is no apt-get")
        # With systemd, the packages would start their services.
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "SYSTEMD_OFFLINE": "1"}
        for command in (["update"], ["install", "--yes", "--no-install-recommends", *PACKAGES]):
            done = subprocess.run(["apt-get", "-qq", *command], env=env, capture_output=True, text=True, timeout=600)
            if done.returncode:
                raise NoSlurmError(f"apt-get {command[0]} failed: {done.stderr.strip()[-500:]}")
    tried = subprocess.run(["unshare", "--mount", "--uts", "true"], capture_output=True, text=True)
    if tried.returncode:
        raise NoSlurmError(f"no namespaces for Slurm's nodes: {tried.stderr.strip()}")


def until(ready: Callable[[], object], what: str, seconds: float = 300.0, every: float = 0.2) -> None:
    """Wait until `ready` says so; AssertionError after `seconds`."""
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, f"{what}: not within {seconds:.0f} s"
        time.sleep(every)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()


@dataclass(frozen=True)
class Job:
    """A job as `scontrol show job` shows it, and what it runs."""

    fields: Mapping[str, str]

    @property
    def id(self) -> str:
        return self.fields["JobId"]

    @property
    def state(self) -> str:
        return self.fields["JobState"]

    @property
    def node(self) -> str:
        """Where it runs or ran; empty while it waits."""
        return self.fields.get("NodeList", "").replace("(null)", "")

    @property
    def comment(self) -> str:
        return self.fields.get("Comment", "")

    @property
    def over(self) -> bool:
        return self.state not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED", "SUSPENDED")

    @property
    def tres(self) -> dict[str, str]:
        """What was asked for: cpu, mem, gres/gpu."""
        return dict(pair.split("=", 1) for pair in self.fields["TRES"].split(","))


@dataclass
class Cluster:
    """A cluster that `start` starts and `stop` stops.

    Attributes:
        nodes: how many; each claims `cpus`, `memory_mb` and `gpus` whatever the machine has.
    """

    nodes: int = 2
    cpus: int = 2
    memory_mb: int = 16000
    gpus: int = 2
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="viny-slurm-")))
    _daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _made_etc: bool = False

    @property
    def names(self) -> list[str]:
        return [f"viny{number + 1}" for number in range(self.nodes)]

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to find this cluster."""
        return {"SLURM_CONF": str(self.folder / "etc" / "slurm.conf")}

    def __enter__(self) -> Cluster:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> None:
        self.folder.chmod(0o755)  # munge's clients want every folder above the socket to be open
        for name in ("etc", "log", "state", "run", *(f"spool/{node}" for node in self.names)):
            (self.folder / name).mkdir(parents=True)
        if not ETC.is_dir():
            ETC.mkdir()
            self._made_etc = True
        self._write_configuration()
        run, log = self.folder / "run", self.folder / "log"
        key = run / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        munge = ["munged", "--foreground", f"--key-file={key}", f"--socket={run / 'munge.socket'}"]
        munge += [f"--pid-file={run / 'munged.pid'}", f"--seed-file={run / 'seed'}", f"--log-file={log / 'munged.log'}"]
        self._daemon("munged", munge)
        until((run / "munge.socket").exists, "munged", 20)
        self._daemon("slurmctld", ["slurmctld", "-D"])
        for name in self.names:
            self.start_node(name)
        until(lambda: self.node_states() == dict.fromkeys(self.names, "idle"), "idle nodes", 30)

    def _write_configuration(self) -> None:
        folder, host = self.folder, platform.node().split(".")[0]
        ports = _free_ports(self.nodes + 1)
        size = f"CPUs={self.cpus} RealMemory={self.memory_mb}" + (f" Gres=gpu:{self.gpus}" if self.gpus else "")
        nodes = [
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} {size}"
            for name, port in zip(self.names, ports[1:], strict=True)
        ]
        partition = f"Nodes={','.join(self.names)} DefaultTime=60 MaxTime=INFINITE State=UP"
        lines = [
            "ClusterName=viny",
            f"SlurmctldHost={host}(127.0.0.1)",
            f"SlurmctldPort={ports[0]}",
            "SlurmUser=root",
            "SlurmdUser=root",
            "AuthType=auth/munge",
            "CredType=cred/munge",
            f"AuthInfo=socket={folder}/run/munge.socket,cred_expire=5",  # a requeued job waits at least that long
            "MpiDefault=none",
            "ProctrackType=proctrack/linuxproc",  # cgroups are not everywhere
            "TaskPlugin=task/none",
            f"SlurmctldPidFile={folder}/run/slurmctld.pid",
            f"SlurmdPidFile={folder}/run/slurmd-%n.pid",
            f"SlurmctldLogFile={folder}/log/slurmctld.log",
            f"SlurmdLogFile={folder}/log/slurmd-%n.log",
            f"SlurmdSpoolDir={folder}/spool/%n",
            f"StateSaveLocation={folder}/state",
            "SlurmdParameters=config_overrides",  # a node is what its line says, not what the machine is
            "ReturnToService=2",
            "SlurmdTimeout=10",  # seconds without an answer, after which a node is down
            "SchedulerParameters=sched_interval=2,batch_sched_delay=1,bf_interval=5",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_CPU_Memory",
            "DefMemPerCPU=500",
            "MinJobAge=86400",  # finished jobs are asked about until the end of the tests
            "MaxJobCount=20000",
            "KillWait=10",
            "OverTimeLimit=0",
            # Memory limits by polling, as cgroups are not everywhere: such a job ends FAILED, not OUT_OF_MEMORY.
            "JobAcctGatherType=jobacct_gather/linux",
            "JobAcctGatherFrequency=task=1",
            "JobAcctGatherParams=OverMemoryKill",
            "AccountingStorageType=accounting_storage/none",
            *(["GresTypes=gpu"] if self.gpus else []),
            *nodes,
            "PreemptType=preempt/partition_prio",
            "PreemptMode=REQUEUE",
            f"PartitionName=main Default=YES {partition} PriorityTier=1",
            f"PartitionName=urgent {partition} PriorityTier=9",
        ]
        (folder / "etc" / "slurm.conf").write_text("\n".join(lines) + "\n")
        devices = [folder / f"gpu{number}" for number in range(self.gpus)]
        for device in devices:
            os.mknod(device, stat.S_IFCHR | 0o600, os.makedev(1, 3))  # as /dev/null: Slurm numbers only real devices
        gres = [f"NodeName={name} Name=gpu File={device}\n" for name in self.names for device in devices]
        (folder / "etc" / "gres.conf").write_text("".join(gres))

    def _daemon(self, name: str, command: list[str]) -> None:
        parent = os.getpid()
        with open(self.folder / "log" / f"{name}.out", "ab") as out:
            self._daemons[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                preexec_fn=lambda: end_with_parent(parent),  # even if the tests are killed
                env={**os.environ, **self.environment},
            )

    def start_node(self, name: str) -> None:
        script = 'mount --bind "$1" /etc/slurm && hostname "$2" && exec slurmd -D -N "$2"'
        inside = ["unshare", "--mount", "--uts", "sh", "-c", script, "sh", str(self.folder / "etc"), name]
        self._daemon(name, inside)

    def kill_node(self, name: str) -> None:
        """Kill a node's slurmd and all its jobs' processes, as in a power failure: nobody is told."""
        pids = self.processes(name)
        self._daemons[name].kill()
        # What watches over a job is killed before the job, or it would report the job's end.
        for pid in sorted(pids, key=lambda pid: _read(f"/proc/{pid}/comm").strip() != b"slurmstepd"):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._daemons[name].wait()

    def processes(self, name: str) -> list[int]:
        """Processes in a node's namespace."""
        space = os.readlink(f"/proc/{self._daemons[name].pid}/ns/uts")
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if os.readlink(path / "ns" / "uts") == space:
                    found.append(int(path.name))
        return found

    def stop(self) -> None:
        """Stop what was started, in reverse order, and remove the folder."""
        with suppress(subprocess.TimeoutExpired, AssertionError):
            if "slurmctld" in self._daemons:
                self.run("scancel", "--user=root", seconds=10)
                until(lambda: not self.run("squeue", "-h", seconds=10).strip(), "the end of all jobs", 15)
        for name in set(self.names) & set(self._daemons):
            if self._daemons[name].poll() is None:
                for pid in set(self.processes(name)) - {self._daemons[name].pid}:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        for name in [*self.names, "slurmctld", "munged"]:
            daemon = self._daemons.get(name)
            if daemon is not None and daemon.poll() is None:
                daemon.terminate()
                try:
                    daemon.wait(10)
                except subprocess.TimeoutExpired:
                    daemon.kill()
                    daemon.wait()
        if self._made_etc:
            ETC.rmdir()
        shutil.rmtree(self.folder, ignore_errors=True)

    # What a user asks

    def run(self, *command: str, check: bool = True, env: Mapping[str, str] | None = None, seconds: float = 60) -> str:
        env = {**(os.environ if env is None else env), **self.environment}
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=env)
        assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    def node_states(self) -> dict[str, str]:
        lines = self.run("sinfo", "-h", "-N", "-o", "%N %T", check=False).splitlines()
        return dict(line.split() for line in lines if len(line.split()) == 2)

    def jobs(self) -> list[Job]:
        """Every job since the start, oldest first."""
        found = []
        for line in self.run("scontrol", "--oneliner", "show", "job").splitlines():
            if line.startswith("JobId="):
                pieces = (piece.partition("=") for piece in line.split())
                found.append(Job({key: value for key, _, value in pieces if value}))
        return sorted(found, key=lambda job: int(job.id))

    def job_processes(self, job: Job, word: str) -> list[int]:
        """Processes of a job that have a word in their command."""
        found = []
        for pid in self.processes(job.node) if job.node else []:
            mine = f"\0SLURM_JOB_ID={job.id}\0".encode() in _read(f"/proc/{pid}/environ")
            if mine and word.encode() in _read(f"/proc/{pid}/cmdline").split(b"\0"):
                found.append(pid)
        return found

    def active(self) -> list[Job]:
        return [job for job in self.jobs() if not job.over]


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:  # the process has ended
        return b""
