"""Starts processes: several of one run, and commands that need not import everything first."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
DISTRIBUTED = HERE / "distributed"
PATHS = os.pathsep.join(map(str, (HERE.parent, HERE, DISTRIBUTED)))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": PATHS}


def taken():
    """Seconds of processor time of all processes that were started here and have ended; a busy machine adds none."""
    times = os.times()
    return times.children_user + times.children_system


class Zygote:
    """A process that forks those that a test starts, so that not each of them has to import everything."""

    def __init__(self, **environment):
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "zygote.py")],
            env={**ENVIRONMENT, **environment},
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
        ranks = [{**place, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
        started = [self.start(DISTRIBUTED / script, *arguments, **rank) for rank in ranks]
        return [self.end(process) for process in started]

    def torchrun(self, count, *arguments):
        """(status, what was said) of a script under torchrun, which starts its processes by itself."""
        return self.run("torch.distributed.run", "--standalone", "--nproc-per-node", count, *arguments)

    def run(self, command, *arguments):
        """(status, what was said) of a module, or of a script."""
        return self.end(self.start(command, *arguments))

    def start(self, command, *arguments, **environment):
        """The id of a process."""
        return self._answer("start", [str(command), *map(str, arguments)], environment)

    def end(self, process, block=True):
        """(status, what was said), or None if it is still running and not to be waited for."""
        return self._answer("end", process, block)

    def _answer(self, *asked):
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def stop(self):
        self.process.kill()
        self.process.wait()
