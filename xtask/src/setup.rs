//! `cargo xtask setup`: installs what is missing, and says so first.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::{debian, exec, k8s, workspace};

/// The linker of the eBPF object. This version works with the LLVM of the pinned Rust toolchain (`rust-toolchain.toml`).
const BPF_LINKER: &str = "0.10.3";

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Also the Kubernetes programs that the tests start (minutes, once), and what `vm` and `provision-check` need
    #[arg(long)]
    all: bool,
}

/// Something to have before a task can work.
pub(crate) enum Need {
    RustSource,
    /// The standard library for another machine than this.
    RustTarget(String),
    BpfLinker,
    Program(debian::Program),
}

/// What compiling needs beside Rust itself: crates with C or assembly inside.
pub(crate) const COMPILER: debian::Program =
    debian::Program { name: "cc", package: "gcc", why: "compile crates with C inside" };

/// What the tests run.
const TESTING: &[debian::Program] = &[
    debian::Program { name: "ip", package: "iproute2", why: "wire the lab" },
    debian::Program { name: "nft", package: "nftables", why: "run kube-proxy, to compare with it" },
    debian::Program { name: "iptables", package: "iptables", why: "run kube-proxy, to compare with it" },
    debian::Program { name: "bpftool", package: "bpftool", why: "read the maps as an operator does" },
];

pub(crate) fn main(options: &Options) -> Result<()> {
    let mut needs = vec![Need::RustSource, Need::Program(COMPILER), Need::BpfLinker];
    needs.extend(TESTING.iter().copied().map(Need::Program));
    if options.all {
        needs.extend(debian::VM_TOOLS.iter().chain([&debian::DEBOOTSTRAP]).copied().map(Need::Program));
    }
    ensure(needs)?;
    if options.all {
        let directory = k8s::directory()?;
        k8s::kube_proxy(&directory)?;
        k8s::kubectl(&directory)?;
        k8s::helm()?;
    }
    eprintln!("setup: nothing is missing");
    Ok(())
}

/// What `cargo build` needs.
pub(crate) fn for_building() -> Result<()> {
    ensure(vec![Need::RustSource, Need::Program(COMPILER), Need::BpfLinker])
}

/// What the tests need beside a build and the Kubernetes programs.
pub(crate) fn for_testing() -> Result<()> {
    ensure(TESTING.iter().copied().map(Need::Program).collect())
}

/// One program that a single task needs.
pub(crate) fn program(program: debian::Program) -> Result<()> {
    ensure(vec![Need::Program(program)])
}

/// Has cargo start what it runs through sudo, when we are not root: eBPF and namespaces need root, compiling does not.
pub(crate) fn run_tests_as_root(cargo: &mut Command) -> Result<()> {
    if !exec::is_root() {
        // Not after everything was compiled.
        anyhow::ensure!(exec::find("sudo").is_some(), exec::NO_SUDO);
        let arch = std::env::consts::ARCH.to_uppercase();
        cargo.env(format!("CARGO_TARGET_{arch}_UNKNOWN_LINUX_GNU_RUNNER"), "sudo --preserve-env --");
    }
    Ok(())
}

/// Installs what is missing.
pub(crate) fn ensure(needs: Vec<Need>) -> Result<()> {
    let mut missing = Vec::new();
    for need in needs {
        if !need.is_met()? {
            missing.push(need);
        }
    }
    for need in &missing {
        eprintln!("setup: {}", need.describe()?);
    }
    missing.iter().try_for_each(Need::install)
}

impl Need {
    fn is_met(&self) -> Result<bool> {
        Ok(match self {
            Need::RustSource => sysroot()?.join("lib/rustlib/src/rust/library/core").is_dir(),
            Need::RustTarget(target) => sysroot()?.join("lib/rustlib").join(target).join("lib").is_dir(),
            Need::BpfLinker => bpf_linker_version()?.is_some_and(|version| version == BPF_LINKER),
            Need::Program(program) => exec::find(program.name).is_some(),
        })
    }

    /// What is not as it must be, and what is done about it.
    fn describe(&self) -> Result<String> {
        Ok(match self {
            Need::RustSource => "missing Rust's own source (to build `core` for BPF): adding it with rustup".to_owned(),
            Need::RustTarget(target) => format!("missing Rust's standard library for {target}: adding it with rustup"),
            Need::BpfLinker => describe_bpf_linker(bpf_linker_version()?.as_deref()),
            Need::Program(program) => {
                let debian::Program { name, why, package } = program;
                format!("missing {name} (to {why}): installing Debian's package {package}")
            }
        })
    }

    fn install(&self) -> Result<()> {
        match self {
            Need::RustSource => {
                exec::run(Command::new("rustup").current_dir(workspace::root()).args(["component", "add", "rust-src"]))
                    .context(
                        "get the source of the pinned toolchain: `rustup component add rust-src` in this directory",
                    )
            }
            Need::RustTarget(target) => {
                exec::run(Command::new("rustup").current_dir(workspace::root()).args(["target", "add", target]))
                    .with_context(|| {
                        format!("get the standard library: `rustup target add {target}` in this directory")
                    })
            }
            Need::BpfLinker => exec::run(workspace::cargo("install").args([
                "bpf-linker",
                "--version",
                BPF_LINKER,
                "--locked",
                "--force",
            ]))
            .with_context(|| format!("get bpf-linker: `cargo install bpf-linker --version {BPF_LINKER} --locked`")),
            Need::Program(program) => debian::install(program),
        }
    }
}

/// What there is in place of the bpf-linker that we need. `cargo install` keeps one version of a program.
fn describe_bpf_linker(found: Option<&str>) -> String {
    match found {
        None => format!("missing bpf-linker {BPF_LINKER} (links the eBPF object): installing it with cargo, 2 minutes"),
        Some(found) => format!(
            "another version of bpf-linker, {found}, is there: installing {BPF_LINKER} (links the eBPF object) in its \
             place with cargo, 2 minutes"
        ),
    }
}

/// The directory of the pinned Rust toolchain.
fn sysroot() -> Result<PathBuf> {
    let printed = exec::capture(Command::new("rustc").current_dir(workspace::root()).args(["--print", "sysroot"]))?;
    Ok(PathBuf::from(printed.trim()))
}

/// The version of the bpf-linker that cargo would find, if there is one that starts.
fn bpf_linker_version() -> Result<Option<String>> {
    // It is linked with the LLVM that rustc brings.
    let mut linker = Command::new("bpf-linker");
    linker.arg("--version").env("LD_LIBRARY_PATH", sysroot()?.join("lib")).stderr(Stdio::null());
    let Ok(output) = linker.output() else { return Ok(None) };
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.split_whitespace().nth(1).map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bpf_linker_that_is_replaced_is_not_called_missing() {
        let replaced = describe_bpf_linker(Some("0.9.15"));
        assert!(replaced.starts_with("another version of bpf-linker, 0.9.15, is there: "), "{replaced}");
        assert!(
            replaced.contains(&format!("installing {BPF_LINKER} ")) && replaced.contains("in its place"),
            "{replaced}"
        );
        assert!(describe_bpf_linker(None).starts_with(&format!("missing bpf-linker {BPF_LINKER} ")));
    }
}
