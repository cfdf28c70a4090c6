//! Builds the eBPF object of `lb-ebpf` and puts it where `loader` includes it from, so that `lb-agent` is one file.

use std::{env, ffi::OsString, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, bail, ensure};
use aya_build::{Package, Toolchain};

fn main() -> Result<()> {
    // aya-build adds `../lb-ebpf`. The files of the workspace decide which compiler and which crates are used.
    for input in ["../lb-common", "../Cargo.toml", "../Cargo.lock", "../rust-toolchain.toml"] {
        println!("cargo::rerun-if-changed={input}");
    }
    println!("cargo::rerun-if-env-changed=PATH");
    ensure_linker()?;

    // SAFETY: the build script has one thread.
    unsafe {
        // `-Z build-std=core` on a stable compiler, as the Linux kernel builds its Rust. For the child process only:
        // crates built for the host must not see it, some of them would turn on unstable features.
        env::set_var("RUSTC_BOOTSTRAP", "1");
        // bpf-linker links with the LLVM that rustc ships, in rustc's own library directory.
        env::set_var("LD_LIBRARY_PATH", linker_library_path()?);
        // aya-build shows each line that cargo writes to standard error as a warning, its progress too. A quiet cargo
        // writes only errors there; what the compiler says comes another way, and is shown as before.
        env::set_var("CARGO_TERM_QUIET", "true");
        // The one excludes the other.
        env::remove_var("CARGO_TERM_VERBOSE");
    }
    // Cargo, when rustup started it, knows the toolchain by its full name; `rust-toolchain.toml` decides otherwise.
    let toolchain = env::var("RUSTUP_TOOLCHAIN").unwrap_or_else(|_| env!("CARGO_PKG_RUST_VERSION").to_owned());
    let root_dir = env::var("CARGO_MANIFEST_DIR").context("CARGO_MANIFEST_DIR")? + "/../lb-ebpf";
    aya_build::build_ebpf(
        [Package { name: "lb-ebpf", root_dir: &root_dir, ..Package::default() }],
        Toolchain::Custom(&toolchain),
    )
}

fn ensure_linker() -> Result<()> {
    match Command::new("bpf-linker").arg("--version").env("LD_LIBRARY_PATH", linker_library_path()?).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => bail!("bpf-linker does not run: {}", String::from_utf8_lossy(&output.stderr).trim()),
        Err(error) => bail!("bpf-linker: {error}; `cargo xtask setup` installs it"),
    }
}

/// rustc's library directory in front of what the loader searched before.
fn linker_library_path() -> Result<OsString> {
    let rustc = env::var_os("RUSTC").context("RUSTC")?;
    let output = Command::new(rustc).args(["--print", "sysroot"]).output().context("rustc --print sysroot")?;
    ensure!(output.status.success(), "rustc --print sysroot: {}", output.status);
    let sysroot = String::from_utf8(output.stdout).context("sysroot")?;
    let mut paths = vec![PathBuf::from(sysroot.trim()).join("lib")];
    paths.extend(env::var_os("LD_LIBRARY_PATH").iter().flat_map(env::split_paths));
    Ok(env::join_paths(paths)?)
}
