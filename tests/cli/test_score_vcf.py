"""`lrgenome score-vcf` from its command line: formats in and out, accounts, options, real data."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pysam
import pytest
from places import COLUMNS, HEADER

from lrgenome.io.scores import read_scores
from lrgenome.io.vcf import open_variants

FAST = ("--context", "200")


def rows(text):
    text = text.decode() if isinstance(text, bytes) else text
    return [line for line in text.splitlines() if not line.startswith("#")]


@pytest.fixture
def score(lrgenome, toy_fasta, toy_vcf):
    """Score the toy VCF, or another, on the toy genome."""

    def run(*args, vcf=toy_vcf, code=0, **options):
        return lrgenome("score-vcf", vcf, "-f", toy_fasta, *FAST, *args, code=code, **options)

    return run


@pytest.fixture
def expected(score):
    """The rows of the toy VCF."""
    return rows(score().stdout_bytes)


def keys_of(vcf):
    with open_variants(vcf) as source:
        return [
            [r.chrom, str(r.pos + 1), r.id, r.ref, alt] for r in source.records() for alt in r.alts or (".",)
        ]


def test_standard_output_is_a_table(score, toy_vcf):
    text = score().stdout
    header = [line for line in text.splitlines() if line.startswith("#")]
    assert header[0] == "##lrgenome-scores-version=1" and header[1].startswith("##tool=lrgenome ")
    said = dict(line[2:].split("=", 1) for line in header[2:-1])
    assert said["model"] == "tiny" and len(said["model_sha256"]) == 64
    assert said["reference"].startswith("toy.fa:") and said["context"] == "200"
    names = "#CHROM POS ID REF ALT LLR DIST_COS DIST_L2 PLL_DIFF ERR_EST STATUS"
    assert header[-1] == "\t".join(names.split())
    assert [row.split("\t")[:5] for row in rows(text)] == keys_of(toy_vcf)
    statuses = {row.split("\t")[-1] for row in rows(text)}
    assert {"OK", "EDGE", "ALT_SYMBOLIC", "ALT_STAR", "ALT_MISSING", "ALT_BREAKEND"} <= statuses


def test_the_context_is_12_kbp(lrgenome, toy_vcf, toy_fasta):
    assert "##context=12000\n" in lrgenome("score-vcf", toy_vcf, "-f", toy_fasta).stdout


def test_tables(score, expected, tmp_path):
    plain, packed = tmp_path / "a.tsv", tmp_path / "a.tsv.gz"
    score("-o", plain)
    score("-o", packed, "-W")
    assert rows(plain.read_text()) == expected
    assert gzip.decompress(packed.read_bytes()) == plain.read_bytes()
    with pysam.TabixFile(str(packed)) as table:
        assert list(table.fetch()) == expected
        here = [row for row in expected if row.startswith("chr2") and 500 <= int(row.split("\t")[1]) <= 700]
        assert list(table.fetch("chr2", 499, 700)) == here != []
    assert not list(tmp_path.glob("*.partial*"))
    assert [row["STATUS"] for row in read_scores(packed)] == [
        tuple(r.split("\t")[-1].split("&")) for r in expected
    ]


@pytest.mark.parametrize("suffix", ["vcf", "vcf.gz", "bcf"])
def test_vcf_output(score, expected, toy_vcf, tmp_path, suffix):
    out = tmp_path / f"a.{suffix}"
    score("-o", out, *(["-W"] if suffix != "vcf" else []))
    scores, statuses, alleles = [], [], 0
    with pysam.VariantFile(str(out)) as file:
        assert (file.header.info["LRG_LLR"].number, file.header.info["LRG_LLR"].type) == ("A", "Float")
        assert (file.header.info["LRG_STATUS"].number, file.header.info["LRG_STATUS"].type) == ("A", "String")
        for record in file:
            assert record.info["DP"] in (record.pos, str(record.pos), (str(record.pos),))
            if record.alts is None:
                continue
            alleles += len(record.alts)
            scores += record.info.get("LRG_LLR", (None,) * len(record.alts))
            statuses += record.info["LRG_STATUS"]
    with_alt = [row.split("\t") for row in expected if row.split("\t")[4] != "."]
    assert len(with_alt) == alleles and statuses == [row[-1] for row in with_alt]
    for value, row in zip(scores, with_alt, strict=True):
        assert value is None if row[5] == "." else value == pytest.approx(float(row[5]), rel=1e-5)
    if suffix != "vcf":
        with pysam.VariantFile(str(out)) as file:
            assert {record.chrom for record in file.fetch("chr2", 0, 1200)} == {"chr2"}


def test_vcf_text_is_kept(score, toy_vcf, tmp_path):
    score("-o", tmp_path / "a.vcf")
    before, after = rows(toy_vcf.read_text()), rows((tmp_path / "a.vcf").read_text())
    assert [line.split(";LRG_LLR=")[0] for line in after] == before


@pytest.mark.parametrize("kind", ["gzip", "bgzf", "bcf", "stdin", "stdin gzip", "crlf"])
def test_input(score, expected, toy_vcf, tmp_path, kind):
    text, stdin = toy_vcf.read_bytes(), None
    path = tmp_path / "other.vcf.gz"
    if kind == "gzip":
        path.write_bytes(gzip.compress(text))
    elif kind == "bgzf":
        with pysam.BGZFile(str(path), "wb") as out:
            out.write(text)
    elif kind == "crlf":
        path.write_bytes(text.replace(b"\n", b"\r\n"))
    elif kind == "bcf":
        lines = b"".join(b"##contig=<ID=%s>\n" % c for c in (b"chr1", b"chr2", b"MT"))
        lines += b'##INFO=<ID=DP,Number=1,Type=Integer,Description="D">\n'
        (tmp_path / "full.vcf").write_bytes(text.replace(HEADER.encode(), HEADER.encode() + lines))
        path = tmp_path / "other.bcf"
        pysam.bcftools.view("-Ob", "-o", str(path), str(tmp_path / "full.vcf"), catch_stdout=False)
    else:
        path, stdin = "-", gzip.compress(text) if "gzip" in kind else text
    assert rows(score(vcf=path, stdin=stdin).stdout) == expected


def test_standard_input_to_vcf(score, toy_vcf, tmp_path):
    """It is read twice, so it is spooled."""
    score("-o", tmp_path / "a.vcf.gz")
    score("-o", tmp_path / "b.vcf.gz", "--tmpdir", tmp_path, vcf="-", stdin=toy_vcf.read_bytes())
    assert (tmp_path / "a.vcf.gz").read_bytes() == (tmp_path / "b.vcf.gz").read_bytes()
    assert not list(tmp_path.glob("*.spool"))


def test_bytes_that_are_no_utf8_go_out_as_they_came(score, tmp_path):
    path = tmp_path / "latin.vcf"
    path.write_bytes((HEADER + COLUMNS).encode() + b"chr1\t5\tna\xefve\tA\t<DEL>\t.\t.\t.\n")
    assert b"chr1\t5\tna\xefve\tA\t<DEL>" in score(vcf=path).stdout_bytes
    score("-o", tmp_path / "a.tsv", vcf=path)
    assert b"na\xefve" in (tmp_path / "a.tsv").read_bytes()


@pytest.mark.parametrize("suffix", ["tsv", "tsv.gz", "vcf", "vcf.gz", "bcf"])
def test_the_same_bytes_twice(score, toy_vcf, tmp_path, suffix):
    made = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        out = tmp_path / folder / f"a.{suffix}"
        score("-o", out, "--no-version")
        made.append(out.read_bytes())
    assert made[0] == made[1]
    text = gzip.decompress(made[0]) if made[0][:2] == b"\x1f\x8b" else made[0]
    assert b"tool=" not in text and b"##lrgenome=" not in text


def test_output_that_is_unsorted_is_whole_but_has_no_index(score, toy_lines, tmp_path):
    path, out = tmp_path / "unsorted.vcf", tmp_path / "a.tsv.gz"
    path.write_text(HEADER + COLUMNS + "".join(toy_lines[:6][::-1]))
    result = score("-o", out, "-W", vcf=path, code=3)
    assert "cannot be indexed, as it is not sorted" in result.stderr
    first = rows(gzip.decompress(out.read_bytes()))[0]
    assert first.split("\t")[1] == toy_lines[5].split("\t")[1]
    assert not list(tmp_path.glob("*.tbi"))


def test_an_empty_vcf_gives_a_header(score, tmp_path):
    path = tmp_path / "empty.vcf"
    path.write_text(HEADER + COLUMNS)
    assert score(vcf=path).stdout.splitlines()[-1].startswith("#CHROM")


def test_shards_and_headers(score, expected, tmp_path):
    packed = []
    for i in range(5):
        out = tmp_path / f"{i}.tsv.gz"
        score("-o", out, *(["--shard", f"{i}/4"] if i else []))
        packed.append(out.read_bytes())
    assert gzip.decompress(b"".join(packed[1:])) == gzip.decompress(packed[0])
    parts = [score("--shard", f"{i}-of-3").stdout for i in (1, 2, 3)]
    assert rows("".join(parts)) == expected and [p.startswith("##") for p in parts] == [True, False, False]
    assert score("--shard", "2/3", "--header", "always").stdout.startswith("##")
    assert not score("--header", "never").stdout.startswith("#")
    assert rows(score("-r", "chr1:1-2,000").stdout) == [
        r for r in expected if r.startswith("chr1") and int(r.split("\t")[1]) <= 2000
    ]


def test_summary_and_strict(score, expected, toy_lines, tmp_path):
    result = score("--strict", "--summary", tmp_path / "s.json", "-o", tmp_path / "a.tsv", code=3)
    assert "--strict: not all alleles could be scored" in result.stderr
    assert rows((tmp_path / "a.tsv").read_text()) == expected
    summary = json.loads((tmp_path / "s.json").read_text())
    assert summary["records"] == len(toy_lines) and summary["alleles"] == len(expected)
    assert summary["skipped"] == sum(row.split("\t")[6] == "." for row in expected)
    assert summary["statuses"]["OK"] == sum(row.endswith("\tOK") for row in expected)


def test_every_option_may_come_from_the_environment(lrgenome, score, toy_vcf, toy_fasta, tmp_path):
    (tmp_path / "r.bed").write_text("chr2\t0\t1200\n")
    options = {
        "--strand": "forward", "--context": "150bp", "--regions": "chr1:1-2000",
        "--regions-file": tmp_path / "r.bed", "--shard": "2/2", "--header": "always", "--check-ref": "skip",
        "--chrom-alias": "none", "--chunk": "70", "--transfer": "forward", "--precision": "float32",
        "--batch-size": "2", "--store": "disk", "--tmpdir": tmp_path,
    }  # fmt: skip
    given = score(*(str(x) for pair in options.items() for x in pair), "--no-version").stdout
    env = {"LRGENOME_" + name[2:].upper().replace("-", "_"): str(value) for name, value in options.items()}
    out = tmp_path / "env.tsv"
    env |= {"LRGENOME_FASTA": str(toy_fasta), "LRGENOME_NO_VERSION": "1", "LRGENOME_OUTPUT": str(out)}
    result = lrgenome("score-vcf", toy_vcf, LRGENOME_QUIET="1", **env)
    assert out.read_text() == given and result.output == ""
    for line in ("##strand=forward", "##context=150", "##check_ref=skip", "##chunk=70", "##transfer=forward"):
        assert line in given.splitlines()
    assert {row.split("\t")[0] for row in rows(given)} <= {"chr1", "chr2"} and rows(given)


def test_transfer_none_is_another_result(score, expected):
    assert rows(score("--chunk", "50").stdout) != rows(score("--chunk", "50", "--transfer", "none").stdout)


def test_bfloat16_is_near(score, expected, tmp_path):
    out = score("--precision", "bfloat16").stdout
    assert "##precision=bfloat16\n" in out
    for one, two in zip(rows(out), expected, strict=True):
        if "OK" in one and one.split("\t")[5] != ".":
            assert abs(float(one.split("\t")[5]) - float(two.split("\t")[5])) < 0.1


def test_the_reference_of_the_header(lrgenome, score, expected, toy_vcf, toy_fasta):
    toy_vcf.write_text(toy_vcf.read_text().replace(HEADER, f"{HEADER}##reference=file://{toy_fasta}\n"))
    result = lrgenome("score-vcf", toy_vcf, *FAST)
    assert rows(result.stdout) == expected
    assert f"reference from the VCF header: {toy_fasta}" in result.stderr


def test_a_dry_run_writes_nothing(score, expected, tmp_path):
    before = set(tmp_path.iterdir())
    result = score("--dry-run", "-o", tmp_path / "a.vcf.gz", "-W", "--summary", tmp_path / "s.json")
    said = dict(line.split("\t") for line in result.stdout.splitlines())
    assert said["alleles"] == str(len(expected)) and said["context"] == "200bp"
    assert set(tmp_path.iterdir()) == before


def test_what_is_said(score, tmp_path):
    normal = score().stderr
    assert "INFO device: cpu (CPU)" in normal and "INFO precision: float32, threads: 1" in normal
    assert "INFO model: tiny, sha256 " in normal and "statuses of the" in normal
    assert score("-q").stderr == ""
    verbose = score("-v", "--log-file", tmp_path / "run.log").stderr
    assert "DEBUG windows of 1 x 400 bp" in verbose
    assert (tmp_path / "run.log").read_text() == verbose
    assert "DEBUG" not in normal


def test_aliases(lrgenome, score, expected, toy_vcf, toy_fasta, tmp_path):
    text = toy_vcf.read_text()
    toy_vcf.write_text(text.replace("chr1\t", "1\t").replace("chr2\t", "2\t").replace("MT\t", "chrM\t"))
    result = score()
    assert [r.split("\t")[5:] for r in rows(result.stdout)] == [r.split("\t")[5:] for r in expected]
    assert result.stderr.count("contig 1 of the VCF is chr1 in toy.fa") == 1
    assert "no contig in common" in score("--chrom-alias", "none", code=3).stderr
    table = tmp_path / "alias.tsv"
    table.write_text("1\tchr1\n2\tchr2\n")
    said = rows(score("--chrom-alias", table).stdout)
    assert {r.split("\t")[-1] for r in said if r.startswith("chrM")} == {"CONTIG_MISSING"}


def test_symbolic_alleles_have_the_scores_of_those_written_out(score, toy_sequences, tmp_path):
    genome = toy_sequences["chr1"].upper()

    def line(pos, alt, info=".", ref=None):
        return f"chr1\t{pos}\t.\t{ref or genome[pos - 1]}\t{alt}\t.\t.\t{info}\n"

    a, b = [base for base in "ACGT" if base != genome[2299]][:2]
    lines = [
        line(2000, "<DEL>", "SVTYPE=DEL;END=2040;SVLEN=-40"),
        line(2000, genome[1999], ref=genome[1999:2040]),
        line(2100, "<CN0>,<CN2>", "END=2150;IMPRECISE"),
        line(2100, genome[2099], ref=genome[2099:2150]),
        line(2151, genome[2100:2150] + genome[2150]),
        line(2300, f"{a},<INV>,<INS:ME:ALU>,<DUP:TANDEM>,*,{b}", "SVLEN=.,30,281,30,.,."),
        line(2331, genome[2300:2330] + genome[2330]),
        line(2400, "<DEL>"),
        line(2500, "<INV>", "END=2601"),
        line(4990, "<DUP>", "END=5004"),
    ]
    path = tmp_path / "symbolic.vcf"
    path.write_text(HEADER + COLUMNS + "".join(lines))
    found = [row.split("\t") for row in rows(score("--exact-windows", vcf=path).stdout)]
    assert [row[:5] for row in found] == keys_of(path)
    assert [row[-1] for row in found] == [
        "OK", "OK", "OK", "OK", "OK", "OK",
        "OK", "OK", "ALT_SYMBOLIC", "OK", "ALT_STAR", "OK", "OK",
        "ALT_SYMBOLIC", "TOO_LONG", "OUT_OF_RANGE",
    ]  # fmt: skip
    scores = [row[5:9] for row in found]
    assert scores[0] == scores[1] and scores[2] == scores[4] and scores[3] == scores[5] and scores[9] == scores[12]
    for row in found:
        scored, substitution = row[-1] == "OK", len(row[3]) == len(row[4])
        assert [text != "." for text in row[5:9]] == [scored and substitution, scored, scored, scored]
        assert not scored or float(row[7]) > 0
    assert len({row[7] for row in found if row[-1] == "OK"}) == 7
    score("--exact-windows", "-o", tmp_path / "a.vcf", vcf=path)
    written = rows((tmp_path / "a.vcf").read_text())
    said = [status for text in written for status in text.split("LRG_STATUS=")[1].split(",")]
    assert said == [row[-1] for row in found]


def pick(path, want):
    """Take some records of a real VCF, with its header."""
    header, chosen, number = [], [], 0
    with gzip.open(path, "rt") as lines:
        for line in lines:
            if line.startswith("#"):
                header.append(line)
                continue
            if want(number, line.split("\t", 8)):
                chosen.append(line)
            number += 1
    return "".join([*header, *chosen])


def run_real(lrgenome, tmp_path, fasta, text, *args):
    vcf, out = tmp_path / "real.vcf", tmp_path / "real.tsv.gz"
    vcf.write_text(text)
    lrgenome("score-vcf", vcf, "-f", fasta, *FAST, "-o", out, *args)
    found = [line.split("\t") for line in rows(gzip.decompress(out.read_bytes()))]
    assert [row[:5] for row in found] == keys_of(vcf)
    return found


def test_1000_genomes(lrgenome, shared_data: Path, tmp_path):
    """Dense SNVs and indels, several ALTs, and all that is symbolic: nothing short."""
    text = pick(
        shared_data / "variants" / "1000genomes.chr20_1-2Mb.b37.vcf.gz",
        lambda n, f: n % 200 == 0 or "<" in f[4] or ("," in f[4] and n % 7 == 0),
    )
    fasta = shared_data / "genomes" / "homo_sapiens.GRCh37.chr20.fa.gz"
    found = run_real(lrgenome, tmp_path, fasta, text, "-W")
    assert len(found) > 200 and sum("," in line.split("\t")[4] for line in text.splitlines()[300:]) > 5
    symbolic = [row for row in found if "<" in row[4]]
    assert Counter(row[-1] for row in symbolic) == {"ALT_SYMBOLIC": 7, "TOO_LONG": 17}
    assert {row[-1] for row in found} == {"OK", "ALT_SYMBOLIC", "TOO_LONG"}
    with pysam.TabixFile(str(tmp_path / "real.tsv.gz")) as table:
        assert sum(1 for _ in table.fetch("20", 1_000_000, 2_000_000)) == len(found)


def test_clinvar_on_contigs_named_like_regions(lrgenome, shared_data: Path, tmp_path):
    text = pick(shared_data / "variants" / "clinvar.b37.vcf.gz", lambda n, f: ":" in f[0] and n % 120 == 0)
    fasta = shared_data / "genomes" / "homo_sapiens.GRCh37.loci.fa.gz"
    found = run_real(lrgenome, tmp_path, fasta, text, "-W")
    assert len(found) > 50 and not {"CONTIG_MISSING", "REF_MISMATCH"} & {row[-1] for row in found}
    name = found[0][0]
    assert ":" in name and "-" in name
    vcf = tmp_path / "real.vcf"
    one = lrgenome("score-vcf", vcf, "-f", fasta, *FAST, "-r", name).stdout
    assert [line.split("\t") for line in rows(one)] == [row for row in found if row[0] == name]


def test_real_indels_that_are_not_normalised(lrgenome, shared_data: Path, tmp_path):
    text = pick(shared_data / "variants" / "vt_indels.chr20.b37.vcf.gz", lambda n, f: True)
    fasta = shared_data / "genomes" / "homo_sapiens.GRCh37.chr20.fa.gz"
    found = run_real(lrgenome, tmp_path, fasta, text)
    assert len(found) >= 194 and not any("REF_MISMATCH" in row[-1] for row in found)
    assert all(row[5] == "." for row in found if len(row[3]) != len(row[4]))
    assert sum(row[6] != "." for row in found) > 150
