"""Many command lines, each in a process of its own that is forked from one which has imported everything already."""

from __future__ import annotations

import json
import subprocess
import sys

FORKS = """\
import json, os, sys, tempfile
from reprobox.cli import main
import docker, reprobox.cli.app, reprobox.cli.run, reprobox.runs.execute
ended = []
for argv in json.load(sys.stdin):
    out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()
    if os.fork() == 0:
        nothing = os.open(os.devnull, os.O_RDONLY)
        for number, taken in enumerate((nothing, out.fileno(), err.fileno())):
            os.dup2(taken, number)
        sys.argv = ["reprobox", *argv]
        main()
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.wait()[1])
    for file in (out, err):
        file.seek(0)
    ended.append([code, out.read().decode(), err.read().decode()])
json.dump(ended, sys.stdout)
"""


def many(cli, argvs):
    """Return (exit code, stdout, stderr) of each ``reprobox ARGV``, as :meth:`support.cli.Cli.call` would type it."""
    done = subprocess.run(
        [sys.executable, "-c", FORKS],
        input=json.dumps(argvs),
        cwd=cli.folder,
        env=cli.environment,
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
        check=True,
    )
    ended = [tuple(one) for one in json.loads(done.stdout)]
    assert len(ended) == len(argvs)
    return ended
