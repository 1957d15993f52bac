# Shared by the scripts in this directory; to be sourced, not run.
# shellcheck shell=bash disable=SC2034

vm=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
repo=$(dirname -- "$vm")
cache=$repo/target/vm
me=vm/$(basename -- "$0")

die() { # MESSAGE: what went wrong and what to do about it
    printf '%s: %s\n' "$me" "$1" >&2
    exit "${failure:-1}"
}

usage_error() { # MESSAGE
    printf '%s: %s\n' "$me" "$1" >&2
    exit 2
}

# The Debian release of this machine, such as bookworm.
codename() (
    # shellcheck disable=SC1091
    . /etc/os-release
    [ "${ID:-}" = debian ] ||
        die "this needs Debian (12 or later), but /etc/os-release says ${ID:-nothing}"
    printf '%s\n' "$VERSION_CODENAME"
)

# Prints "URI" and "KEYRING" (may be empty) of the mirror from which this machine gets its own
# Debian release. Only apt knows it, so nothing here names one; both of apt's file formats are read.
mirror() {
    local files=()
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.{list,sources}; do
        if [ -r "$file" ]; then files+=("$file"); fi
    done
    [ ${#files[@]} -gt 0 ] ||
        die "no apt source can be read below /etc/apt: add one for $(codename)"
    awk -v suite="$(codename)" '
        function stanza_ends() {
            if (!done && types ~ /(^| )deb( |$)/ && enabled != "no" &&
                (" " suites " ") ~ (" " suite " ")) found(uri, key)
            types = suites = uri = key = enabled = ""
        }
        function found(u, k) { print u; print k; done = 1; exit }
        FNR == 1 { stanza_ends() }
        FILENAME ~ /\.sources$/ {
            if ($0 ~ /^[ \t]*$/) stanza_ends()
            if ($0 ~ /^#/) next
            field = tolower($1)
            value = $0; sub(/^[^:]*:[ \t]*/, "", value)
            if (field == "types:") types = value
            if (field == "suites:") suites = value
            if (field == "enabled:") enabled = tolower(value)
            if (field == "uris:") uri = $2
            if (field == "signed-by:" && $2 ~ /^\//) key = $2
            next
        }
        $1 == "deb" {
            line = $0; k = ""
            if (match(line, /\[[^]]*\]/)) {
                options = substr(line, RSTART + 1, RLENGTH - 2)
                line = substr(line, 1, RSTART - 1) substr(line, RSTART + RLENGTH)
                if (match(options, /signed-by=[^ ]+/))
                    k = substr(options, RSTART + 10, RLENGTH - 10)
            }
            split(line, word)
            if (word[3] == suite) found(word[2], k)
        }
        END { if (!done) stanza_ends() }
    ' "${files[@]}"
}

# Writes a source file for one more suite of that mirror, so that /etc/apt stays as it is.
write_source() { # FILE SUITE
    local uri key
    { read -r uri && read -r key; } < <(mirror) ||
        die "no source for $(codename) below /etc/apt: add one"
    {
        printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\n' "$uri" "$2"
        if [ -n "$key" ]; then printf 'Signed-By: %s\n' "$key"; fi
    } >"$1"
}

# Builds the tests of tests/kernel/ and prints the program's path.
kernel_tests() { # [CARGO-OPTION...]
    local program
    program=$(cargo test --quiet --package scx_metronome_core "$@" --test kernel --no-run \
        --message-format=json |
        sed -nE 's/.*"executable":"([^"]*\/kernel-[0-9a-f]+)".*/\1/p' | tail -n 1)
    [ -n "$program" ] ||
        die "tests/kernel/ does not build: see cargo test $* --test kernel --no-run"
    printf '%s\n' "$program"
}

# Runs a command in the background once fewer than $slots are at work there. Two guests at a time:
# each keeps a CPU busy.
slots=${JOBS:-$(nproc)}
in_turn() { # COMMAND...
    while [ "$(jobs -rp | wc -l)" -ge "$slots" ]; do wait -n || true; done
    "$@" &
}
