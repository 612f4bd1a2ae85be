#!/bin/sh
# The command's manners: exit codes, where text goes, counts.  $1: the relay executable.
relay=$1
passed=0
failed=0
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT

# says CODE STREAM TEXT ARGUMENTS...: the exit code, and a line of out or err that has the text
says() {
    code=$1 stream=$2 text=$3
    shift 3
    "$relay" "$@" >"$work/out" 2>"$work/err"
    got=$?
    if [ $got -eq "$code" ] && grep -qF -- "$text" "$work/$stream"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "relay $*: exit $got, expected $code and \"$text\" on std$stream; it said:" >&2
        cat "$work/out" "$work/err" >&2
    fi
}

says 2 err 'Usage: relay COMMAND'
says 0 out 'Usage: relay COMMAND' --help
says 0 out 'relay 0.' --version
says 2 err 'unknown command "nothing"' nothing
says 2 err "Try 'relay --help'" nothing
for command in check info; do
    says 0 out "Usage: relay $command" $command --help
    says 0 out 'Examples:' $command --help
    says 2 err "relay $command: unknown option --nothing" $command --nothing
done
says 2 err '--seed: expected a whole number: 0 or more; got "x"' check --seed x
says 0 out 'kernels' info --threads 1
says 0 out '"read_gbps":' info --threads 1 --json
# zero checked is a failure, and so is a full disk
says 1 out '0 passed, 0 failed' check --only 'no case is called so'
says 0 out '3 passed, 0 failed' check --only 'dtypes: 4/2x128 q f32 kv f32'
if [ -w /dev/full ] && "$relay" info --json >/dev/full 2>&1; then
    failed=$((failed + 1))
    echo 'relay info --json >/dev/full: exit 0' >&2
fi

echo "$passed passed, $failed failed"
[ $failed -eq 0 ] && [ $passed -gt 0 ]
