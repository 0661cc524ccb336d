"""The nf-core modules: what Nextflow would run, run by bash as it does; their form; their metadata."""

import gzip
import json
import re
from pathlib import Path

import h5py
import pytest
import yaml

from lrgenome import __version__

from .conftest import BINS, CONTEXT, FASTA, PIPELINES, REGION, VCF, text_of
from .nextflow_process import Bag, Memory, Names, Process

NF_CORE = PIPELINES / "nf-core"
MODULES = sorted(p.parent for p in NF_CORE.glob("modules/*/*/main.nf"))
OURS = sorted(p.parent for p in NF_CORE.glob("modules/lrgenome/*/main.nf"))
REFERENCE = {"fasta": FASTA.name, "fai": f"{FASTA.name}.fai", "gzi": f"{FASTA.name}.gzi"}
NOTHING: dict[str, object] = {"shard": Names(), "model": Names(), "bed": Names(), "meta": Bag(id="test")}
modules = pytest.mark.parametrize("folder", MODULES, ids=lambda p: p.name)
ours = pytest.mark.parametrize("folder", OURS, ids=lambda p: p.name)


def brace(pattern):
    """Write out the alternatives of a glob."""
    match = re.search(r"\{([^}]*)\}", pattern)
    if not match:
        return [pattern]
    return [pattern[: match.start()] + one + pattern[match.end() :] for one in match[1].split(",")]


class Task:
    """A work folder of Nextflow, with links to the inputs."""

    def __init__(self, folder: Path, shell):
        self.folder, self.shell = folder, shell
        self.staged: set[str] = set()

    def stage(self, *paths: Path):
        for path in paths:
            (self.folder / path.name).symlink_to(path)
            self.staged.add(path.name)

    def run(self, process, block="script", *, code=0, **scope):
        """Run a block; returns the files of each channel, which must be there unless they are optional."""
        ext = Bag(scope.pop("ext", {}))
        task = Bag(ext=ext, cpus=1, memory=scope.pop("memory", None))
        script, names = process.command(block, **{**NOTHING, **scope, "task": task})
        self.said = self.shell(script, self.folder, code=code).stderr
        found = {}
        for channel, (pattern, optional) in process.outputs().items():
            pattern = re.sub(r"\$\{(\w+)\}", lambda m: str(names[m[1]]), pattern)
            files = {p for one in brace(pattern) for p in self.folder.glob(one) if p.name not in self.staged}
            assert files or optional or code, f"{channel}: no {pattern}"
            found[channel] = sorted(files)
        return found


@pytest.fixture
def task(tmp_path, shell):
    work = tmp_path / "work"
    work.mkdir()
    return Task(work, shell)


def process(name):
    return Process(NF_CORE / "modules" / name / "main.nf")


def test_scores_in_shards_are_gathered(task, shell, whole, tmp_path):
    """What the subworkflow does, task by task: two shards, the table and its index, the counts."""
    parts, counts = [], []
    for number in (1, 2):
        one = Task(tmp_path / str(number), shell)
        one.folder.mkdir()
        one.stage(VCF, FASTA, *FASTA.parent.glob(f"{FASTA.name}.*"))
        found = one.run(
            process("lrgenome/scorevcf"), vcf=VCF.name, shard=f"{number}-of-2", **REFERENCE, memory=Memory(4000),
            ext={"args": f"--context {CONTEXT}"},
        )  # fmt: skip
        assert [p.name for p in found["scores"]] == [f"test.{number}-of-2.tsv.gz"] and found["index"] == []
        parts += found["scores"]
        counts += found["summary"]
    task.stage(*parts, *counts)
    gathered = task.run(process("local/lrgenome_gather"), parts=Names(p.name for p in parts))
    assert text_of(*gathered["scores"]) == (whole / "scores.tsv").read_bytes()
    assert [p.name for p in gathered["index"]] == ["test.tsv.gz.tbi"]
    (score, status) = task.run(process("lrgenome/multiqc"), counts=Names(p.name for p in reversed(counts)))["mqc"]
    assert json.loads(score.read_text())["data"]["test"]["alleles"] == 65
    assert status.name == "test.status_mqc.json"


@pytest.mark.long
def test_embeddings_in_one_shard_are_joined(task, whole):
    task.stage(FASTA, *FASTA.parent.glob(f"{FASTA.name}.*"))
    found = task.run(
        process("lrgenome/embed"), **REFERENCE, shard="1-of-1", ext={"args": f"--context {BINS} -r {REGION}"}
    )
    part = found["embeddings"][0]
    assert part.name == "test.1-of-1.h5"
    joined = task.run(process("lrgenome/concat"), parts=Names([part.name]), ext={"prefix": "joined"})
    with h5py.File(*joined["embeddings"]) as mine, h5py.File(whole / "e.h5") as theirs:
        assert (mine["embeddings"][:] == theirs["embeddings"][:]).all()


@pytest.mark.long
def test_an_error_of_the_tool_is_that_of_the_task(task):
    """So that `errorStrategy` sees it: 130 to 145 are retried, 3 is not."""
    task.stage(VCF, FASTA)
    task.run(process("lrgenome/scorevcf"), vcf="none.vcf", **REFERENCE, code=3)
    assert "none.vcf" in task.said
    task.run(process("lrgenome/scorevcf"), vcf=VCF.name, **REFERENCE, memory=Memory(100), code=137)


def test_an_input_is_never_the_output(tmp_path):
    with pytest.raises(ValueError, match="Input and output names are the same"):
        process("lrgenome/scorevcf").command(
            "script", **{**NOTHING, **REFERENCE}, vcf="test.vcf.gz", task=Bag(ext=Bag(suffix="vcf.gz"), cpus=1)
        )


@modules
def test_stubs_make_every_output(task, folder):
    made = task.run(Process(folder / "main.nf"), "stub", parts=Names(), counts=Names())
    for path in (path for files in made.values() for path in files):
        if path.suffix == ".gz":
            assert gzip.decompress(path.read_bytes()).strip() == b""


@modules
def test_the_version_is_a_version(shell, tmp_path, folder):
    version = shell(Process(folder / "main.nf").versions(), tmp_path).stdout.strip()
    assert re.fullmatch(r"\d+(\.\d+)+", version)
    assert version == __version__ or folder.name == "lrgenome_gather"


@pytest.mark.parametrize("path", sorted(NF_CORE.glob("**/main.nf")), ids=lambda p: p.parent.name)
def test_a_parser_of_nextflow_reads_it(path):
    reftrace = pytest.importorskip("reftrace", reason="needs reftrace: pip install 'lrgenome[workflows]'")
    module = reftrace.Module.from_file(str(path))
    assert not isinstance(module, reftrace.ParseError), module
    if "subworkflows" in path.parts:
        assert [w["name"] for w in module.to_dict()["workflows"]] == ["LRGENOME_SHARDS"]
        for include in module.to_dict()["includes"]:
            included = Process((path.parent / f"{include['from_module']}.nf").resolve())
            assert [item["name"] for item in include["items"]] == [included.name]
        return
    (found,) = module.processes
    assert found.name == Process(path).name
    assert found.labels[0].value in ("process_single", "process_medium")
    assert found.condas and found.containers and found.tags


def test_a_parser_of_nextflow_refuses_what_is_broken(tmp_path):
    reftrace = pytest.importorskip("reftrace", reason="needs reftrace: pip install 'lrgenome[workflows]'")
    text = (MODULES[0] / "main.nf").read_text()
    (tmp_path / "main.nf").write_text(text.replace("script:\n", "script:\n    def = = (\n"))
    assert isinstance(reftrace.Module.from_file(str(tmp_path / "main.nf")), reftrace.ParseError)


def channels(what):
    """Name the elements of each channel of ``input``, ``output`` or ``topics`` in meta.yml, and check them."""
    names = []
    for channel in what:
        elements = channel if isinstance(channel, list) else [channel]
        names.append([name for element in elements for name in element])
        for element in elements:
            for about in element.values():
                assert about["type"] in ("map", "file", "directory", "string", "eval") and about["description"]
                assert set(about) <= {"type", "description", "pattern", "ontologies"}
                assert ("ontologies" in about) == (about["type"] == "file")
                assert all(re.match("https?://", url) for o in about.get("ontologies", []) for url in o.values())
    return names


@ours
def test_the_metadata_is_that_of_the_process(folder):
    """The rules of nf-core's schema of meta.yml, and of its linter."""
    meta, code = yaml.safe_load((folder / "meta.yml").read_text()), Process(folder / "main.nf")
    assert list(meta) == ["name", "description", "keywords", "tools", "input", "output", "topics", "authors",
                          "maintainers"]  # fmt: skip
    assert meta["name"].upper() == code.name and len(set(meta["keywords"])) == len(meta["keywords"]) >= 3
    assert all(name.startswith("@") for name in meta["authors"] + meta["maintainers"])
    ((tool, about),) = meta["tools"][0].items()
    assert tool == "lrgenome" and about["licence"] == ["Apache-2.0"] and about["homepage"].startswith("https://")
    assert channels(meta["input"]) == code.inputs()
    files = {name: [["meta", pattern]] for name, (pattern, _) in code.outputs().items()}
    version = [["${task.process}", "lrgenome", code.versions()]]
    assert {name: channels(c) for name, c in meta["output"].items()} == {**files, "versions_lrgenome": version}
    assert channels(meta["topics"]["versions"]) == version


@modules
def test_the_form_of_a_module(folder):
    code = Process(folder / "main.nf")
    assert list(code.blocks) == ["input", "output", "when", "script", "stub"]
    assert code.blocks["when"].strip() == "task.ext.when == null || task.ext.when"
    assert 'tag "${meta.id}"' in code.head and 'conda "${moduleDir}/environment.yml"' in code.head
    tags = re.findall(r"[/'](\w+):([\d.]+)--(\w+)'", code.head)
    assert len(tags) == 2 and len(set(tags)) == 1, "Singularity and Docker have one image"
    environment = yaml.safe_load((folder / "environment.yml").read_text())
    assert environment["channels"] == ["conda-forge", "bioconda"] and "name" not in environment
    assert environment["dependencies"] == [f"bioconda::{tags[0][0]}={tags[0][1]}"]
    assert tags[0][1] == __version__ or folder.name == "lrgenome_gather"


@ours
def test_nf_tests_are_of_the_process(folder):
    """Their text only: Nextflow is not here to run them."""
    text, code = (folder / "tests" / "main.nf.test").read_text(), Process(folder / "main.nf")
    for line in (f'process "{code.name}"', 'script "../main.nf"', f'tag "lrgenome/{folder.name}"'):
        assert line in text
    assert 'options "-stub"' in text and text.count("test(") >= 2 and text.count("{") == text.count("}")
    for script in re.findall(r'script "(.*)"', text):
        assert (folder / "tests" / script).is_file()
    for body in text.split("        when {")[1:]:
        given = sorted({int(n) for n in re.findall(r"input\[(\d)\]", body.split("        then {")[0])})
        assert given == list(range(len(code.inputs())))
    for channel in re.findall(r"process\.out\.(\w+)\[", text):
        assert channel in code.outputs()
    for name in re.findall(r"lrgenome_demo \+ '/([^']+)'", text):
        assert (FASTA.parent / name).is_file()
    assert f"withName: {code.name}" in (folder / "tests" / "nextflow.config").read_text() or folder.name == "multiqc"
