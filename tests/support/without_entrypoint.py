"""Ways into the image's Python that skip the entrypoint, and Pythons that cannot be started again."""

from __future__ import annotations

import contextlib
import subprocess

TRACED = """
import ctypes, os, sys
child = os.fork()
if child == 0:
    ctypes.CDLL(None).ptrace(0, 0, 0, 0)  # PTRACE_TRACEME
    os.environ.pop("_REPROBOX_RECIPE")
    os.environ["PYTHONHASHSEED"] = "0"
    os.execvp("python", ["python", "-c", sys.argv[1]])
while True:
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        sys.exit(os.WEXITSTATUS(status))
    ctypes.CDLL(None).ptrace(7, child, None, None)  # PTRACE_CONT
"""
"""Runs its argument in a Python that is traced, as under gdb or strace, and comes without a recipe of its own."""

THREAD = """cat >/tmp/thread.cc <<'END'
#include <pthread.h>
#include <unistd.h>
static void *wait(void *) {{ pause(); return nullptr; }}
__attribute__((constructor)) static void begin() {{ pthread_t thread; pthread_create(&thread, nullptr, wait, nullptr); }}
END
g++ -shared -fPIC -pthread -o /tmp/thread.so /tmp/thread.cc
LD_PRELOAD=/tmp/thread.so python -c {program}"""
"""Runs a program in a Python that has a thread before it begins, as a profiler's preloaded library gives it one."""

EMBEDDED = """cat >/tmp/embed.cc <<'END'
#include <Python.h>
int main(int, char **argv) {{ Py_Initialize(); int failed = PyRun_SimpleString(argv[1]); Py_Finalize(); return -failed; }}
END
version=$(python -c 'import sys; print("python{{}}.{{}}".format(*sys.version_info))')
g++ -I/usr/include/$version -o /tmp/embed /tmp/embed.cc /usr/lib/*/lib$version.so* &&
PYTHONPATH=/opt/venv/lib/$version/site-packages /tmp/embed {program}"""
"""Runs a program in a Python inside another program."""


@contextlib.contextmanager
def kept_alive(client, image, folder):
    """Keep a container alive as GitHub keeps a job's; yield what runs a shell's words in it as a step, in ``folder``."""
    container = client.containers.create(
        image, ["-f", "/dev/null"], entrypoint="tail", network_mode="none", cap_add=["SYS_PTRACE"],
        volumes={str(folder): {"bind": "/job", "mode": "ro"}},
    )  # fmt: skip

    def step(words, *variables, user="1000:1000", stdin="", check=True):
        given = [word for variable in variables for word in ("-e", variable)]
        inside = ["docker", "exec", "-i", "-w", "/job", "-u", user, *given, container.id, "sh", "-c", words]
        done = subprocess.run(inside, input=stdin, capture_output=True, text=True, timeout=120)
        if check:
            assert done.returncode == 0, done.stderr
        return done

    try:
        container.start()
        yield step
    finally:
        container.remove(force=True)
