"""The documentation keeps step with the code: generated tables, links, and every option of every command."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from dataclasses import asdict, fields
from pathlib import Path

import pytest
import typer

from reprobox.cli.app import COMMANDS, app
from reprobox.cli.recipe import knobs
from reprobox.engines import EngineInfo, EngineName
from reprobox.gpus import Gpu, GpuProcess, Inventory, MigInstance
from reprobox.gpus.claims import Holder
from reprobox.images import BuildResult
from reprobox.knobs import KNOBS
from reprobox.project import Project
from reprobox.recipe import VARIABLES, Recipe
from reprobox.runs.gpu_overview import Overview
from reprobox.runs.manifest import first_manifest
from reprobox.runs.plan import RunRequest, make_plan
from reprobox.runs.receipts import read_receipts
from reprobox.settings import SETTINGS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [
    *sorted(DOCS.rglob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")),
]
FLAG = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def generator():
    return load(DOCS / "generate_reference.py")


@pytest.mark.parametrize("name", ["knobs", "errors", "refused", "project", "engines"])
def test_a_generated_table_is_in_step_with_the_code(generator, name):
    present, wanted = generator.page_with(name)
    assert present == wanted, "run python docs/generate_reference.py --write"


def test_a_knob_that_changes_makes_the_page_stale(generator, monkeypatch):
    monkeypatch.setattr(generator, "KNOBS", KNOBS[1:])
    present, wanted = generator.page_with("knobs")
    assert present != wanted
    monkeypatch.setattr("sys.argv", ["generate_reference.py", "--check"])
    assert generator.main() == 1


def test_an_engine_that_is_newly_recorded_makes_the_page_stale(generator, monkeypatch, tmp_path):
    row = {"engine": "docker", "version": "99.1", "store": "overlay2", "builders": ["classic"], "cases": {"run": 7}}
    (tmp_path / "engines.json").write_text(json.dumps({"engines": [row]}))
    monkeypatch.setattr(generator, "REFERENCE", tmp_path)
    present, wanted = generator.page_with("engines")
    assert present != wanted
    assert "| Docker 99.1 | overlay2 | classic | - | - | 7 | - | - | - |" in wanted


def anchors(page):
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page, text):
    found = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            found.append(target)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page):
    assert broken_links(page, page.read_text()) == []


def test_a_link_to_nothing_is_found():
    text = "[a](no-such.md) [b](index.md#no-such-heading) [c](index.md#guides) [d](https://example.org/x)"
    assert broken_links(DOCS / "index.md", text) == ["no-such.md", "index.md#no-such-heading"]


def test_every_page_is_reached_from_the_index():
    seen, waiting = set(), [DOCS / "index.md"]
    while waiting:
        page = waiting.pop()
        seen.add(page)
        targets = (t.partition("#")[0] for t in re.findall(r"\]\(([^)\s]+\.md[^)\s]*)\)", page.read_text()))
        waiting += [p for t in targets if "://" not in t and (p := (page.parent / t).resolve()) not in seen]
    assert set(DOCS.rglob("*.md")) <= seen


def options(command):
    """Every option of a command and of the commands under it."""
    found = {o for p in command.params if p.param_type_name == "option" for o in (*p.opts, *p.secondary_opts)}
    for child in getattr(command, "commands", {}).values():
        found |= options(child)
    return found | {"-h", "--help"}


def section(name):
    """The text of ``docs/reference/cli.md`` about one command, or about the program itself for an empty name."""
    sections = re.split(r"^## ", (DOCS / "reference" / "cli.md").read_text(), flags=re.MULTILINE)
    return sections[0] if not name else next(s for s in sections[1:] if s.splitlines()[0] == f"reprobox {name}")


def documented(name):
    """The options in the tables of a command's section, and those of another command that it is said to take."""
    text = section(name)
    rows = re.findall(r"^\| (`-[^|]*)\|", text, re.MULTILINE)
    found = {flag for row in rows for flag in FLAG.findall(row)}
    if taken := re.search(r"^Takes the options of \[`(\w+)`\]\(\S+\) except ([^.]+)\.$", text, re.MULTILINE):
        found |= documented(taken[1]) - set(FLAG.findall(taken[2]))
    return found


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_the_reference_lists_exactly_the_options_there_are(name):
    root = typer.main.get_command(app)
    command = root.get_command(None, name) if name else root
    assert documented(name) == options(command)


def test_every_variable_and_setting_is_in_the_reference():
    page = (DOCS / "reference" / "environment.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("|")]
    host = "\n".join(row for row in rows if row.count("|") == 5)
    box = "\n".join(row for row in rows if row.count("|") == 4)
    for setting in SETTINGS:
        assert f"`{setting.variable}`" in host
        assert f"`{setting.name.replace('_', '-')}`" in host
    assert set(re.findall(r"^\| `(REPROBOX_\w+)`", box, re.MULTILINE)) == set(VARIABLES)


def fields_of(schema, inside=""):
    """The fields that ``docs/reference/files.md`` lists for a schema: the top-level ones, or those of one of them."""
    text = (DOCS / "reference" / "files.md").read_text().split(f"## `{schema}`")[1].split("\n## ")[0]
    table = text.split("\n| outcome | meaning |")[0].split("### The ledger")[0]
    cells = re.findall(r"^\| (`[^|]*)\|", table, re.MULTILINE)
    return {name for cell in cells for name in re.findall(rf"`{re.escape(inside)}(\w+)`", cell)}


def test_the_reference_names_the_fields_of_a_plan_a_manifest_and_a_result(tmp_path):
    project = Project(root=tmp_path, directory=tmp_path)
    request = RunRequest(command=("true",), recipe=Recipe(seed=1), engine=EngineName.LOCAL, project=project)
    plan = make_plan(request, "id", tmp_path / "run", None)
    manifest = first_manifest(plan, EngineInfo(name="local", version="0"), Inventory())
    assert fields_of("reprobox.plan/1") == (plan.to_json().keys() - {"schema"}) | {"knobs"}
    assert fields_of("reprobox.manifest/1") == manifest.keys() | {"out_of_memory"}
    assert fields_of("reprobox.build/1") == {field.name for field in fields(BuildResult)}


def test_the_reference_names_the_fields_of_a_gpu_and_of_its_instances_and_users():
    gpu = Gpu(
        index=0, uuid="GPU-0", name="a GPU", mig=True, mig_instances=(MigInstance(uuid="MIG-0", profile="1g.5gb"),)
    )
    holder = Holder(run="a", gpus=("MIG-0",))
    document = Overview.of(Inventory(gpus=(gpu,)), (holder,), {}).to_json()
    (told,) = document["gpus"]
    assert fields_of("reprobox.gpus/1") == document.keys() | told.keys()
    rows = (DOCS / "reference" / "files.md").read_text().split("## `reprobox.gpus/1`")[1].split("\n## ")[0].splitlines()
    for field, inner in (
        ("claims", told["claims"][0]),
        ("mig_instances", told["mig_instances"][0]),
        ("processes", asdict(GpuProcess(pid=1, kind="compute"))),
    ):
        (meaning,) = (row.split("|")[2] for row in rows if row.startswith("|") and f"`{field}`" in row.split("|")[1])
        assert inner.keys() <= set(re.findall(r"`(\w+)`", meaning))


def test_the_reference_names_the_fields_of_the_recipe():
    (knob, *_) = knobs(Recipe(seed=1))
    section = (DOCS / "reference" / "files.md").read_text().split("## `reprobox.recipe/1`")[1].split("\n## ")[0]
    row = next(line for line in section.splitlines() if line.startswith("| `knobs`"))
    assert fields_of("reprobox.recipe/1") == {"schema", *Recipe().to_json(), "knobs", "words"}
    assert knob.keys() <= set(re.findall(r"`(\w+)`", row))


def test_the_reference_names_the_fields_of_a_receipt(tmp_path):
    tree = ast.parse((ROOT / "reprobox" / "box" / "receipt.py").read_text())
    calls = [
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "_state.update"
    ]
    written = {keyword.arg for call in calls for keyword in call.keywords if keyword.arg}
    assert fields_of("reprobox.receipt/1") == written | {"events"}
    assert fields_of("reprobox.manifest/1", "receipt.") == read_receipts(tmp_path).to_json().keys()


def test_the_page_of_the_receipt_explains_every_kind_of_event():
    code = "".join(path.read_text() for path in (ROOT / "reprobox" / "box").glob("*.py"))
    kinds = set(re.findall(r"\bnote\(\s*\"([a-z-]+)\"", code))
    page = (DOCS / "concepts" / "receipt.md").read_text().split("## Events")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `([a-z-]+)` \|", page, re.MULTILINE)) == kinds
