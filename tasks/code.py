"""The code stage: write which code and libraries decide each stage's results to data/code.

DVC compares the bytes of files, so a changed comment would run a stage again. This stage reduces
code to what decides results, in one file per stage, and each other stage depends on its own file.
"""

import json
import sysconfig
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any

import yaml

from recsys.config import InputError
from recsys.files import write_atomically
from recsys.provenance import Code, code_of, file_of, modules_named

PIPELINE_FILE = Path("dvc.yaml")
TOWERS_FILE = Path("params/towers.yaml")
CODE_DIR = Path("data/code")
CODE_STAGE = "code"
CALLERS = ("flows", "tasks")
# Reads options and checks settings; whatever it accepts is in params/.
WITHOUT = ("flows.command_line",)
SOURCES = (*CALLERS, "recsys", "requirements/cpu.lock", "requirements/cuda.lock")
STAGES_OF_THE_TEACHER = ("teacher", "augment")  # they build it, with the tower class it names
WRITE_COMMAND = "python -m flows.code --write"

_first_seen: dict[str, str] = {}


def write_code() -> None:
    """Write data/code/<stage>.json for every stage; files that are already right stay untouched.

    Raises:
        InputError: a tower class is in a file that the code stage does not depend on, or code has
            changed since this process first looked, so it may be running the old code.
    """
    codes = stage_codes()
    _check_files_are_deps(codes)
    for module, digest in {
        k: v for code in codes.values() for k, v in code.modules.items()
    }.items():
        if _first_seen.setdefault(module, digest) != digest:
            raise InputError(
                f"{module}: its code has changed since this process started; start again"
            )
    CODE_DIR.mkdir(parents=True, exist_ok=True)
    for stage, code in codes.items():
        path, content = code_file(stage), (json.dumps(asdict(code), indent=1) + "\n").encode()
        if not path.is_file() or path.read_bytes() != content:
            write_atomically(path, content)


def code_file(stage: str) -> Path:
    """The file that lists a stage's code."""
    return CODE_DIR / f"{stage}.json"


def stage_codes(folder: Path = Path()) -> dict[str, Code]:
    """The code of each stage of the project in ``folder``, by the stage's name.

    Raises:
        InputError: params/towers.yaml names a tower class whose module does not exist.
    """
    stages = yaml.safe_load((folder / PIPELINE_FILE).read_text())["stages"]
    tower_modules = _tower_modules(folder)
    codes = {}
    for stage in stages.keys() - {CODE_STAGE}:
        further = tower_modules if stage in STAGES_OF_THE_TEACHER else []
        module = stages[stage]["cmd"].split()[-1]
        codes[stage] = code_of(module, *further, callers=CALLERS, without=WITHOUT, folder=folder)
    return codes


def written_deps(text: str, codes: dict[str, Code]) -> str:
    """dvc.yaml's ``text`` with the code stage's dependencies and outputs, and each other stage's
    dependency on it, filled in; comments stay."""
    from ruamel.yaml import YAML

    round_trip = YAML()
    round_trip.width = 4096
    round_trip.indent(mapping=2, sequence=4, offset=2)
    document: Any = round_trip.load(text)
    for stage, spec in document["stages"].items():
        if stage == CODE_STAGE:
            names = [name for name in document["stages"] if name != CODE_STAGE]
            spec["deps"] = [*SOURCES, *_further_files(codes)]
            spec["outs"] = [code_file(name).as_posix() for name in names]
        elif code_file(stage).as_posix() not in spec["deps"]:
            spec["deps"].insert(0, code_file(stage).as_posix())
    written = StringIO()
    round_trip.dump(document, written)
    return written.getvalue()


def write_deps() -> None:
    """Write the computed dependencies into dvc.yaml.

    Raises:
        InputError: as :func:`stage_codes`.
    """
    text = written_deps(PIPELINE_FILE.read_text(), stage_codes())
    write_atomically(PIPELINE_FILE, text.encode())


def _tower_modules(folder: Path) -> list[str]:
    """The module of the tower class that params/towers.yaml names; empty if there is none."""
    where = folder / TOWERS_FILE
    try:
        kind = ((yaml.safe_load(where.read_text()) or {}).get("module") or {}).get("kind")
    except (yaml.YAMLError, AttributeError, OSError):
        return []  # the stages that read it say what is wrong
    modules = modules_named(kind) if isinstance(kind, str) else []
    for module in modules:
        if file_of(module, folder) is None:
            raise InputError(
                f"{where}: key 'module.kind': no module {module!r}; give package.module:Class of a "
                f"file in the project or on Python's path"
            )
    return modules


def _check_files_are_deps(codes: dict[str, Code]) -> None:
    stage = yaml.safe_load(PIPELINE_FILE.read_text())["stages"][CODE_STAGE]
    deps = [Path(dep) for dep in stage["deps"]]
    for file in _further_files(codes):
        if not any(Path(file).is_relative_to(dep) for dep in deps):
            raise InputError(
                f"{TOWERS_FILE}: key 'module.kind': {file} is not a dependency of stage "
                f"{CODE_STAGE} in {PIPELINE_FILE}, so DVC would not notice a change; "
                f"run {WRITE_COMMAND}"
            )


def _further_files(codes: dict[str, Code]) -> list[str]:
    """The files of modules outside the project's packages; not of installed ones, whose changes
    show in the lock files."""
    modules = {module for code in codes.values() for module in code.modules}
    files = {file_of(one, Path()) for one in modules if one.split(".")[0] not in SOURCES}
    installed = Path(sysconfig.get_paths()["purelib"])
    here = Path.cwd()
    own = {file.resolve() for file in files if file is not None}
    return sorted(
        (file.relative_to(here) if file.is_relative_to(here) else file).as_posix()
        for file in own
        if not file.is_relative_to(installed)
    )
