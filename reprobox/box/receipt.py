"""The receipt of one process (``reprobox.receipt/1``): what happened to the recipe while the program ran.

Written when the first generator is seeded, again when something new happens, and a last time at the end, because many
processes (forked workers, killed ones) never come to an orderly end.
"""

import atexit
import os
import sys
import time

try:
    from _json import encode_basestring_ascii
except ImportError:
    from json.encoder import encode_basestring_ascii

SCHEMA = "reprobox.receipt/1"
MOST_EVENTS = 200
"""More different events than this are counted and not listed: a receipt is for reading."""

KNOB_WORD = "env."
"""What those words of the recipe begin with that say which environment a process is to find."""

BOX = os.path.dirname(os.path.abspath(__file__))
STDLIB = os.path.dirname(os.__file__)

_hook = sys.modules["_reprobox_hook"]
_state = {}
_events = {}
_at_exit = []


def start():
    """Begin the receipt of this process."""
    _events.clear()
    _state.clear()
    _state.update(
        schema=SCHEMA,
        pid=os.getpid(),
        parent=os.getppid(),
        host=os.uname().nodename,
        rank=None,
        lineage=".".join(_hook.lineage),
        argv=without_arguments(sys.orig_argv),
        python=sys.version.split()[0],
        start_ns=time.time_ns(),
        start=_now(),
        end=None,
        complete=False,
        hash={"value": hash("reprobox"), "in_force": hash_seed_in_force()},
        seeds=[],
        flags={"start": None, "exit": None},
        generators={},
        children=[],
        start_method=None,
        threads=None,
        more_events=0,
    )
    if not _state["hash"]["in_force"]:
        note("hash-seed", message="PYTHONHASHSEED does not reach this process, so sets of strings have a free order")
    for word, wanted in _hook.recipe.items():
        if word.startswith(KNOB_WORD):
            name = word[len(KNOB_WORD) :]
            value = os.environ.get(name)
            if value != wanted:
                note("knob", knob=name, value=value, wanted=wanted)


def hash_seed_in_force():
    """Say whether str.__hash__ follows the recipe, or a seed of the caller's own: ``-E`` and ``-I`` leave it to chance."""
    seeds = (_hook.recipe.get("seed", ""), os.environ.get("PYTHONHASHSEED", ""))
    return _hook.load("hashing").in_force(*(int(seed) for seed in seeds if seed.isdigit()))


def without_arguments(words):
    """Return a Python command line up to its script or module: what follows may be secret, and is the program's."""
    kept = list(words[:1])
    for word in words[1:]:
        if word == "-c" or kept[-1] == "-m" or not word.startswith("-"):
            return [*kept, word]
        kept.append(word)
    return kept


def after_fork():
    """Begin anew in a forked child, which inherited its parent's receipt."""
    start()


def note(kind, **fields):
    """Record an event once, with a count of how often it happened; a new one is written out at once."""
    key = _key(kind, fields)
    if key in _events:
        _events[key]["count"] += 1
        return
    if len(_events) >= MOST_EVENTS:
        _state["more_events"] += 1
        return
    _events[key] = {"kind": kind, **fields, "count": 1}
    write()


def take_back(kind, **fields):
    """Undo one :func:`note` of the same event, which turned out not to be one."""
    key = _key(kind, fields)
    event = _events.get(key)
    if event is None:
        return
    event["count"] -= 1
    if not event["count"]:
        del _events[key]
        write()


def _key(kind, fields):
    return (kind, *sorted((name, str(value)) for name, value in fields.items()))


def seeded(generator, seed, rank):
    """Record that ``generator`` was given ``seed``."""
    _state["rank"] = rank
    _state["seeds"].append({"generator": generator, "seed": seed, "time": _now()})
    write()


def set_fields(**fields):
    """Set fields of the receipt that have one value each."""
    _state.update(fields)


def started_by(method):
    """Record how multiprocessing started this worker, at once: many are ended by a signal."""
    if _state["start_method"] != method:
        _state["start_method"] = method
        write()


def child(pid, program):
    """Record that this process started ``program``, which looks like Python, as ``pid``."""
    _state["children"].append({"pid": pid, "program": program})
    write()


def at_exit(function):
    """Have ``function`` called when the process ends in order, just before the last writing."""
    _at_exit.append(function)


def finish():
    """Write the receipt of a process that ends in order."""
    if _state.get("complete") or not _state:
        return
    for function in _at_exit:
        try:
            function(_state)
        except Exception as error:  # noqa: PERF203  one that fails must not take the others along
            note("failure", message=f"at exit: {type(error).__name__}: {error}")
    multiprocessing = sys.modules.get("multiprocessing")
    if multiprocessing is not None:
        _state["start_method"] = multiprocessing.get_start_method(allow_none=True)
    _state["complete"] = True
    _state["end"] = _now()
    write()


def write():
    """Write the receipt as it stands, whole or not at all. A run folder that cannot be written is no one's failure."""
    folder = _hook.run_dir()
    if not folder or _state.get("pid") != os.getpid():
        return
    rank = "x" if _state["rank"] is None else _state["rank"]
    name = f"receipt-{rank}-{_state['host']}-{_state['pid']}-{_state['start_ns']}.json"
    earlier, _state["name"] = _state.get("name"), name
    document = {key: value for key, value in _state.items() if key != "name"}
    document["events"] = list(_events.values())
    path = os.path.join(folder, name)
    temporary = os.path.join(folder, "." + name)
    try:
        with open(temporary, "w", encoding="ascii") as file:
            file.write(to_json(document) + "\n")
        os.replace(temporary, path)
        if earlier not in (None, name):
            os.unlink(os.path.join(folder, earlier))  # the rank became known
    except OSError:
        pass


def to_json(value):
    """Return ``value`` as JSON text (the ``json`` module costs a bare ``import random`` more than the seeding does)."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if type(value) is int or (type(value) is float and value - value == 0):  # JSON knows no nan and no inf
        return repr(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{to_json(str(k))}: {to_json(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(to_json, value)) + "]"
    return encode_basestring_ascii(str(value))


def caller(through=()):
    """Return ``(file, line, origin)`` of the code that called into a wrapper of ours.

    Frames of reprobox and, by file name, those of ``through`` are passed over. ``origin`` is ``user``, ``library``
    (site-packages) or ``stdlib``; the file is relative to the working directory where it lies below it.
    """
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        own = name.startswith(BOX)
        if not own and not name.startswith("<frozen") and not any(part in name for part in through):
            return _shown(name), frame.f_lineno, origin_of(name)
        frame = frame.f_back
    return "<unknown>", 0, "stdlib"


def origin_of(name):
    """Say whose code the file ``name`` is: ``user``, ``library`` or ``stdlib``."""
    if "site-packages" in name or "dist-packages" in name:
        return "library"
    return "stdlib" if name.startswith(STDLIB + os.sep) else "user"


def _shown(name):
    try:
        here = os.getcwd() + os.sep
    except OSError:
        return name
    return name.removeprefix(here)


def _now():
    seconds, milliseconds = divmod(time.time_ns() // 1_000_000, 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{milliseconds:03d}Z"


start()
atexit.register(finish)
