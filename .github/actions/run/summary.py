"""Write what a run ran on, from its manifest on standard input, to the job's summary, and its id to the outputs."""

import json
import os
import sys
from pathlib import Path


def main():
    manifest = json.load(sys.stdin)
    run_id = manifest["id"]
    path = Path(manifest["project"], ".reprobox", "runs", run_id, "manifest.json")
    append("GITHUB_OUTPUT", [f"run-id={run_id}", f"manifest={path}"])
    lines = ["### reprobox run", "", "| what | value |", "|---|---|"]
    lines += [f"| {name} | {cell(value)} |" for name, value in rows(manifest)]
    append("GITHUB_STEP_SUMMARY", [*lines, ""])


def rows(manifest):
    recipe, image, git = manifest["recipe"], manifest["image"] or {}, manifest["git"] or {}
    yield "run", manifest["id"]
    yield "command", " ".join(manifest["command"])
    yield "image", image.get("reference") or "none (local engine)"
    yield "image id", image.get("image_id") or "-"
    yield "seed", f"{recipe['seed']}{' (drawn)' if recipe.get('seed_was_drawn') else ''}"
    yield "profile, threads", f"{recipe['profile']}, {manifest['threads']}"
    yield "GPUs", ", ".join(one["name"] for one in manifest["gpus"]["devices"]) or "none"
    yield "commit", f"{git.get('commit') or '-'}{' (changed)' if git.get('dirty') else ''}"
    yield "outcome", f"{manifest['outcome']}, exit code {manifest['exit_code']}"
    if receipt := manifest["receipt"]:
        changed = ", ".join(receipt["events"]) or "nothing"
        yield (
            "receipt",
            f"processes seeded: {receipt['processes']}, changed: {changed}, escaped: {len(receipt['escaped'])}",
        )


def cell(value):
    """A value as code inside a cell of a Markdown table, where bars and backticks would end it."""
    text = " ".join(str(value).split()).replace("|", "\\|").replace("`", "'")
    return f"`{text[:500]}`"


def append(variable, lines):
    with Path(os.environ[variable]).open("a", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
