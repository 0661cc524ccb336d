# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The CPU build: on Linux a plain `pip install torch` brings gigabytes of CUDA. For a GPU: make TORCH_INDEX= ...
TORCH ?= torch==2.13.0
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
DEMO := lrgenome/assets/demo
FASTA := $(DEMO)/GRCh37.chr20.first-2Mbp.fa.gz
OUT ?= demo-out
# Processes of tests; a file's tests run in one of them.
JOBS ?= 2

.PHONY: install demo test test-long lint docs clean
install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "import torch" 2>/dev/null \
	  || { test -n "$(TORCH_INDEX)" && $(BIN)/pip install --quiet --retries 0 --index-url $(TORCH_INDEX) $(TORCH) 2>/dev/null; } \
	  || $(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --editable '.[test,docs]'
	touch $@

# Oracles for the tests only. Of the first, only the torch half is used, which does not need its dependencies (jax).
$(VENV)/.oracles: $(VENV)/.installed
	$(BIN)/pip install --quiet --no-deps recurrentgemma==1.0.1
	$(BIN)/pip install --quiet --no-deps mambapy==1.2.0
	$(BIN)/pip install --quiet "transformers>=5,<6"
	touch $@

demo: $(VENV)/.installed
	mkdir -p $(OUT)
	$(BIN)/lrgenome score-vcf $(DEMO)/demo.vcf --fasta $(FASTA) --context 12kbp -o $(OUT)/scores.tsv
	@grep -v '^##' $(OUT)/scores.tsv
	$(BIN)/lrgenome score-vcf $(DEMO)/demo.vcf --fasta $(FASTA) --context 100kbp --region 20:1600125-1600125 \
	  -o $(OUT)/scores.100kbp.tsv
	@echo; echo 'One of them with 100 kbp of context:'
	@grep -v '^##' $(OUT)/scores.100kbp.tsv
	@echo; echo 'Last, every SNV of 200 bp with 1 Mbp of context: some minutes. What is above is in $(OUT) already.'
	$(BIN)/lrgenome score-vcf $(DEMO)/promoter.vcf --fasta $(FASTA) --context 1Mbp -o $(OUT)/scores.1Mbp.tsv
	@echo; echo 'Every SNV of 200 bp of a promoter with 1 Mbp of context ($(OUT)/scores.1Mbp.tsv), the ten that fit least:'
	@grep '^#CHROM' $(OUT)/scores.1Mbp.tsv; grep -v '^#' $(OUT)/scores.1Mbp.tsv | awk '$$6 != "."' | sort -k6,6g | sed 10q

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# The banner is an advertisement.
docs: $(VENV)/.installed
	$(BIN)/python docs/make_reference.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

test: lint docs $(VENV)/.oracles
	$(BIN)/pytest -m "not long" -n $(JOBS) --dist loadfile

test-long: $(VENV)/.oracles
	$(BIN)/pytest

clean:
	rm -rf $(VENV) $(OUT) site build *.egg-info
