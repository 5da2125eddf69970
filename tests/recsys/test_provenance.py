"""What counts as the code of a module, on small packages."""

from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from recsys import provenance
from recsys.config import InputError
from recsys.provenance import Code, code_of

FILES = {
    "shop/__init__.py": "",
    "shop/till.py": '''"""Counts."""
from typing import TYPE_CHECKING
import fancy.parts
if TYPE_CHECKING:
    from shop import typed
else:
    from shop import untyped


def count(coins):
    """How many."""
    from . import lazy  # only here
    return len(coins) + lazy.MORE
''',
    "shop/lazy.py": "MORE = 1\n",
    "shop/typed.py": "import not_there\n",
    "shop/untyped.py": "from shop.store.shelf import Shelf\n",
    "shop/store/__init__.py": "from shop.store.door import open_door\n",
    "shop/store/shelf.py": "class Shelf:\n    size = 2\n",
    "shop/store/door.py": "def open_door():\n    pass\n",
    "shop/unused.py": "",
    "front/__init__.py": "",
    "front/desk.py": "import plain_fancy\nfrom shop.till import count\n",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Two packages and two installed libraries, of which one has another name than its import."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path / "installed"))
    install(tmp_path, "Fancy_Library", "fancy", "1.0")
    install(tmp_path, "plain_fancy", "plain_fancy", "2.0")
    yield tmp_path
    provenance._installed.cache_clear()


def install(folder: Path, distribution: str, imported: str, version: str) -> None:
    """Put the files that tell of an installed library where Python finds them."""
    described = folder / "installed" / f"{distribution}.dist-info"
    described.mkdir(parents=True, exist_ok=True)
    (described / "METADATA").write_text(f"Name: {distribution}\nVersion: {version}\n")
    (described / "top_level.txt").write_text(f"{imported}\n")
    provenance._installed.cache_clear()


def change(folder: Path, name: str, old: str, new: str) -> None:
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))


def code(folder: Path) -> Code:
    return code_of("front.desk", "shop.till", callers=("front",), folder=folder)


def test_all_that_an_import_runs_counts_but_what_type_checkers_alone_read(folder: Path) -> None:
    assert set(code(folder).modules) == {
        "front",
        "front.desk",
        "shop",
        "shop.lazy",
        "shop.store",
        "shop.store.door",
        "shop.store.shelf",
        "shop.till",
        "shop.untyped",
    }


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("shop/till.py", '"""Counts."""', '"""Counts all coins."""'),
        ("shop/till.py", '    """How many."""\n', ""),
        ("shop/till.py", "  # only here", "  # and nowhere else"),
        ("shop/till.py", "len(coins) + lazy.MORE", "(\n        len( coins ) + lazy.MORE\n    )"),
        ("shop/typed.py", "not_there", "elsewhere"),
    ],
)
def test_words_and_formatting_do_not_count(folder: Path, name: str, old: str, new: str) -> None:
    before = code(folder)
    change(folder, name, old, new)
    assert code(folder) == before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("shop/lazy.py", "1", "2"),
        ("shop/till.py", "len(coins) +", "len(coins) -"),
        ("shop/store/__init__.py", "open_door", "open_door as door"),
        ("shop/store/shelf.py", "size = 2", "size = 2.0"),
    ],
)
def test_what_may_change_a_result_counts(folder: Path, name: str, old: str, new: str) -> None:
    before = code(folder).modules
    change(folder, name, old, new)
    after = code(folder).modules
    module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    assert {one for one in after if after[one] != before[one]} == {module}


def test_the_version_of_a_library_that_computes_counts_and_that_of_a_caller_does_not(
    folder: Path,
) -> None:
    before = code(folder)
    assert before.libraries == {"fancy-library": "1.0"}
    install(folder, "plain_fancy", "plain_fancy", "3.0")
    assert code(folder) == before
    install(folder, "Fancy_Library", "fancy", "1.1")
    assert code(folder).libraries == {"fancy-library": "1.1"}


def test_the_library_that_the_teacher_computes_with_is_found_under_either_of_its_names() -> None:
    libraries = code_of("recsys.distill.teacher").libraries
    assert {"numpy", "polars", "torch", "torchrec"} < libraries.keys()
    assert len({"fbgemm-gpu", "fbgemm-gpu-cpu"} & libraries.keys()) == 1


def test_names_and_what_gives_them_are_those_of_the_standard_library() -> None:
    ours = {name: {one.name for one in found} for name, found in provenance._installed().items()}
    assert ours == {name: set(found) for name, found in packages_distributions().items()}


def test_mistakes_are_one_line(folder: Path) -> None:
    with pytest.raises(InputError, match=r"no module 'front\.dask' in"):
        code_of("front.dask", folder=folder)
    change(folder, "shop/lazy.py", "MORE = 1", "MORE = = 1")
    with pytest.raises(InputError, match=r"shop/lazy.py:1: not Python") as error:
        code(folder)
    assert "\n" not in str(error.value)
