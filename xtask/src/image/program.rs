//! Builds the agent as one static program, and checks that it is one.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use object::Endianness;
use object::elf::{EM_AARCH64, EM_BPF, EM_X86_64, FileHeader64, Machine, PT_INTERP};
use object::read::elf::{FileHeader as _, ProgramHeader as _};

use crate::{debian, exec, setup, workspace};

/// An architecture that there is an image for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(super) enum Architecture {
    Amd64,
    Arm64,
}

impl Architecture {
    /// This machine's.
    pub(super) fn of_host() -> Option<Self> {
        [Self::Amd64, Self::Arm64].into_iter().find(|architecture| architecture.rust() == std::env::consts::ARCH)
    }

    /// The name in images and in Kubernetes, which is Go's.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// The name in Rust's targets and in compilers.
    fn rust(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64",
            Self::Arm64 => "aarch64",
        }
    }

    /// `e_machine` of its programs (elf(5)).
    fn machine(self) -> Machine {
        match self {
            Self::Amd64 => EM_X86_64,
            Self::Arm64 => EM_AARCH64,
        }
    }

    fn target(self) -> String {
        format!("{}-unknown-linux-musl", self.rust())
    }

    /// The compiler of the crates that have C or assembly inside, which also links. What it brings of another C library
    /// is not used: rustc's musl target has its own, and `ring` calls nothing that differs.
    fn compiler(self) -> debian::Program {
        match self {
            _ if Self::of_host() == Some(self) => setup::COMPILER,
            Self::Amd64 => debian::Program {
                name: "x86_64-linux-gnu-gcc",
                package: "gcc-x86-64-linux-gnu libc6-dev-amd64-cross",
                why: "compile C inside of crates for amd64",
            },
            Self::Arm64 => debian::Program {
                name: "aarch64-linux-gnu-gcc",
                package: "gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
                why: "compile C inside of crates for arm64",
            },
        }
    }
}

/// Builds the agent with the eBPF object inside. Where that was shows only in places that these flags do not reach: messages
/// of Rust's own library, and the line information of the eBPF object, which has its own build.
pub(super) fn build(architecture: Architecture) -> Result<PathBuf> {
    let target = architecture.target();
    let compiler = architecture.compiler();
    setup::ensure(vec![setup::Need::RustTarget(target.clone()), setup::Need::Program(compiler)])?;
    let homes = [(Some(workspace::root().to_owned()), "/lb"), (cargo_home(), "/cargo")];
    let flags =
        homes.iter().filter_map(|(from, to)| Some(format!("--remap-path-prefix={}={to}", from.as_ref()?.display())));
    let flags = flags.collect::<Vec<_>>().join(" ");
    let variable = target.to_uppercase().replace('-', "_");
    exec::run(
        workspace::cargo("build")
            .args(["--release", "--locked", "--package", "lb-agent", "--target", &target])
            .env(format!("CC_{}", target.replace('-', "_")), compiler.name)
            .env(format!("CARGO_TARGET_{variable}_LINKER"), compiler.name)
            .env(format!("CARGO_TARGET_{variable}_RUSTFLAGS"), flags)
            .env("CARGO_PROFILE_RELEASE_DEBUG", "none")
            .env("CARGO_PROFILE_RELEASE_STRIP", "symbols"),
    )?;
    Ok(workspace::target().join(target).join("release/lb-agent"))
}

fn cargo_home() -> Option<PathBuf> {
    let given = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    given.or_else(|| Some(std::env::home_dir()?.join(".cargo")))
}

/// Fails unless the program is for the architecture, needs no other file, and has the eBPF object inside.
pub(super) fn check(program: &[u8], architecture: Architecture) -> Result<()> {
    let header = FileHeader64::<Endianness>::parse(program).context("not a 64-bit ELF file")?;
    let endian = header.endian()?;
    let (machine, wanted) = (header.e_machine(endian), architecture.machine());
    ensure!(machine == wanted, "built for machine {} instead of {}", machine.0, wanted.0);
    let mut segments = header.program_headers(endian, program)?.iter();
    ensure!(segments.all(|segment| segment.p_type(endian) != PT_INTERP), "not static: it names an interpreter");
    ensure!(holds_bpf_object(program), "no eBPF object inside");
    Ok(())
}

/// Runs the program as a node would, with an empty environment, and checks that it tells this version.
pub(super) fn run(program: &std::path::Path, version: &str) -> Result<()> {
    let said = exec::capture(Command::new(program).arg("--version").env_clear())?;
    ensure!(said.trim() == format!("lb-agent {version}"), "`lb-agent --version` says {said:?}, not {version}");
    Ok(())
}

/// Whether a 64-bit little-endian ELF file of the machine `EM_BPF` is somewhere inside.
fn holds_bpf_object(program: &[u8]) -> bool {
    program.windows(20).any(|at| at.starts_with(b"\x7fELF\x02\x01") && at[18..] == EM_BPF.0.to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_with_shared_libraries_is_not_static() {
        // This test is one.
        let this = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let host = Architecture::of_host().unwrap();
        assert!(check(&this, host).unwrap_err().to_string().contains("not static"));
        let other = if host == Architecture::Amd64 { Architecture::Arm64 } else { Architecture::Amd64 };
        assert!(check(&this, other).unwrap_err().to_string().contains("machine"));
    }

    #[test]
    fn what_is_no_program_is_refused() {
        let mut cut = b"\x7fELF\x02\x01".to_vec();
        for file in [&b""[..], b"#!/bin/sh\n", &cut.clone()] {
            assert!(check(file, Architecture::Amd64).is_err());
        }
        // A program header beyond the end.
        cut.resize(64, 0);
        cut[32] = 255;
        cut[56] = 1;
        assert!(check(&cut, Architecture::Amd64).is_err());
    }

    #[test]
    fn an_object_for_bpf_is_found_inside() {
        let mut program = vec![1; 100];
        assert!(!holds_bpf_object(&program));
        program.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x01\0\xf7\0");
        assert!(holds_bpf_object(&program));
    }
}
