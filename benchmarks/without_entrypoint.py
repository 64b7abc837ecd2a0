"""What it costs that Python makes the recipe itself, where no entrypoint did: wall time of ``python -c pass`` in the image.

Each way takes turns with the others in one container, which another entrypoint keeps alive; minimum over the rounds.

    python benchmarks/without_entrypoint.py --json without_entrypoint.json
"""

import json
import subprocess

from reporting import circumstances, parse_rounds, write_json

from reprobox.images import local_tag

WAYS = {
    "the recipe is there already": {"REPROBOX_SEED": "7", "_REPROBOX_RECIPE": "seed=7 profile=strict"},
    "nothing is asked for": {},
    "made here, the hash seed fits": {"REPROBOX_SEED": "0"},
    "made here, and started again": {"REPROBOX_SEED": "7"},
}

MEASURE = """
import json, os, sys, time
ways, rounds = json.loads(sys.argv[1]), int(sys.argv[2])
best = dict.fromkeys(ways, 9.0)
for _ in range(rounds):
    for name, given in ways.items():
        environment = {**os.environ, **given}
        began = time.perf_counter()
        os.waitpid(os.posix_spawn("/opt/venv/bin/python", ["python", "-c", "pass"], environment), 0)
        best[name] = min(best[name], time.perf_counter() - began)
print(json.dumps(best))
"""


def measured(rounds: int) -> dict[str, float]:
    """Seconds of each way."""
    outside = ["docker", "run", "--rm", "--network=none", "--entrypoint=/usr/bin/python3", local_tag("cpu")]
    inside = ["-IS", "-c", MEASURE, json.dumps(WAYS), str(rounds)]
    answer = subprocess.run([*outside, *inside], check=True, capture_output=True, text=True).stdout
    return {name: float(seconds) for name, seconds in json.loads(answer).items()}


def main() -> None:
    """Measure, print a table and write the report."""
    args = parse_rounds(__doc__ or "")
    seconds = measured(args.rounds)
    base = seconds["the recipe is there already"]
    rows = [{"way": way, "seconds": value, "added_seconds": value - base} for way, value in seconds.items()]
    for row in rows:
        print(f"{row['way']:32} {row['seconds'] * 1000:6.1f} ms  {row['added_seconds'] * 1000:+6.1f} ms")
    if args.json:
        write_json(args.json, {**circumstances("without_entrypoint"), "rounds": args.rounds, "rows": rows})


if __name__ == "__main__":
    main()
