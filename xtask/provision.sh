#!/bin/sh
# Prepares a fresh Debian 13 (or newer) to build and test lb: the same for a machine of yours, for the Vagrant box and
# for `cargo xtask provision-check`. Run it as the user who will build; it asks sudo for what needs root.
set -eu
cd "$(dirname "$0")/.."

say() { printf 'provision: %s\n' "$*"; }
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

packages="ca-certificates gcc git libc6-dev"
command -v rustup >/dev/null || packages="$packages rustup"
if command -v apt-get >/dev/null; then
    say "installing Debian packages: $packages"
    as_root apt-get update
    # shellcheck disable=SC2086 # one word per package
    if ! as_root env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends $packages; then
        say "if this Debian has no package rustup (it came with 13), install rustup another way and start again"
        exit 1
    fi
else
    say "this is no Debian: install the like of $packages"
fi

say "installing the Rust toolchain that rust-toolchain.toml names"
# rustup before 1.28 does not know this form, and installs the toolchain when cargo is first called.
rustup toolchain install || cargo --version

say "installing what xtask finds missing"
cargo xtask setup

say "done; next: cargo xtask run"
