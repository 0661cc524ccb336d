"""The Bioconda recipe and the Dockerfile, as far as they can be checked where neither can be built."""

import re
import shlex

import pytest
import yaml
from jinja2 import Environment, StrictUndefined

from lrgenome import __version__

from .conftest import PIPELINES, ROOT

tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")

# What conda-forge calls a package of PyPI.
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base"}


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def recipe():
    text = (PIPELINES / "bioconda" / "meta.yaml").read_text()
    template = Environment(undefined=StrictUndefined).from_string(text)
    return yaml.safe_load(
        template.render(PYTHON="python", environ={"SDIST_SHA256": "0" * 64}, pin_subpackage=lambda name, max_pin: name)
    )


def split(requirement: str) -> tuple[str, str]:
    """Part a requirement of pip or conda into name and version."""
    name, version = re.fullmatch(r"([\w.-]+?)\s*((?:[<>=!].*)?)", requirement).groups()
    return name, version


def test_the_recipe_requires_what_the_package_requires(recipe, project):
    wanted = dict(split(r) for r in project["project"]["dependencies"])
    wanted = {CONDA_NAMES.get(name, name): version for name, version in wanted.items()}
    wanted["python"] = project["project"]["requires-python"]
    assert dict(split(r) for r in recipe["requirements"]["run"]) == wanted
    host = dict(split(r) for r in recipe["requirements"]["host"])
    assert host["python"] == wanted["python"] and "pip" in host
    assert [f"setuptools{host['setuptools']}"] == project["build-system"]["requires"]


def test_the_recipe_is_of_this_package(recipe, project):
    assert recipe["package"] == {"name": project["project"]["name"], "version": __version__}
    assert recipe["build"]["noarch"] == "python" and recipe["build"]["number"] == 0
    ((name, target),) = project["project"]["scripts"].items()
    assert recipe["build"]["entry_points"] == [f"{name} = {target}"]
    assert recipe["source"]["url"].endswith(f"/lrgenome-{__version__}.tar.gz")
    about = recipe["about"]
    assert about["license"] == project["project"]["license"] and (ROOT / about["license_file"]).is_file()
    assert recipe["build"]["run_exports"], "Bioconda asks for it"


def test_the_tests_of_the_recipe_pass(recipe, shell, tmp_path):
    imports = "; ".join(f"import {name}" for name in recipe["test"]["imports"])
    shell("\n".join([f"python -c '{imports}'", *recipe["test"]["commands"]]), tmp_path)


def instructions() -> list[tuple[str, str]]:
    """Read the Dockerfile: each instruction and its argument, lines joined."""
    text = (PIPELINES / "docker" / "Dockerfile").read_text()
    lines = re.sub(r"^#.*\n", "", text, flags=re.M).replace("\\\n", " ")
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines.splitlines() if line)]


def test_the_image_is_made_of_what_is_there(project):
    steps = instructions()
    copied = [name for word, rest in steps if word == "COPY" for name in rest.split()[:-1]]
    assert all((ROOT / name).exists() for name in copied)
    # What building the package reads has to be there.
    needed = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"], "lrgenome"}
    assert needed <= set(copied)
    installs = [part for word, rest in steps if word == "RUN" for part in rest.split("&&") if "pip install" in part]
    torch, package = (shlex.split(part) for part in installs)
    made = (ROOT / "Makefile").read_text()
    assert torch[-1] == re.search(r"^TORCH \?= (.*)$", made, re.M)[1]
    assert torch[torch.index("--index-url") + 1] == re.search(r"^TORCH_INDEX \?= (.*)$", made, re.M)[1]
    assert package[-1] == "."
    python = re.match(r"python:(\d+\.\d+)-", dict(steps)["FROM"])[1]
    assert tuple(map(int, python.split("."))) >= (3, 10)
    assert f"lrgenome:{__version__}" in (PIPELINES / "docker" / "Dockerfile").read_text()


def test_the_image_suits_workflow_managers():
    steps = instructions()
    words = [word for word, _ in steps]
    packages = next(rest for word, rest in steps if word == "RUN" and "apt-get install" in rest)
    assert {"procps", "tabix", "bcftools"} <= set(packages.split())
    assert "ENTRYPOINT" not in words and dict(steps)["USER"] not in ("root", "0")
    assert words.index("USER") > max(i for i, word in enumerate(words) if word in ("RUN", "COPY"))
