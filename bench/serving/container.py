"""The steps of Dockerfile without Docker: an empty environment, the files that it copies, its entry
point, and a question to the server. Needs the package index, or uv's cache of it.

python -m bench.serving.container                # an export of random weights
python -m bench.serving.container --export models/students/feed/distilled/export
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.serving.latency import made_export

DOCKERFILE = Path("Dockerfile")
MEBI = 1 << 20


def steps(text: str) -> list[tuple[str, str]]:
    """Instruction and arguments of each line; comments are left out."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines]


def copy(arguments: str, export: Path, root: Path) -> None:
    """What COPY does."""
    *sources, target = shlex.split(arguments)
    for source in sources:
        path = export if source == "${EXPORT}" else Path(source)
        if path.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(path, root / target, ignore=ignored)
        else:
            place = root / target / path.name if target.endswith("/") else root / target
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)


def build(export: Path, root: Path, environment: Path) -> list[str]:
    """Take the steps that fill the image; the entry point's command."""
    uv = [shutil.which("uv") or ".venv/bin/uv"]
    subprocess.run([*uv, "venv", "--quiet", "--python", "3.11", environment], check=True)
    command: list[str] = []
    for name, arguments in steps(DOCKERFILE.read_text()):
        if name == "COPY":
            copy(arguments, export, root)
        elif name == "RUN" and arguments.startswith("pip install "):
            options = [one for one in shlex.split(arguments)[2:] if one != "--no-cache-dir"]
            python = ["--python", str(environment / "bin/python")]
            install = [*map(os.path.abspath, uv), "pip", "install", "--quiet", *python, *options]
            subprocess.run(install, check=True, cwd=root)
        elif name == "ENTRYPOINT":
            command = json.loads(arguments)
    return [str(environment / "bin" / command[0]), *command[1:]]


def size(folder: Path) -> float:
    """MiB of a folder's files."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file()) / MEBI


def ask(command: list[str], root: Path, row_source: Path) -> tuple[float, dict]:
    """Start the entry point and predict a row of the log: seconds to the answer, and the answer."""
    began = time.perf_counter()
    clean = {"PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen(
        [*command, "--port", "0"], cwd=root, env=clean, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split("on http://")[1].split()[0]
            port = address.split(":")[1]
            rows = json.loads((row_source / "encoder.json").read_text())["examples"][:1]
            body = json.dumps({"rows": rows}).encode()
            asked = urllib.request.Request(f"http://127.0.0.1:{port}/predict", body)
            with urllib.request.urlopen(asked) as answer:
                return time.perf_counter() - began, json.loads(answer.read())
        finally:
            server.terminate()


def main() -> None:
    """Build, ask, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--export", type=Path, help="a student's; else one of random weights")
    options = parser.parse_args()
    with TemporaryDirectory() as name:
        scratch = Path(name)
        export = options.export or scratch / "export"
        if options.export is None:
            made_export(export)
        root, environment = scratch / "app", scratch / "environment"
        root.mkdir()
        command = build(export.absolute(), root, environment)
        seconds, answer = ask(command, root, export)
        print(f"environment {size(environment):.0f} MiB, files {size(root):.1f} MiB")
        print(f"first answer after {seconds:.1f} s: {answer}")


if __name__ == "__main__":
    main()
