"""The network, which nothing uses unless it is told to."""

import pytest

WATCH = """
import sys, os
def watch(event, args):
    if event.startswith("socket.") and event not in ("socket.gethostname",):
        os.write(2, f"NETWORK {event} {args}".encode())
        os._exit(99)
sys.addaudithook(watch)
"""


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["score-vcf", "{vcf}", "-f", "{fasta}", "-m", "hf:org/name", "--offline"], 5, "not in the cache"),
        (["embed", "{fasta}", "-o", "{folder}/o.h5", "-m", "hf:org/name", "--offline"], 5, "not in the cache"),
        (["extrapolate", "-f", "{fasta}", "-o", "{folder}/o", "-m", "hf:org/name", "--offline"], 5, "not in the cache"),
        (["data", "fetch", "--manifest", "{folder}/v.sets.tsv", "--offline"], 2, "--offline: missing are a"),
        (["score-vcf", "https://example.org/a.vcf.gz", "-f", "{fasta}"], 3, "no such file"),
        (["score-vcf", "{vcf}", "-f", "https://example.org/a.fa"], 3, "no such"),
        (["embed", "ftp://example.org/a.fa", "-o", "{folder}/o.h5"], 3, "no such"),
        (["score-vcf", "{vcf}", "-f", "{fasta}", "-m", "https://example.org/model"], 5, "no such folder"),
        (["score-vcf", "{vcf}"], 2, "which is no file here"),
        (["score-vcf", "{vcf}", "-f", "{fasta}", "-o", "{folder}/o.tsv", "--context", "200"], 0, "statuses"),
    ],
)
def test_no_socket_is_opened(run, jobs, tmp_path, args, code, words):
    jobs.vcf.write_text(jobs.vcf.read_text().replace("#CHROM", "##reference=https://example.org/g.fa\n#CHROM"))
    (jobs.folder / "v.sets.tsv").write_text("name\tkind\tpath\turl\na\tgenome\tv.a.fa\thttps://example.org/a.fa\n")
    if "hf:org/name" in args:
        pytest.importorskip("huggingface_hub", reason="needs huggingface_hub: pip install 'lrgenome[hub]'")
    names = {"vcf": jobs.vcf, "fasta": jobs.fasta, "folder": jobs.folder}
    said = run(*(arg.format(**names) for arg in args), code=code, before=WATCH,
               env={"HF_HOME": str(tmp_path / "v.hub")}).stderr  # fmt: skip
    assert words in said and "NETWORK" not in said
