__author__ = "lrgenome developers"
__copyright__ = "Copyright 2026, lrgenome developers"
__license__ = "Apache-2.0"

from snakemake.shell import shell

extra = snakemake.params.get("extra", "")
log = snakemake.log_fmt_shell(stdout=True, stderr=True)

model = snakemake.input.get("model", "")
if model:
    model = f"--model {model}"

regions = snakemake.input.get("regions", "")
if regions:
    regions = f"--regions-file {regions}"

shard = snakemake.params.get("shard", "")
if shard:
    shard = f"--shard {shard}"

summary = snakemake.output.get("summary", "")
if summary:
    summary = f"--summary {summary}"

index = "--write-index" if snakemake.output.get("index") else ""

memory = snakemake.resources.get("mem_mb", "")
if memory:
    memory = f"--max-memory {memory}MB"

shell(
    "lrgenome score-vcf {snakemake.input.vcf} --fasta {snakemake.input.fasta} {model} {regions} {shard}"
    " --threads {snakemake.threads} {memory} --resume {extra}"
    " --output {snakemake.output.scores} {index} {summary} {log}"
)
