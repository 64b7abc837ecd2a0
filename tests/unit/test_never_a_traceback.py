"""Whatever is typed, set, or written into a project: one sentence with a remedy, a documented code, and no traceback."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from support.nonsense.files import BAD_RECORDS, BAD_TOML, FOLDER, GOOD_TOML, PYPROJECT, REPORTS, UNREADABLE
from support.nonsense.strategies import cases
from support.nonsense.values import (
    BAD,
    DONE,
    ENVIRONMENT,
    JUNK,
    NAMES,
    OPEN,
    RUNS,
    RUNS_WORDS,
    SURROUNDINGS,
    SWITCHES,
    UNKNOWN,
    VALID,
)
from support.nonsense.world import INVENTORIES, Case, Workplace

from reprobox.cli.app import COMMANDS

EXAMPLES = 5000
GOOD_SHARE = 0.2
PROPERTY = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def workplace():
    # In memory where there is such a folder: five thousand projects are made and removed.
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(dir=place, prefix="never-") as folder:
        yield Workplace(Path(folder), patch)


# ----------------------------------------------------------------------------------------------------- what must hold

NOTES = re.compile(
    r"reprobox: (run 2\S+ (in|on this machine)|no seed was given, so|--gpus \d+ is GPU number|\S+ is not on this machine; pulling"
    r"|resolving the packages of |pulling |this machine has GPUs and only|no Docker answers; using|the output's log cannot|self-test skipped: )"
)
"""What may be said before a failure: it is no part of it."""

REMEDY = re.compile(r"; .+")


def tried(workplace, case):
    """How ``case`` went, and everything that is wrong with that: nothing, if all is well."""
    try:
        outcome = workplace.attempt(case)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return None, [f"{type(error).__name__} escaped: {error}"[:500]]
    return outcome, [*wrong(case, outcome), *unfinished(workplace)]


def wrong(case, outcome):
    err = outcome.err.decode(errors="replace")
    if "Traceback" in err:
        yield "a traceback"
    if "reprobox itself failed" in err:
        yield err[err.index("reprobox itself failed") :][:600]
        return
    if outcome.trespasses:
        yield f"wrote outside: {outcome.trespasses}"
    if outcome.code == 0 and case.refused:
        yield "took what it must refuse"
    started = bool(outcome.boxes) and "wait" in outcome.boxes[-1].events
    passed = {case.exit_code} if started else {7, 125} if case.arguments[:2] == ["runs", "wait"] else set()
    helped = not case.arguments or "-h" in case.arguments  # help is not a failure
    if outcome.code != 0 and outcome.code not in passed and not helped:
        yield from badly_told(case, outcome, err)


def badly_told(case, outcome, err):
    """What is wrong with how a failure is told."""
    if outcome.code not in (2, 125):
        yield f"ends with {outcome.code}"
    if outcome.out and not outcome.boxes and case.arguments[:2] != ["runs", "logs"]:
        yield f"a failure, and on stdout {outcome.out[:200]!r}"
    *before, last, rest = ["", *err.split("\n")]
    if rest or not last.startswith("reprobox: ") or any(line and not NOTES.match(line) for line in before):
        yield f"not one sentence: {err[:500]!r}"
    elif not REMEDY.search(last) and not last.startswith("reprobox: the fake was told to fail"):
        yield f"no remedy: {last}"[:500]
    if re.search(r"[\x00-\x09\x0b-\x1f\x7f]", err):
        yield f"a control character reaches the terminal: {err[:200]!r}"
    if "  " in err[:200] or err.endswith(".\n"):
        yield f"not a sentence as the others: {err[:200]!r}"


def unfinished(workplace):
    """What is wrong with what is left on the disk."""
    for folder in filter(Path.is_dir, workplace.left()):
        with contextlib.suppress(OSError, ValueError):
            if json.loads((folder / "manifest.json").read_text())["end"] is None:
                yield f"a record without an end: {folder.name}"
        if (folder / "box").exists():
            yield "the box's files are left"
        if not (folder / "manifest.json").exists():
            yield "a record without a manifest"
        left = [
            f"{home}/reprobox-{os.getuid()}-{folder.name}"
            for home in (f"/run/user/{os.getuid()}", "/run", tempfile.gettempdir())
        ]
        if any(map(os.path.exists, left)):
            yield "secrets are left"


# --------------------------------------------------------------------------------------------------- each thing alone


def run_with(*words, **fields):
    return Case(arguments=["run", *words, "train"], **fields)


def good_options():
    yield from (run_with(f"{NAMES[n][-1]}={text}") for n, texts in VALID.items() for text in texts)
    switches = [names[-1].split("/") for n, names in SWITCHES.items() if n not in ("tty", "json")]
    yield from (run_with(name) for names in switches for name in names)
    yield from (run_with(environment={n: text}) for n, (good, _) in ENVIRONMENT.items() for text in good)
    yield from (run_with(files={"reprobox.toml": data}) for data in GOOD_TOML)
    yield from (run_with(report=report, exit_code=3) for report in REPORTS)


def bad_options():
    options = [(name, f"{NAMES[name][-1]}={text}") for name, texts in BAD.items() for text in texts]
    yield from (run_with(word, refused=True) for _, word in options)
    # A NUL in --workdir is the image's affair, and no process can be given one.
    here = [word for name, word in options if name != "workdir"]
    yield from (run_with("--engine=local", word, refused=True) for word in here)
    yield from (run_with(flag, refused=True) for flag in UNKNOWN)
    yield from (run_with(environment={n: text}, refused=True) for n, (_, bad) in ENVIRONMENT.items() for text in bad)
    yield from (run_with(files={"reprobox.toml": data}, refused=True) for data in BAD_TOML)


def anything():
    """What may be accepted or refused."""
    yield from (run_with(f"{NAMES[n][-1]}={text}") for n in VALID for text in JUNK)
    yield from (Case(arguments=["run", text]) for text in JUNK)
    for tail in (["a\udcff"], ["[bold]"], ["\x1b"], ["-w", "\udcff", "x"]):
        yield Case(arguments=["run", "--engine=local", "--dry-run", *tail])
    for variable in ({name: text} for name, texts in SURROUNDINGS.items() for text in texts):
        for engine in ("fake", "real"):
            for inventory in INVENTORIES:
                yield run_with("-e", "HOST_TOKEN", environment=variable, engine=engine, inventory=inventory)
        for words in (["recipe"], ["runs"], ["build"], ["run", "--dry-run", "x"]):
            yield Case(arguments=words, environment=variable)
    for name in COMMANDS:
        yield from (Case(arguments=[name], files=files) for files in ({}, {"reprobox.toml": b""}))
    for data in (*PYPROJECT, *BAD_TOML, *UNREADABLE):
        for name in ("pyproject.toml", "reprobox.toml"):
            for words in (["run", "x"], ["recipe", "--json"], ["runs"]):
                yield Case(arguments=words, files={name: data})


def earlier_runs():
    """Records that were edited or damaged, and every command that reads them."""
    runs, record = ".reprobox/runs", f".reprobox/runs/{OPEN}"
    damaged = [
        *({f"{record}/manifest.json": data} for data in BAD_RECORDS),
        {f"{runs}/{OPEN[:-1]}1": b"a file"},
        *({f"{record}/stdout.log{end}": b"\xff"} for end in ("", ".5", ".²", ".x")),
        *({f"{record}/lock": b"\xff"}, {f"{record}/box": FOLDER}, {f"{record}/stage": b"\xff"}),
    ]
    more = [["list", "--json"], ["show", "--json"], ["wait", "--json"], ["logs", "-f"], ["rm", "-f", "last"]]
    for files in damaged:
        yield from (Case(arguments=["runs", *words], files=files) for words in ([], *([name] for name in RUNS), *more))
    yield from (Case(arguments=["runs", name, text]) for name in RUNS for text in RUNS_WORDS)
    yield Case(arguments=["runs", "rm", DONE, DONE])


def shown(case):
    return {k: (str(v)[:300] if k != "inventory" else len(v.gpus)) for k, v in vars(case).items() if v}


def together(workplace, cases, *, reaching=False):
    found = {}
    for case in cases:
        outcome, problems = tried(workplace, case)
        if reaching and not problems and not (outcome.boxes or "--dry-run" in case.arguments):
            problems = ["did not reach the engine", outcome.err.decode(errors="replace")]
        if problems:
            found[str(shown(case))] = problems
    return found


@pytest.mark.parametrize("cases", [bad_options, anything, earlier_runs], ids=lambda cases: cases.__name__)
def test_each_thing_alone_ends_in_one_sentence(workplace, cases):
    assert together(workplace, cases()) == {}


def test_each_good_thing_alone_reaches_the_engine(workplace):
    assert together(workplace, good_options(), reaching=True) == {}


def test_every_option_with_a_value_is_tried():
    assert VALID.keys() == BAD.keys() == NAMES.keys()


# ------------------------------------------------------------------------------------------------ many things at once


@settings(PROPERTY, max_examples=EXAMPLES)
@given(case=cases())
def test_whatever_is_given_it_ends_in_one_sentence(workplace, case):
    _, problems = tried(workplace, case)
    assert not problems, shown(case)


def test_a_good_share_of_the_examples_reaches_the_engine(workplace):
    reached = []

    @settings(PROPERTY, max_examples=EXAMPLES // 10)
    @given(case=cases())
    def look(case):
        outcome, _ = tried(workplace, case)
        reached.append(bool(outcome and outcome.boxes))

    look()
    assert sum(reached) / len(reached) > GOOD_SHARE
