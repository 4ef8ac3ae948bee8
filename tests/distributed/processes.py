"""Starts several processes of one run, as torchrun does or without an agent between."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PATHS = os.pathsep.join(str(path) for path in (HERE.parents[1], HERE.parent, HERE))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": PATHS}
LIMIT = 240


def torchrun(count, *arguments, **environment):
    """(status, what was said) of a module under torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    done = subprocess.run(
        [*command, *map(str, arguments)],
        env={**ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    return done.returncode, done.stdout + done.stderr


class Zygote:
    """A process that forks those of a run, so that not each of them has to import everything."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "zygote.py")],
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def together(self, count, script, *arguments):
        """(status, what was said) of each of several processes that find each other by themselves."""
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
        command = [str(HERE / script), *map(str, arguments)]
        self.process.stdin.write(json.dumps({"count": count, "environment": place, "command": command}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def end(self):
        self.process.kill()
        self.process.wait()
