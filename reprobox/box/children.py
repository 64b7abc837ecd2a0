"""Processes that this one starts: workers of multiprocessing, pools, and programs run by subprocess."""

import os
import re
import sys

_hook = sys.modules["_reprobox_hook"]

_PYTHON = re.compile(r"(?:.*/)?python[0-9.]*")


def apply(name, module, recipe):
    """Watch the just imported ``module`` called ``name``."""
    {
        "subprocess": _watch_subprocess,
        "multiprocessing.context": _pin_start_method,
        "multiprocessing.process": _watch_process,
        "multiprocessing.pool": _watch_pool,
        "concurrent.futures.process": _watch_executor,
    }[name](module, recipe)


def _wrap(owner, name, make):
    _hook.load("receipt")
    _hook.load("watch").wrap(owner, name, make)


def _guarded(ours, *arguments):
    return _hook.load("watch").guarded(ours, *arguments)


def _watch_subprocess(module, recipe):
    """Note every child that looks like Python: one that never signs the ledger was not reached."""
    del recipe
    if not _hook.run_dir():
        return

    def make(original):
        def __init__(self, *arguments, **options):
            original(self, *arguments, **options)
            _guarded(_note_child, self)

        return __init__

    _wrap(module.Popen, "__init__", make)


def _note_child(process):
    program = _program(process.args)
    if program is not None and getattr(process, "pid", None):
        _hook.load("receipt").child(process.pid, program)


def _program(command):
    """Return the command line if its program is a Python interpreter, else ``None``."""
    words = [command] if isinstance(command, (str, bytes, os.PathLike)) else list(command)
    words = [os.fsdecode(word) for word in words]
    if not words or not _PYTHON.fullmatch(words[0]):
        return None
    return " ".join(_hook.load("receipt").without_arguments(words))


def _pin_start_method(module, recipe):
    """Keep fork the default start method on Linux; Python 3.14 changed it, and with it the workers' numbers.

    Only the default is set, so a program may still choose its own, once, as without reprobox.
    """
    del recipe
    if sys.platform == "linux" and sys.version_info >= (3, 14):
        module._default_context._default_context = module._concrete_contexts["fork"]


def _watch_process(module, recipe):
    """Give a spawned worker a stream of its own: a new interpreter would begin with its parent's seed."""

    def make(original):
        def _bootstrap(self, *arguments, **options):
            _guarded(_begin_worker, self, recipe)
            return original(self, *arguments, **options)

        return _bootstrap

    _wrap(module.BaseProcess, "_bootstrap", make)


def _begin_worker(process, recipe):
    if not _hook.lineage:
        # What the worker imports from now on is seeded as its own as well.
        _hook.lineage.append("s" + ".".join(map(str, process._identity)))
        if "_reprobox_seeding" in sys.modules:
            _hook.load("seeding").reseed_all(recipe)
    _finish_after(process)
    method = process._start_method or sys.modules["multiprocessing"].get_start_method(allow_none=True)
    _hook.load("receipt").started_by(method)


def _finish_after(process):
    """End the receipt with the worker: multiprocessing leaves by os._exit, which runs no atexit handlers."""
    run = process.run

    def run_and_finish():
        try:
            run()
        finally:
            _guarded(_hook.load("receipt").finish)

    process.run = run_and_finish


def _watch_pool(module, recipe):
    """Report draws inside a pool's tasks: which worker takes which task is the operating system's choice."""
    del recipe

    def make(original):
        def worker(inqueue, outqueue, *arguments, **options):
            _guarded(_watch_queues, inqueue, outqueue, "multiprocessing.Pool")
            return original(inqueue, outqueue, *arguments, **options)

        return worker

    _wrap(module, "worker", make)
    _note_workers(module.Pool, "multiprocessing.Pool", lambda pool: pool._processes)


def _watch_executor(module, recipe):
    del recipe

    def make(original):
        def _process_worker(call_queue, result_queue, *arguments, **options):
            _guarded(_watch_queues, call_queue, result_queue, "ProcessPoolExecutor")
            return original(call_queue, result_queue, *arguments, **options)

        return _process_worker

    _wrap(module, "_process_worker", make)
    _note_workers(module.ProcessPoolExecutor, "ProcessPoolExecutor", lambda pool: pool._max_workers)


def _note_workers(kind, name, count):
    def make(original):
        def __init__(self, *arguments, **options):
            original(self, *arguments, **options)
            _guarded(_note_pool, name, count, self)

        return __init__

    _wrap(kind, "__init__", make)


def _note_pool(name, count, pool):
    workers = count(pool)
    if workers > 1:
        file, line, _ = _hook.load("receipt").caller(through=(os.sep + "multiprocessing" + os.sep,))
        _hook.load("receipt").note("pool", pool=name, workers=workers, file=file, line=line)


def _watch_queues(tasks, results, pool):
    """Look at the generators when the worker takes a task, and when it hands in the result.

    Before the result is gone: with the last one the pool may end, and its workers by a signal.
    """
    get, put = tasks.get, results.put
    before = {}

    def watched_get(*arguments, **options):
        task = get(*arguments, **options)
        _guarded(remember)
        return task

    def watched_put(*arguments, **options):
        _guarded(look)
        return put(*arguments, **options)

    def remember():
        before.clear()
        before.update(_states())

    def look():
        if any(before.get(name) != state for name, state in _states().items()):
            _hook.load("receipt").note("pool-draw", pool=pool)

    tasks.get, results.put = watched_get, watched_put


def _states():
    seeding = sys.modules.get("_reprobox_seeding")
    if seeding is None:
        return {}
    modules = {"random": "random", "numpy": "numpy.random", "torch": "torch"}
    return {name: seeding._STATES[name](sys.modules[modules[name]]) for name in seeding.originals}
