"""Tell a self-test: a table in the job's summary, and an annotation for each case that differs.

    report.py DOCUMENT [CERTIFICATE [CASES]]

CERTIFICATE is the file it was compared with, and the file that annotations are shown in. CASES is not empty where only
some were run: the others are then not missed.
"""

import json
import os
import sys
from pathlib import Path


def main():
    document = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    certificate, chosen, *_ = (*sys.argv[2:], "", "")
    comparison = document.get("comparison")
    compared = {row["case"]: row for row in comparison["cases"]} if comparison else {}
    for failure in document["failures"]:
        annotate("error", "", failure)
    for name, row in compared.items():
        match row["agreement"]:
            case "differ":
                annotate("error", certificate, f"{name} differs from the certificate{by(row)}")
            case "close":
                annotate("warning", certificate, f"{name} is close to the certificate and not the same bits{by(row)}")
            case "only there" if not chosen:
                annotate("warning", certificate, f"{name} is in the certificate and was not run here")
    if any(row["agreement"] == "differ" for row in compared.values()):
        for name, (here, there) in comparison["fingerprint_differences"].items():
            annotate("notice", certificate, f"{name} is {short(here)} here and {short(there)} in the certificate")
    with Path(os.environ["GITHUB_STEP_SUMMARY"]).open("a", encoding="utf-8") as file:
        file.write("\n".join(summary(document, compared)) + "\n")


def summary(document, compared):
    differing = sum(row["agreement"] == "differ" for row in compared.values())
    verdict = "same bits" if document["passed"] else "not the same bits every time"
    if compared:
        verdict += f"; {differing} cases differ from the certificate" if differing else "; as in the certificate"
    yield from ("### reprobox self-test", "", f"{verdict}.", "")
    yield from ("| case | device | dtype | verdict | certificate | largest deviation |", "|---|---|---|---|---|---|")
    for case in document["cases"]:
        row = compared.get(f"{case['name']}[{case['dtype']}] {case['device']}", {})
        cells = [case["name"], case["device"], case["dtype"], case["verdict"], row.get("agreement", "-")]
        yield "| " + " | ".join(cell(one) for one in (*cells, row.get("largest_deviation") or "")) + " |"
    yield ""


def annotate(level, file, message):
    """Print a workflow command. Source: https://docs.github.com/actions/reference/workflow-commands-for-github-actions"""
    where = f"file={escaped(file, ':,')}," if file else ""
    print(f"::{level} {where}title=reprobox self-test::{escaped(message)}")


def escaped(text, further=""):
    for one in ("%", "\r", "\n", *further):
        text = text.replace(one, f"%{ord(one):02X}")
    return text


def by(row):
    return f" by up to {row['largest_deviation']}" if row["largest_deviation"] else ""


def short(value):
    return (value if isinstance(value, str) else json.dumps(value))[:200]


def cell(value):
    return " ".join(str(value).split()).replace("|", "\\|")


if __name__ == "__main__":
    main()
