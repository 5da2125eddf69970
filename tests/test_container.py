"""What Dockerfile installs and copies is enough for the server, and is what the project is tested
with."""

import re
import subprocess
import sys
from pathlib import Path

from tests.support.projects import ROOT

PIN = re.compile(r"^([a-z0-9-]+)==(\S+)", re.MULTILINE)
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def pins(name: str) -> dict[str, str]:
    return dict(PIN.findall((ROOT / "requirements" / name).read_text()))


def test_the_pins_are_the_projects() -> None:
    own, all_ = pins("serving.lock"), pins("cpu.lock")
    assert len(own) > 10 and own.items() <= all_.items()
    heavy = {"torch", "torchrec", "fbgemm-gpu-cpu", "prefect", "mlflow", "polars", "pandas"}
    assert not heavy & own.keys()


def test_what_is_copied_imports_only_what_is_installed(tmp_path: Path) -> None:
    """The server's modules load from the copied files, with every other package out of reach."""
    for line in re.findall(r"^COPY (.*)$", DOCKERFILE, re.MULTILINE):
        *sources, target = line.split()
        for source in sources:
            if source.startswith(("recsys", "flows")):
                place = tmp_path / target / (Path(source).name if target.endswith("/") else "")
                place.parent.mkdir(exist_ok=True)
                place.symlink_to(ROOT / source)
    code = (
        "import sys, importlib.metadata as metadata\n"
        "by_module = metadata.packages_distributions()\n"
        "installed = set(sys.argv[1:])\n"
        "class Only:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        found = {one.lower().replace('_', '-') for one in by_module.get(name, [])}\n"
        "        if found - {'towerflow'} and not found & installed:\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Only())\n"
        "import flows.serve, recsys.serving.server, recsys.serving.publication\n"
        "print(recsys.__file__)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, *pins("serving.lock")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(tmp_path)},
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith(str(tmp_path))


def test_it_runs_as_nobody_in_particular_from_a_pinned_image() -> None:
    assert re.search(r"^FROM python:3\.11\.\d+-slim-\w+$", DOCKERFILE, re.MULTILINE)
    users = re.findall(r"^USER (.*)$", DOCKERFILE, re.MULTILINE)
    assert users and users[-1] not in ("0", "root")
    assert DOCKERFILE.index("\nUSER ") < DOCKERFILE.index("\nENTRYPOINT ")
