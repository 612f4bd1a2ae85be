#!/bin/sh
# `relay bench generate` on a tiny shape: its lines, their fields, what it refuses.  $1: the relay executable.
relay=$1
passed=0
failed=0
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT

report() { # OK TEXT
    if [ "$1" = yes ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "$2" >&2
        cat "$work/out" "$work/err" >&2
    fi
}

# refuses TEXT ARGUMENTS...: exit code 2, nothing on stdout, and a line of stderr that has the text
refuses() {
    text=$1
    shift
    "$relay" bench generate "$@" >"$work/out" 2>"$work/err"
    code=$?
    ok=no
    [ $code -eq 2 ] && [ ! -s "$work/out" ] && grep -qF -- "$text" "$work/err" && ok=yes
    report $ok "relay bench generate $*: exit $code, expected 2 and \"$text\""
}

# field METHOD NAME: its value in that method's line
field() {
    grep -F "\"attention\": \"$1\"" "$work/out" | sed -n "s/.*\"$2\": \([^,}]*\).*/\1/p"
}

# holds CONDITION: of awk
holds() {
    ok=no
    awk "BEGIN { exit !($1) }" && ok=yes
    report $ok "does not hold: $1"
}

refuses '--batch: expected a whole number: 1 to 1024; got "0"' --batch 0
refuses '--system: expected' --system 8
refuses '--max-tokens: expected' --max-tokens 1
refuses 'expected a batch of at most 99, got 100' --batch 100
refuses '--memory allows' --batch 32 --memory 1M
refuses 'sideways' --attention relay,sideways
refuses 'unknown option --nothing' --nothing

"$relay" bench generate --shape huge --batch 2 --system 64 >"$work/out" 2>"$work/err"
[ $? -eq 1 ] && grep -qF 'unknown shape "huge"' "$work/err" && ok=yes || ok=no
report $ok 'an unknown shape: expected exit 1 and its name'

tiny='--shape tiny --batch 3 --system 80 --user 20 --max-tokens 6 --rounds 1 --threads 2'
# shellcheck disable=SC2086 # words
"$relay" bench generate $tiny --json >"$work/out" 2>"$work/err"
[ $? -eq 0 ] && [ "$(wc -l <"$work/out")" -eq 4 ] && ok=yes || ok=no
report $ok 'expected exit 0 and four lines'
for method in relay plain private; do
    for name in tokens_per_second step_ms limit_step_ms limit_linear_ms linear_fraction prefill_tokens_per_second \
        read_gbps peak_gflops f32_gflops; do
        holds "$(field $method $name) + 0 > 0"
    done
    holds "$(field $method steps) + 0 == 5"
    holds "\"$(field $method batch)\" == \"3\""
done
[ "$(field relay relay_used)$(field plain relay_used)$(field private relay_used)" = truefalsefalse ] && ok=yes || ok=no
report $ok 'relay_used: expected true for relay alone'
# on one machine the limits of relay and plain are the same; private reads more
holds "$(field ratios limit_relay_over_plain) == 1"
holds "$(field ratios limit_relay_over_private) > 1"
holds "$(field ratios relay_over_private) > 0"

# shellcheck disable=SC2086
"$relay" bench generate $tiny --attention plain,private --compute f32 >"$work/out" 2>"$work/err"
[ $? -eq 0 ] && grep -q '^plain  ' "$work/out" && grep -q '^private ' "$work/out" && grep -q 'K/V f32' "$work/out" &&
    ! grep -q '^relay ' "$work/out" && ok=yes || ok=no
report $ok 'a table of plain and private: expected their rows, K/V f32, and no row of relay'

echo "$passed passed, $failed failed"
[ $failed -eq 0 ] && [ $passed -gt 0 ]
