#!/usr/bin/env bash
# attempt.sh NUMBER LOG COMMAND...: run a command as attempt NUMBER of a job, so that only what may end otherwise runs
# again. Snakemake retries whatever fails; of lrgenome's exit codes, 1 to 5 (a bug, usage, bad data, no device, no model)
# would come again, while 137 (out of memory), 130, 143 and being killed may not.
set -uo pipefail
number=$1 log=$2
shift 2
final=$log.final
if [ "$number" -gt 1 ] && [ -s "$final" ]; then
  code=$(<"$final")
  echo "exit code $code is final, not tried again" >>"$log"
  exit "$code"
fi
rm -f "$final"
[ "$number" -gt 1 ] || : >"$log"
"$@" 2>>"$log"
code=$?
if [ "$code" -ge 1 ] && [ "$code" -le 5 ]; then
  echo "$code" >"$final"
fi
exit "$code"
