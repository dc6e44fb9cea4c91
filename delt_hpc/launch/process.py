"""Processes of a machine, identified so that another process with the same number is never taken for them."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ProcessIdentity:
    """A process, as the machine and the PID namespace that it runs in know it.

    Attributes:
        boot: id of the machine's last start.
        namespace: the PID namespace; each container has its own.
        started: when the process started, in clock ticks since the machine's start.
    """

    pid: int
    boot: str
    namespace: str
    started: int

    @staticmethod
    def of(pid: int) -> "ProcessIdentity | None":
        """The process with this number here; None if there is none."""
        started = _start_ticks(pid)
        return None if started is None else ProcessIdentity(pid, _boot(), _namespace(), started)

    def alive(self) -> bool | None:
        """Whether the process still runs; None if that cannot be seen from this machine and PID namespace."""
        if (self.boot, self.namespace) != (_boot(), _namespace()):
            return None
        return _start_ticks(self.pid) == self.started

    def send(self, number: signal.Signals) -> bool:
        """Send the signal to this very process; False if it has ended or cannot be seen from here."""
        try:
            handle = os.pidfd_open(self.pid)  # stays this process, even if the number is reused
        except OSError:
            return False
        try:
            if not self.alive():
                return False
            signal.pidfd_send_signal(handle, number)
        except OSError:
            return False
        finally:
            os.close(handle)
        return True


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _namespace() -> str:
    return str(Path("/proc/self/ns/pid").readlink())


def _start_ticks(pid: int) -> int | None:
    """Field 22 of /proc/<pid>/stat; None if the process has ended. The name (field 2) may contain spaces."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
