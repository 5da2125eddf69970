"""Which edit makes which stage stale, for every module of the project."""

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest
import yaml

from recsys.provenance import Code
from tasks.code import stage_codes, written_deps

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("flows", "tasks", "recsys")
MODULES = sorted(
    path.relative_to(ROOT).as_posix()
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
)
TOWER = "from torch import nn\n\n\nclass Mine(nn.Linear):\n    pass\n"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project's code and settings."""
    folder = tmp_path_factory.mktemp("project")
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, folder / package, ignore=ignored)
    shutil.copytree(ROOT / "params", folder / "params")
    shutil.copy(ROOT / "dvc.yaml", folder)
    return folder


@pytest.fixture(scope="module")
def before(project: Path) -> dict[str, Code]:
    """Each stage's code before any edit."""
    return stage_codes(project)


@pytest.fixture(scope="module")
def importers() -> dict[str, set[str]]:
    """The stages that import each module, as import-linter's library sees it; importing a module
    runs the packages that it lies in."""
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True, cache_dir=None)
    found: dict[str, set[str]] = {}
    for stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].keys() - {"code"}:
        # The command line decides no result: what it lets through lies in params/.
        waiting, seen = [f"flows.{stage}"], {"flows.command_line"}
        while waiting:
            module = waiting.pop()
            if module in seen:
                continue
            seen.add(module)
            found.setdefault(module, set()).add(stage)
            waiting += graph.find_modules_directly_imported_by(module)
            waiting += [module.rpartition(".")[0]] if "." in module else []
    return found


@pytest.fixture
def file(project: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file of the copy, put back afterwards."""
    path = project / request.param
    saved = path.read_bytes()
    yield path
    path.write_bytes(saved)


@pytest.mark.parametrize("file", MODULES, indirect=True)
def test_an_edit_makes_stale_the_stages_that_import_the_module_and_no_other(
    file: Path, project: Path, before: dict[str, Code], importers: dict[str, set[str]]
) -> None:
    with file.open("a") as source:
        source.write("\nOTHER = 1\n")
    after = stage_codes(project)
    module = ".".join(file.relative_to(project).with_suffix("").parts).removesuffix(".__init__")
    stale = {stage for stage in after if after[stage] != before[stage]}
    assert stale == importers.get(module, set())


def test_comments_docstrings_and_formatting_of_all_modules_make_nothing_stale(
    project: Path, before: dict[str, Code]
) -> None:
    saved = {name: (project / name).read_text() for name in MODULES}
    for name, text in saved.items():
        tree = ast.parse(text)
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list) and isinstance(body[0], ast.Expr):
                value = body[0].value
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    value.value = "Other words."
        (project / name).write_text("# a comment\n" + ast.unparse(tree) + "\n# another\n")
    after = stage_codes(project)
    for name, text in saved.items():
        (project / name).write_text(text)
    assert after == before


def test_each_stage_knows_what_it_computes_with(before: dict[str, Code]) -> None:
    assert "torch" not in before["ingest"].libraries
    for code in before.values():
        assert not {"prefect", "mlflow", "dvc"} & code.libraries.keys()
    assert {"torch", "torchrec", "polars"} <= before["students"].libraries.keys()
    assert "tasks.served_model" in before["register"].modules
    assert "recsys.distill.students" not in before["teacher"].modules


def test_dvc_yaml_has_the_dependencies_that_the_command_writes() -> None:
    text = (ROOT / "dvc.yaml").read_text()
    assert written_deps(text, stage_codes(ROOT)) == text, "run python -m flows.code --write"
    stages = yaml.safe_load(text)["stages"]
    for stage in stages.keys() - {"code"}:
        assert f"data/code/{stage}.json" in stages[stage]["deps"]
        assert not [dep for dep in stages[stage]["deps"] if dep.startswith(PACKAGES)]
    assert {*PACKAGES, "requirements/cpu.lock", "requirements/cuda.lock"} <= set(
        stages["code"]["deps"]
    )


def command(project: Path, *options: str, status: int = 0) -> str:
    """What ``python -m flows.code`` says."""
    result = subprocess.run(
        [sys.executable, "-m", "flows.code", *options],
        cwd=project,
        env={"PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == status, result.stderr
    return result.stderr


@pytest.fixture
def towers(project: Path) -> Iterator[Path]:
    """The copy whose teacher has a tower class of its own."""
    files = [project / "dvc.yaml", project / "params/towers.yaml"]
    saved = [path.read_text() for path in files]
    settings = yaml.safe_load(saved[1])
    settings["module"] |= {"kind": "my_towers:Mine", "allow_code": True}
    files[1].write_text(yaml.safe_dump(settings))
    (project / "my_towers.py").write_text(TOWER)
    yield project
    (project / "my_towers.py").unlink(missing_ok=True)
    for path, text in zip(files, saved, strict=True):
        path.write_text(text)


def test_a_tower_class_of_ones_own_is_the_code_of_the_stages_that_build_the_teacher(
    towers: Path,
) -> None:
    before = stage_codes(towers)
    (towers / "my_towers.py").write_text(TOWER.replace("pass", "depth = 2"))
    after = stage_codes(towers)
    assert {stage for stage in after if after[stage] != before[stage]} == {"teacher", "augment"}


@pytest.mark.slow
def test_a_tower_class_that_dvc_would_not_see_change_is_refused_until_dvc_yaml_names_it(
    towers: Path,
) -> None:
    assert command(towers, status=2) == (
        "error: params/towers.yaml: key 'module.kind': my_towers.py is not a dependency of stage "
        "code in dvc.yaml, so DVC would not notice a change; run python -m flows.code --write\n"
    )
    assert not (towers / "data/code").exists()
    command(towers, "--write")
    assert (
        "my_towers.py"
        in yaml.safe_load((towers / "dvc.yaml").read_text())["stages"]["code"]["deps"]
    )
    command(towers)
    assert "my_towers" in (towers / "data/code/teacher.json").read_text()
    shutil.rmtree(towers / "data")


def test_a_tower_class_that_is_not_there_is_one_line(towers: Path) -> None:
    (towers / "my_towers.py").unlink()
    error = command(towers, status=2)
    assert error.startswith("error: params/towers.yaml: key 'module.kind': no module 'my_towers'; ")
    assert error.count("\n") == 1


def test_the_command_imports_neither_torch_nor_prefect(project: Path) -> None:
    script = "import sys, tasks.code; tasks.code.stage_codes(); print(sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", script],
        cwd=project,
        env={"PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for heavy in ("torch", "prefect", "mlflow", "polars", "numpy"):
        assert f"'{heavy}'" not in loaded
