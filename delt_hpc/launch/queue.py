"""Calls of Slurm's commands, and what their output means."""

import math
import os
import re
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from delt_hpc.errors import UserError

Standing = Literal["pending", "running", "completed", "failed"]

# What Slurm's job states mean for a task. All states that are not listed count as failed.
_PENDING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
_RUNNING = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}
# Reasons for which a pending job never starts by itself (regular expressions), and what to do.
_STUCK = {
    "DependencyNeverSatisfied": "`submit` again",
    "JobHeldUser|JobHeldAdmin": "release it: scontrol release",
    "JobHoldMaxRequeue|launch.failed.requeued.held": "find out why it does not start there, then: scontrol release",
    "BadConstraints|PartitionNodeLimit|MaxMemPerLimit": (
        "`cancel` it, correct constraint, memory_gib or gpus in the profile, `submit`"
    ),
    "PartitionTimeLimit|.*(Wall|WallDuration)PerJobLimit": "`cancel` it, lower minutes in the profile, `submit`",
    "InvalidAccount|InvalidQOS|AccountNotAllowed|QOSNotAllowed": "`cancel` it, correct account or qos, `submit`",
    "ReservationDeleted|ReservationInvalid": "`cancel` it, correct --reservation in the profile, `submit`",
    r"(Assoc|QOS)Grp(\w*(?<!Run)Minutes(Limit)?|WallLimit)": (
        "the budget is used up: ask for more, or use another account"
    ),
    r"(Assoc|QOS)Max\w*(PerJob|PerNode)(Limit)?": "`cancel` it, lower the request, `submit`",
    r"QOSMin\w*": "`cancel` it, raise the request or use another qos, `submit`",
}

TIMEOUT_SECONDS = 60  # of any call
_IDS_PER_CALL = 200

# sbatch failures after which nothing was submitted and another attempt may succeed.
TEMPORARY = ("temporarily unable to accept job", "Unable to contact slurm controller", "Connection refused")
_RETRY_AFTER_SECONDS = (2.0, 8.0, 30.0)
# What a process inherits from the job it runs in. Given to sbatch, it would change the submitted job.
_OF_A_JOB = ("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_", "PMI_", "PMIX_")


class QueueError(Exception):
    """A Slurm command is missing, fails, or does not answer."""


class QueueRefusedError(QueueError):
    """A Slurm command has failed for certain: it has changed nothing."""


@dataclass(frozen=True)
class Entry:
    """A job, or an element of a job array, as Slurm shows it.

    Attributes:
        state: Slurm's name of the state, e.g. RUNNING.
        seconds: run time since the last start.
    """

    id: str
    state: str
    node: str = ""
    reason: str = ""
    seconds: int | None = None

    @property
    def standing(self) -> Standing:
        if self.state in _PENDING:
            return "pending"
        if self.state in _RUNNING:
            return "running"
        return "completed" if self.state == "COMPLETED" else "failed"

    @property
    def remedy(self) -> str:
        """What to do about a pending job that never starts by itself; empty if it may start."""
        if self.standing != "pending":
            return ""
        reason = self.reason.strip("()")
        return next((remedy for pattern, remedy in _STUCK.items() if re.fullmatch(pattern, reason)), "")

    @property
    def live(self) -> bool:
        return self.standing in ("pending", "running")


def call(*command: str) -> str:
    """Run a command of Slurm and return its standard output.

    Raises:
        QueueError: it is missing, fails, or does not answer.
    """
    # Without this variable Slurm shortens long lists of array elements.
    return _checked(_run(command, os.environ | {"SLURM_BITSTR_LEN": "0"}))


def try_sbatch(script: str, *options: str) -> "subprocess.CompletedProcess[str]":
    """Give the script to sbatch; the exit code is for the caller to check.

    Raises:
        QueueError: sbatch is missing or does not answer.
    """
    return _run(["sbatch", *options], outside_any_job(os.environ), script)


def submit(script: str) -> str:
    """Submit the script and return the job's id. A controller that is busy or restarting is tried again.

    Raises:
        QueueError: sbatch is missing or refuses the script.
    """
    for seconds in (*_RETRY_AFTER_SECONDS, None):
        done = try_sbatch(script, "--parsable")
        if done.returncode == 0 or seconds is None or not any(text in done.stderr for text in TEMPORARY):
            break
        time.sleep(seconds)
    return _checked(done).strip().partition(";")[0]


def outside_any_job(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without the variables of the job that this process may run in."""
    return {
        name: value for name, value in environment.items() if name == "SLURM_CONF" or not name.startswith(_OF_A_JOB)
    }


def _run(command: Sequence[str], environment: Mapping[str, str], text: str = "") -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(
            command,
            input=text,
            env=environment,
            timeout=TIMEOUT_SECONDS,
            capture_output=True,
            check=False,
            text=True,
            errors="replace",
        )
    except FileNotFoundError:
        raise QueueRefusedError(f"there is no {command[0]} on this machine") from None
    except subprocess.TimeoutExpired:
        raise QueueError(f"{command[0]} has not answered in {TIMEOUT_SECONDS} s") from None


def _checked(done: "subprocess.CompletedProcess[str]") -> str:
    if done.returncode:
        kind = QueueError if "timed out" in done.stderr else QueueRefusedError
        raise kind(f"{done.args[0]}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout


_SQUEUE_FORMAT = "%i|%T|%N|%M|%r"


def queued(jobs: Iterable[str]) -> dict[str, Entry]:
    """Those of these jobs, of any user, that the controller still remembers, with all elements of their arrays."""
    ids = sorted({job.partition("_")[0] for job in jobs})
    try:
        return parse_squeue(call("squeue", "-h", "-r", "-t", "all", "-j", ",".join(ids), "-o", _SQUEUE_FORMAT))
    except QueueRefusedError as error:
        if "Invalid job id" in str(error):  # the only job is forgotten
            return {}
        raise


class PatientQueue:
    """`queued` and `accounted` for programs that look often: Slurm is asked at most every `seconds`."""

    def __init__(self, seconds: float = 30.0) -> None:
        self._seconds = seconds
        self._asked_at = -math.inf
        self._answer: dict[str, Entry] | QueueError = {}

    def __call__(self, jobs: Sequence[str]) -> dict[str, Entry]:
        if time.monotonic() - self._asked_at >= self._seconds:
            try:
                self._answer = known(jobs)
            except QueueError as error:
                self._answer = error
            self._asked_at = time.monotonic()
        if isinstance(self._answer, QueueError):
            raise self._answer
        return self._answer


def known(jobs: Sequence[str]) -> dict[str, Entry]:
    """The jobs as the queue shows them, and those that it has forgotten as accounting shows them."""
    found = queued(jobs)
    gone = [job for job in jobs if job not in found]
    return (accounted(gone) if gone else {}) | found


def parse_squeue(text: str) -> dict[str, Entry]:
    """Read lines of id|state|node|time|reason."""
    found: dict[str, Entry] = {}
    for line in text.splitlines():
        parts = line.strip().split("|", 4)
        if len(parts) != 5:
            continue
        ids, state, node, time, reason = (part.strip() for part in parts)
        for one in expand(ids):
            found[one] = Entry(one, _state_name(state), node, "" if reason == "None" else reason, duration(time))
    return found


def find(comments: Mapping[str, str]) -> dict[str, str]:
    """The ids of jobs by their comments, as far as Slurm knows them.

    Args:
        comments: the name of each job by its comment.
    """
    names = ",".join(sorted(set(comments.values())))
    lines = call("squeue", "-h", "-t", "all", f"--name={names}", "-o", "%F|%k").splitlines()
    rows = [line.strip().partition("|") for line in lines]
    return {comment: job for job, _, comment in rows if comment in comments}


def accounted(jobs: Iterable[str]) -> dict[str, Entry]:
    """These jobs and all their array elements as accounting shows them; empty on a site without accounting."""
    ids = sorted({job.partition("_")[0] for job in jobs})
    found: dict[str, Entry] = {}
    for start in range(0, len(ids), _IDS_PER_CALL):
        some = ",".join(ids[start : start + _IDS_PER_CALL])
        try:
            text = call("sacct", "-X", "-n", "-P", "-o", "JobID,State,NodeList,ElapsedRaw,Reason", "-j", some)
            found |= parse_sacct(text)
        except QueueError:
            return {}
    return found


def parse_sacct(text: str) -> dict[str, Entry]:
    """Read lines of id|state|node|seconds|reason. Job steps are ignored; a requeued job's last line counts."""
    found: dict[str, Entry] = {}
    for line in text.splitlines():
        parts = line.strip().split("|", 4)
        if len(parts) != 5 or "." in parts[0]:
            continue
        ids, state, node, elapsed, reason = parts
        for one in expand(ids):
            found[one] = Entry(
                one,
                _state_name(state),
                "" if node == "None assigned" else node,
                "" if reason == "None" else reason,
                int(elapsed) if elapsed.isdigit() else None,
            )
    return found


def expand(text: str) -> list[str]:
    """The ids in 15, 15_3, 15_[0-3,7%2] or 15_[0-8:4]; none for 15+1 (a heterogeneous job) and other text."""
    if re.fullmatch(r"\d+(_\d+)?", text):
        return [text]
    match = re.fullmatch(r"(\d+)_\[([\d,:-]+)(?:%\d+)?\]", text)
    if not match:
        return []
    found: list[str] = []
    for part in match[2].split(","):
        span = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part)
        if span:
            first, last, step = int(span[1]), int(span[2] or span[1]), int(span[3] or 1)
            found += [f"{match[1]}_{i}" for i in range(first, last + 1, max(1, step))]
    return found


def duration(text: str) -> int | None:
    """Seconds in [days-]hours:minutes:seconds or minutes:seconds; None for other text, e.g. INVALID."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if not match:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def still_wanted(job: str) -> bool:
    """Is the job running for the controller? Not if it was cancelled or requeued; so if it only got a signal."""
    try:
        entry = parse_squeue(call("squeue", "-h", "-r", "-j", job, "-o", _SQUEUE_FORMAT)).get(job)
    except QueueError:
        return False
    return entry is not None and entry.state == "RUNNING"


def cancel(jobs: Sequence[str]) -> None:
    """Cancel the jobs; those that have ended already are ignored."""
    for start in range(0, len(jobs), _IDS_PER_CALL):
        call("scancel", *jobs[start : start + _IDS_PER_CALL])


def set_dependency(job: str, dependency: str) -> None:
    """Let the pending job wait for other jobs than before."""
    call("scontrol", "update", f"JobId={job}", f"Dependency={dependency}")


def excluded(job: str) -> list[str]:
    """The nodes on which the job must not run."""
    shown = re.search(r"\bExcNodeList=(\S+)", call("scontrol", "-o", "show", "job", job))
    return [shown[1]] if shown and shown[1] != "(null)" else []


def exclude(job: str, nodes: Sequence[str]) -> None:
    """Keep the pending job away from these nodes, and from no others."""
    call("scontrol", "update", f"JobId={job}", f"ExcNodeList={','.join(nodes)}")


def settings() -> dict[str, str]:
    """The cluster's settings, from `scontrol show config`."""
    return parse_settings(call("scontrol", "show", "config"))


def parse_settings(text: str) -> dict[str, str]:
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}


def max_array_size() -> int:
    """How many elements a job array may have: their indices are 0 to MaxArraySize - 1.

    Raises:
        UserError: the site does not allow job arrays.
    """
    size = int(settings().get("MaxArraySize", "1001"))
    if size < 2:
        raise UserError(f"MaxArraySize is {size}: this cluster does not allow job arrays", where="slurm.conf")
    return size


def _state_name(state: str) -> str:
    """CANCELLED for `CANCELLED by 1000` and `CANCELLED+`."""
    words = state.split()
    return words[0].rstrip("+").upper() if words else "UNKNOWN"
