"""The files that a release needs in addition to the distributions: they agree, and their tools accept them."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from rattler_build import Stage0Recipe, VariantConfig
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
CONFIGURATION = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = CONFIGURATION["project"]


def parsed(name: str) -> Any:
    """Read a file of YAML; a key that is there twice is an error."""
    return YAML(typ="safe").load((ROOT / name).read_text())


def spack_calls(name: str) -> list[tuple[str, dict[str, str]]]:
    """Give the texts that a directive of Spack's recipe is called with."""
    tree = ast.parse((ROOT / "packaging" / "spack" / "package.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == name]
    return [
        (ast.literal_eval(call.args[0]), {str(k.arg): ast.unparse(k.value) for k in call.keywords}) for call in calls
    ]


def requirement(text: str) -> tuple[str, str]:
    """Take a requirement apart into the name and the lowest version, without zeros at its end."""
    found = re.fullmatch(r"([\w-]+)(?:\[.*\])? ?>=([\d.]+)", text)
    assert found, text
    return found[1].lower(), re.sub(r"(\.0)+$", "", found[2])


def test_the_version_is_the_same_everywhere() -> None:
    cmake = re.search(r"project\(mpickpt VERSION ([\d.]+)", (ROOT / "native" / "CMakeLists.txt").read_text())
    assert cmake and cmake[1] == PROJECT["version"]
    assert parsed("CITATION.cff")["version"] == PROJECT["version"]
    assert parsed("packaging/conda/recipe.yaml")["context"]["version"] == PROJECT["version"]
    assert spack_calls("version")[0][0] == PROJECT["version"]


def test_the_recipes_need_what_the_package_needs() -> None:
    needed = {requirement(text) for text in PROJECT["dependencies"]}
    needed_to_build = {requirement(text) for text in CONFIGURATION["build-system"]["requires"]}
    python = requirement("python" + PROJECT["requires-python"])

    conda = parsed("packaging/conda/recipe.yaml")["requirements"]
    assert {requirement(text) for text in conda["run"]} == needed | {python}
    assert {requirement(text) for text in conda["host"] if ">=" in text} == needed_to_build

    spack: dict[bool, set[tuple[str, str]]] = {True: set(), False: set()}
    for text, options in spack_calls("depends_on"):
        name, _, lowest = text.removeprefix("py-").removesuffix(":").partition("@")
        if lowest and "when" not in options:
            spack["run" not in options["type"]].add((name, lowest))
    assert spack[False] == needed | {python}
    assert spack[True] - {("cmake", "3.18")} == needed_to_build


def test_conda_understands_its_recipe() -> None:
    """Render it for two Pythons; what it needs is not looked up, which takes the channel."""
    compilers = {"c_compiler": ["gcc"], "cxx_compiler": ["gxx"], "c_stdlib": ["sysroot"]}
    recipe = Stage0Recipe.from_file(ROOT / "packaging" / "conda" / "recipe.yaml")
    rendered = [
        variant.recipe for variant in recipe.render(VariantConfig({"python": ["3.11.*", "3.13.*"], **compilers}))
    ]
    assert [(one.package.name, one.package.version) for one in rendered] == [("mpickpt", PROJECT["version"])] * 2
    assert all("nanobind >=2.4" in map(str, one.requirements.host) for one in rendered)


@pytest.mark.parametrize(
    ("schema", "name"),
    [
        ("vendor.github-workflows", ".github/workflows/ci.yml"),
        ("custom.github-workflows-require-timeout", ".github/workflows/ci.yml"),
        ("vendor.citation-file-format", "CITATION.cff"),
    ],
)
def test_the_file_is_as_its_schema_says(schema: str, name: str) -> None:
    check = [Path(sys.executable).parent / "check-jsonschema", "--builtin-schema", schema, ROOT / name]
    done = subprocess.run(check, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_hosted_workflow_runs_what_is_run_here() -> None:
    jobs = parsed(".github/workflows/ci.yml")["jobs"]
    commands = {name: [step.get("run", "") for step in job["steps"]] for name, job in jobs.items()}
    assert any(command.endswith("bash .ci/run") for command in commands["check"])
    assert any("cibuildwheel==" in command for command in commands["wheels"])
    used = [step["uses"] for job in jobs.values() for step in job["steps"] if "uses" in step]
    assert [name for name in used if not re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", name)] == []


@pytest.mark.parametrize("architecture", ["x86_64", "aarch64"])
def test_wheels_are_built_for_each_python(architecture: str) -> None:
    command = [sys.executable, "-m", "cibuildwheel", "--print-build-identifiers", "--platform", "linux"]
    told = subprocess.run(
        [*command, "--archs", architecture, ROOT], capture_output=True, text=True, timeout=100, check=True
    ).stdout.split()
    lowest = int(PROJECT["requires-python"].removeprefix(">=3."))
    assert told == [f"cp3{minor}-manylinux_{architecture}" for minor in range(lowest, 15)]


def test_the_wheel_is_tested_by_the_first_program() -> None:
    wheel = CONFIGURATION["tool"]["cibuildwheel"]
    assert wheel["test-command"] == "python {project}/tests/first_program.py"
    assert set(wheel["test-extras"]) <= set(PROJECT["optional-dependencies"])
    assert (ROOT / "tests" / "first_program.py").is_file()
