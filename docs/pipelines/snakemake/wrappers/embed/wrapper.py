__author__ = "lrgenome developers"
__copyright__ = "Copyright 2026, lrgenome developers"
__license__ = "Apache-2.0"

from snakemake.shell import shell

extra = snakemake.params.get("extra", "")
log = snakemake.log_fmt_shell(stdout=True, stderr=True)

model = snakemake.input.get("model", "")
if model:
    model = f"--model {model}"

bed = snakemake.input.get("bed", "")
if bed:
    bed = f"--bed {bed}"

shard = snakemake.params.get("shard", "")
if shard:
    shard = f"--shard {shard}"

memory = snakemake.resources.get("mem_mb", "")
if memory:
    memory = f"--max-memory {memory}MB"

shell(
    "lrgenome embed {snakemake.input.fasta} {bed} {model} {shard}"
    " --threads {snakemake.threads} {memory} --resume {extra} --output {snakemake.output[0]} {log}"
)
