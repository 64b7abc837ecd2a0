"""How attempts are made up: half of them of good values alone, the others wild."""

from __future__ import annotations

from hypothesis import strategies as st

from reprobox.cli.app import COMMANDS
from support.nonsense.files import BAD_RECORDS, BAD_TOML, GOOD_TOML, PYPROJECT, REPORTS, UNREADABLE
from support.nonsense.values import (
    BAD,
    BUILD,
    ENVIRONMENT,
    GPUS_OF_A_MACHINE,
    JUNK,
    MANY,
    NAMES,
    OPEN,
    RECIPE,
    RUNS,
    RUNS_WORDS,
    SURROUNDINGS,
    SWITCHES,
    UNKNOWN,
    VALID,
)
from support.nonsense.world import INVENTORIES, Case

_BUNDLED = ["-qi", "-itq", "-dq", "-t", "-qt", "-ie", "-v", "--seed", "--env", "--json", "-dti"]
_TAILS = [["train"], ["train"], ["t", "--seed", "x", ""], ["--", "-x"]]


def some(draw, values, most):
    return draw(st.lists(st.sampled_from(values), max_size=most))


def one(draw, values):
    return draw(st.sampled_from(values))


def mutated(draw, values):
    """One of ``values`` with something done to it."""
    text = one(draw, values) if values else ""
    junk = one(draw, JUNK)
    cut = draw(st.integers(0, len(text))) if len(text) < 50 else 0
    changed = [junk, text + junk, junk + text, text[:cut] + junk + text[cut:], text[:cut], text * 2, text.upper()]
    return one(draw, changed)


def option(draw, wild):
    """One option as words, whether it must be refused, and which it is."""
    kind = draw(st.integers(0, 19 if wild else 15))
    if kind < 4:
        name = one(draw, [n for n in SWITCHES if n != "tty"])
        return [one(draw, SWITCHES[name][-1].split("/"))], None, name
    if kind == 19:
        word = one(draw, UNKNOWN)
        return [word, *one(draw, [[], ["x"]])], None, word
    name = one(draw, [known for known in NAMES if wild or VALID[known]])
    if VALID[name] and (not wild or kind < 12):
        text, bad = one(draw, VALID[name]), False
    elif kind < 16 or not VALID[name]:
        text = one(draw, BAD[name])
        bad = None if text in GPUS_OF_A_MACHINE else True
    else:
        text, bad = mutated(draw, VALID[name]), None
    typed = one(draw, NAMES[name])
    joined = f"{typed}={text}" if typed.startswith("--") else f"{typed}{text}"
    if joined == typed or (not typed.startswith("--") and text.startswith("=")):
        return [typed, text], bad, name
    return ([joined] if draw(st.booleans()) else [typed, text]), bad, name


def run_words(draw, wild):
    """Options of ``run``, and for each whether it must be refused."""
    verdicts, words = {}, []
    for _ in range(draw(st.integers(0, 4))):
        more, bad, name = option(draw, wild)
        words += more
        verdicts[name] = (name in MANY and verdicts.get(name)) or bad
    if wild and draw(st.integers(0, 9)) == 0:
        words.append(one(draw, _BUNDLED))
        verdicts.setdefault("quiet", None)
    return words, verdicts


@st.composite
def cases(draw):
    wild = draw(st.booleans())
    kind = draw(st.integers(0, 99))
    verdicts = {}
    if kind < 78:
        name = "run" if kind < 70 else "shell"
        words, verdicts = run_words(draw, wild)
        tail = one(draw, _TAILS) if name == "run" else []
        if wild and draw(st.integers(0, 4)) == 0:
            tail = some(draw, JUNK, 3)
        arguments = [name, *words, *tail]
        if any(word.startswith("-h") or word == "--help" for word in words):
            verdicts = {}
    elif kind < 90:
        words = some(draw, RUNS_WORDS, 3)
        arguments = ["runs", *one(draw, [[], *([name] for name in RUNS)]), *words]
    elif kind < 97:
        name, table = one(draw, [("build", BUILD), ("recipe", RECIPE)])
        arguments = [name, *some(draw, [*table, *table, *JUNK], 4)]
    else:
        arguments = some(draw, [*COMMANDS, "--help", "--version", "rnu", *JUNK], 3)
    case = Case(arguments=arguments)
    bad = [*verdicts.values(), *set_variables(draw, case, wild, verdicts)]
    write_files(draw, case, wild)
    case.below = draw(st.booleans())
    case.inventory = one(draw, INVENTORIES)
    case.exit_code = one(draw, [0, 0, 3, 125, 255])
    case.report = one(draw, [None, *REPORTS])
    if wild:
        case.engine = one(draw, ["fake", "fake", "fake", "fake", "real"])
        case.fail_at = one(draw, [*[None] * 8, "create", "attach", "start", "stream", "wait"])
    # A setting that was refused is refused for `run` and `shell`; the other commands need none of them.
    case.refused = case.arguments[:1] in (["run"], ["shell"]) and True in bad
    return case


def set_variables(draw, case, wild, verdicts):
    """Set up to two variables; the answer is, for each that is a setting and wrong, whether it must be refused."""
    bad = {}
    for _ in range(draw(st.integers(0, 2))):
        name = one(draw, [*ENVIRONMENT, *SURROUNDINGS, *SURROUNDINGS])
        bad.pop(name, None)
        if name in SURROUNDINGS:
            case.environment[name] = one(draw, SURROUNDINGS[name])
            continue
        good, wrong = ENVIRONMENT[name]
        if good and not (wild and draw(st.booleans())):
            case.environment[name] = one(draw, good)
        else:
            case.environment[name] = text = one(draw, wrong)
            setting = name.removeprefix("REPROBOX_").lower()
            bad[name] = not (good and setting in verdicts) and text not in GPUS_OF_A_MACHINE
    return bad.values()


def write_files(draw, case, wild):
    kind = draw(st.integers(0, 9))
    if kind == 0:
        case.files["reprobox.toml"] = one(draw, GOOD_TOML)
    elif kind == 1 and wild:
        case.files["reprobox.toml"] = one(draw, [*BAD_TOML, *UNREADABLE])
    elif kind == 2:
        case.files["pyproject.toml"] = one(draw, [*PYPROJECT, *UNREADABLE])
    elif kind == 3:
        case.files[f".reprobox/runs/{OPEN}/manifest.json"] = one(draw, BAD_RECORDS)
    elif kind == 4 and draw(st.booleans()):
        case.files[f".reprobox/runs/{OPEN[:-1]}1"] = b"a file"
