#!/usr/bin/env bash
# attempt.sh NUMBER LOG COMMAND...: run a command as attempt NUMBER of a job, so that only what may end otherwise runs
# again. Snakemake retries whatever fails; of lrgenome's exit codes, 1 to 5 (a bug, usage, bad data, no device, no model)
# would come again, while 137 (out of memory), 130, 143 and being killed may not. Snakemake removes the log before each
# attempt; those of attempts that failed are kept as LOG.NUMBER.
set -uo pipefail
number=$1 log=$2
shift 2
final=$log.final
if [ "$number" -gt 1 ] && [ -s "$final" ]; then
  code=$(<"$final")
  cat "$log.1" >"$log"
  echo "exit code $code is final, attempt $number was not made" >>"$log"
  exit "$code"
fi
[ "$number" -gt 1 ] || rm -f "$final" "$log".[0-9]*
"$@" 2>"$log"
code=$?
if [ "$code" -ne 0 ]; then
  cp "$log" "$log.$number"
  [ "$code" -gt 5 ] || echo "$code" >"$final"
fi
exit "$code"
