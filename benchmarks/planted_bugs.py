r"""How blind the tests are: plausible bugs of one line, planted one at a time, and the tests that should see them.

Run with `python -m benchmarks.planted_bugs --out results/planted_bugs.jsonl`. The bugs are in planted_bugs.toml beside this file.
For every one the project is copied, one line of the copy is changed, and the named test files run until one fails. Results are
appended to the file as they come: a run that was cut off goes on where it stopped, and `--again` runs those once more that nothing
has caught yet. `--check` runs nothing and only says whether every line still stands exactly once where the table has it.

A bug must be wrong, and not merely slower or in other words: what it changes is a law, an estimate, an error or a use of
randomness. The kinds:

- exactness: a chain or a proposal that no longer has the law it claims;
- structure: what depends on x, and how, read wrongly;
- guide: what moves particles is wrong, and weights repair it;
- power: r to a power that is another;
- reported: a number that is reported and is another;
- randomness: noise that is shared where it must be fresh;
- value: a wrong formula.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = (".git", ".venv", "results", "images", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis")


class Bug(NamedTuple):
    """A bug of one line.

    Attributes:
        file: Where, under nedm_ppl.
        line: A part of the line as it stands, found once in the file.
        bug: The same part with the bug.
        tests: Names of the test files that should see it, without `test_` and `.py`, separated by spaces.
        kind: One word; see above.
    """

    file: str
    line: str
    bug: str
    tests: str
    kind: str


BUGS = tuple(Bug(**entry) for entry in tomllib.loads(Path(__file__).with_suffix(".toml").read_text())["bug"])


def main() -> None:
    """Plant every bug that has not been run yet, and print what became of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file of results, one JSON object a line")
    parser.add_argument("--check", action="store_true", help="only see whether every line stands exactly once")
    parser.add_argument("--again", action="store_true", help="run those once more that nothing has caught")
    parser.add_argument("--markdown", type=Path, help="also write the table of what has run to this file")
    parser.add_argument("--only", default="", help="those whose file, line or kind holds this")
    parser.add_argument("--time-limit", type=float, default=600.0, help="seconds for the tests of one bug")
    options = parser.parse_args()
    missing = [(bug, count) for bug in BUGS if (count := source(bug).count(bug.line)) != 1]
    for bug, count in missing:
        print(f"{bug.file}: found {count} times, must be once: {bug.line}")
    if options.check or missing:
        sys.exit(f"{len(BUGS)} bugs, {len(missing)} of them without a place")
    if options.out is None:
        parser.error("--out must name the file of results")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for bug in BUGS:
        done = results(options.out).get(key_of(bug))
        if options.only not in f"{bug.file} {bug.line} {bug.kind}":
            continue
        if done is not None and not (options.again and done["outcome"] != "caught"):
            continue
        entry = {**bug._asdict(), **run(bug, options.time_limit)}
        with options.out.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        print(f"{entry['outcome']:>9} {entry['seconds']:6.1f} s  {bug.file}: {bug.bug}  {entry['test']}", flush=True)
    report(results(options.out))
    if options.markdown is not None:
        options.markdown.write_text(markdown(results(options.out)))


def source(bug: Bug) -> str:
    """The file as it stands."""
    return (ROOT / "nedm_ppl" / bug.file).read_text()


def key_of(bug: Bug) -> tuple[str, str, str]:
    """What a bug is known by."""
    return bug.file, bug.line, bug.bug


def results(path: Path) -> dict[tuple[str, str, str], dict]:
    """The last result of every bug that has been run."""
    lines = path.read_text().splitlines() if path.exists() else []
    entries = [json.loads(line) for line in lines]
    return {(entry["file"], entry["line"], entry["bug"]): entry for entry in entries}


def run(bug: Bug, time_limit: float) -> dict:
    """The outcome of a bug's tests: caught and by which test, survived, timed out, or not run where no test was found."""
    tests = [f"tests/test_{name}.py" for name in bug.tests.split()]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "project"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*LEFT_OUT))
        (copy / "nedm_ppl" / bug.file).write_text(source(bug).replace(bug.line, bug.bug))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
        environment = os.environ | {"PYTHONPATH": str(copy)}
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=copy,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=time_limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return {"outcome": "timed out", "test": "", "seconds": time.perf_counter() - start}
    failed = [line.split(" ")[1] for line in output.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    outcome = "survived" if process.returncode == 0 else "caught" if failed else "not run"
    return {"outcome": outcome, "test": failed[0] if failed else "", "seconds": time.perf_counter() - start}


def report(entries: dict[tuple[str, str, str], dict]) -> None:
    """Print the table and the share that was caught."""
    table = Table("file", "bug", "kind", "outcome", "test")
    done = [entries[key_of(bug)] for bug in BUGS if key_of(bug) in entries]
    for entry in done:
        table.add_row(entry["file"], entry["bug"], entry["kind"], entry["outcome"], entry["test"])
    Console(width=200).print(table)
    counts = Counter(entry["outcome"] for entry in done)
    caught = counts["caught"]
    print(f"{len(done)} of {len(BUGS)} bugs run: {dict(counts)}; caught {100.0 * caught / max(1, len(done)):.0f} %")


def markdown(entries: dict[tuple[str, str, str], dict]) -> str:
    """Rows of a table: where, what stands there, the bug, its kind, and the test that caught it."""

    def code(text: str) -> str:
        return "`" + text.replace("|", "\\|") + "`"

    rows = ["| file | line | bug | kind | caught by |", "|---|---|---|---|---|"]
    for bug in BUGS:
        entry = entries.get(key_of(bug))
        found = "not run" if entry is None else entry["test"].split("::")[-1] or entry["outcome"]
        rows.append(f"| {bug.file} | {code(bug.line)} | {code(bug.bug)} | {bug.kind} | {found.replace('|', ' ')} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    main()
