"""What the documents say is there is there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def documents() -> list[Path]:
    tops = [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")]
    tops += [*(REPOSITORY / "configs").rglob("*.md"), *(REPOSITORY / "chat_templates").glob("*.md")]
    return sorted(tops)


@pytest.mark.parametrize(
    "document", documents(), ids=lambda path: str(path.relative_to(REPOSITORY))
)
def test_every_relative_link_of_a_document_leads_somewhere(document: Path) -> None:
    for target in LINK.findall(document.read_text("utf-8")):
        if "://" not in target and not target.startswith("mailto:"):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_the_readme_opens_with_the_two_commands() -> None:
    text = (REPOSITORY / "README.md").read_text("utf-8")
    assert text.index("make demo") < text.index("make test") < 3000


def test_an_unknown_marker_fails_so_the_pytest_settings_are_read(tmp_path: Path) -> None:
    test_file = tmp_path / "test_marked.py"
    test_file.write_text("import pytest\n@pytest.mark.no_such_marker\ndef test_it(): pass\n")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q",
         "-c", REPOSITORY / "pyproject.toml", test_file],
        capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode != 0
    assert "no_such_marker" in result.stdout + result.stderr


def tree_of_architecture() -> str:
    text = (REPOSITORY / "docs" / "architecture.md").read_text("utf-8")
    return text[text.index("## 3. The tree") : text.index("## 4. ")]


def test_the_tree_in_the_architecture_names_every_module() -> None:
    words = set(re.findall(r"\w+", tree_of_architecture()))
    modules = [path for path in (REPOSITORY / "workbench").rglob("*.py") if path.stem != "__init__"]
    assert len(modules) > 50
    assert not [str(path) for path in modules if path.stem not in words]


def test_the_tree_in_the_architecture_names_no_module_that_is_not_there() -> None:
    names = set(re.findall(r"\b(\w+)\.py\b", tree_of_architecture()))
    assert len(names) > 50
    there = {path.stem for path in (REPOSITORY / "workbench").rglob("*.py")}
    assert not names - there
