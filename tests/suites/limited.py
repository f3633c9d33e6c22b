"""Programs that may hang."""

import os
import signal
import subprocess
import contextlib


def run(argv, log, seconds, **options):
    """Runs the program to its end, or for so long; what it says goes to `log`. Nothing that it has started stays."""
    with log.open("wb") as out:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, **options)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            out.write(f"\nended after {seconds} s\n".encode())
        finally:
            kill_group(process)


def kill_group(process):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
