"""Every error is one sentence with a way on: checked where it is raised, and as a person meets it."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

import reprobox.cli.choice
from reprobox import errors
from reprobox.cli.app import run_app
from reprobox.errors import EngineError, ReproboxError

ROOT = Path(__file__).parents[2]
CLASSES = {
    name: kind
    for name in errors.__all__
    if inspect.isclass(kind := getattr(errors, name)) and issubclass(kind, ReproboxError)
}
LOCAL = {"NoSuchThing"}
"""Kinds of a single module: caught by its callers."""

_SAYS = "the engine's own sentence is all that is known; --debug shows its answer"
_TOLD = "the tail of the log is its detail, and says what failed"
WITHOUT_REMEDY = {
    ("engines/connection.py", "_explained(error, doing)"): _SAYS,
    ("engines/connection.py", "the engine could not {} ({})"): _SAYS,
    ("engines/digests.py", "the engine's archive of the image cannot be read"): _SAYS,
    ("engines/builders.py", "the engine refused the build"): _SAYS,
    ("images/archive.py", "the engine's archive of the image cannot be read"): _SAYS,
    ("images/base.py", "the base {} cannot be looked into: /bin/sh exits {}"): _TOLD,
    ("box/entrypoint.py", "the command {} cannot be executed ({})"): "the reason in brackets is the system's own",
    ("engines/local.py", "the command has not been started"): "a mistake of reprobox's own: no user meets it",
    ("engines/fake.py", "the fake was told to fail at {}"): "for tests alone",
}
"""Where nothing can be advised: module and message, with the reason."""

NAMES = re.compile(
    r"BuildKit|Docker|Podman|NVML|NVIDIA|GPU|CUDA|TOML|UTF|PyTorch|REPROBOX_|DOCKER_|XDG_|HOME|Ctrl|WORLD_SIZE|Python"
)
"""Names that are written with a capital."""


def text_of(node):
    """The constant text of an argument, with ``{}`` for what is filled in; None for an expression that holds none."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = text_of(node.left), text_of(node.right)
        return None if left is None and right is None else (left or "{}") + (right or "{}")
    return None


def sites(source, file="x.py"):
    """Every place that makes an error: where, its message and its remedy as source, and its keywords."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in CLASSES.keys() | LOCAL:
            keywords = {keyword.arg: keyword.value for keyword in node.keywords}
            yield file, node.lineno, name, node.args[0] if node.args else keywords.get("message"), keywords


def every_site():
    for path in sorted((ROOT / "reprobox").rglob("*.py")):
        file = path.relative_to(ROOT / "reprobox").as_posix()
        if not file.startswith("_image/"):
            yield from sites(path.read_text(encoding="utf-8"), file)


def named(message):
    return text_of(message) or ast.unparse(message)


def without_remedy(found):
    """The sites that advise nothing, by module and message. A remedy that is passed on counts; ``None`` does not."""
    return {
        (file, named(message))
        for file, _, _, message, keywords in found
        if None not in keywords and ast.unparse(keywords.get("remedy", ast.Constant(None))) == "None"
    }


def badly_put(found):
    """The messages and remedies that are not the inside of a sentence: a full stop, a capital, an edge of white space."""
    for file, line, _, message, keywords in found:
        for node in (message, keywords.get("remedy")):
            text = text_of(node) if node is not None else None
            if text is None:
                continue
            stopped = text.endswith(".") and not text.endswith("reprobox.")
            capital = text[:1].isupper() and not NAMES.match(text)
            if stopped or capital or text != text.strip() or not text or "\n" in text:
                yield f"{file}:{line}: {text!r}"


def test_the_walk_finds_the_sites():
    found = list(every_site())
    assert len(found) > 100
    assert {name for _, _, name, _, _ in found} >= CLASSES.keys() - {"ReproboxError", "BoxError", "RecordError"}


def test_the_walk_would_find_a_site_without_a_remedy_and_a_bad_sentence():
    source = 'raise UsageError(f"No {x}.")\nraise errors.BoxError("a", remedy=None)\nraise GpuError("b", remedy="c")\n'
    found = list(sites(source))
    assert without_remedy(found) == {("x.py", "No {}."), ("x.py", "a")}
    assert len(list(badly_put(found))) == 1


def test_every_error_that_is_raised_says_what_to_do():
    assert without_remedy(every_site()) == WITHOUT_REMEDY.keys()


def test_every_message_is_the_inside_of_a_sentence():
    assert list(badly_put(every_site())) == []


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_is_documented_with_its_exit_code(name):
    # The generated table is test_docs.py's; the tree at the head of the module is written by hand.
    tree = re.findall(r"^[\s│├└─]*(\w+) +(\d+)  ", errors.__doc__, re.MULTILINE)
    assert dict(tree)[name] == str(CLASSES[name].exit_code)
    assert len(tree) == len(CLASSES)
    page = (ROOT / "docs" / "reference" / "exit-codes.md").read_text(encoding="utf-8")
    assert re.search(rf"^\| {CLASSES[name].exit_code} \|", page, re.MULTILINE), "the code is in the page's first table"
    assert re.search(rf"^\| `{name}` \| [^|]+ \| {CLASSES[name].exit_code} \|", page, re.MULTILINE)


@pytest.fixture
def failing(tmp_path, monkeypatch):
    """Make the next ``run`` fail with an error of ours choosing."""
    monkeypatch.chdir(tmp_path)

    def arrange(error):
        def fail():
            raise error

        monkeypatch.setattr(reprobox.cli.choice, "take_inventory", fail)

    return arrange


@pytest.mark.parametrize("kind", CLASSES.values(), ids=CLASSES)
def test_a_failure_is_its_sentence_and_its_code_and_debug_adds_to_them(failing, capfd, kind):
    failing(kind("it did not work", remedy="do it again", detail="the engine: no\nand why\n"))
    sentence = "reprobox: it did not work; do it again\n"
    assert run_app(["run", "true"]) == kind.exit_code
    assert capfd.readouterr() == ("", sentence)
    assert run_app(["--debug", "run", "true"]) == kind.exit_code
    out, err = capfd.readouterr()
    assert out == ""
    # Indented: no line of an engine's can be taken for one of ours.
    traceback, detail, last = err.partition("  the engine: no\n  and why\n")
    assert traceback.startswith("Traceback (most recent call last):\n")
    assert detail
    assert last == sentence


@pytest.mark.parametrize("detail", [None, ""])
def test_debug_without_an_answer_of_the_engine_shows_the_traceback_alone(failing, capfd, detail):
    failing(EngineError("it did not work", detail=detail))
    assert run_app(["--debug", "run", "true"]) == 125
    *before, last = capfd.readouterr().err.splitlines()
    assert before[-1].endswith("EngineError: it did not work")
    assert last == "reprobox: it did not work"


def test_debug_changes_nothing_of_a_wrong_command_line(failing, capfd):
    failing(EngineError("never reached"))
    assert run_app(["run", "--no-such-flag", "x"]) == 2
    without = capfd.readouterr().err
    assert run_app(["--debug", "run", "--no-such-flag", "x"]) == 2
    assert capfd.readouterr().err.endswith(without)


def test_debug_belongs_before_the_command(failing, capfd):
    failing(EngineError("never reached"))
    assert run_app(["run", "--debug", "true"]) == 2
    assert capfd.readouterr().err.count("\n") == 1


def test_a_message_over_several_lines_is_told_on_one(failing, capfd):
    failing(EngineError("it\n  did\r\nnot\twork", remedy="do it\nagain"))
    run_app(["run", "true"])
    assert capfd.readouterr().err == "reprobox: it did not work; do it again\n"
