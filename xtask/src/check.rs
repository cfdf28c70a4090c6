//! `cargo xtask check`: what a reviewer need not look at.

use anyhow::{Result, bail};

use crate::{exec, setup, workspace};

pub(crate) fn main() -> Result<()> {
    setup::for_building()?;
    let format = exec::run(workspace::cargo("fmt").args(["--all", "--check"]));
    let lint =
        exec::run(workspace::cargo("clippy").args(["--all-targets", "--keep-going", "--", "--deny", "warnings"]));
    let lint_ebpf = exec::run(
        workspace::cargo("clippy")
            // For this one process, as in lb-agent/build.rs: core is compiled for the BPF target.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH))
            .args(["--package", "lb-ebpf", "--target", "bpfel-unknown-none", "-Z", "build-std=core"])
            .args(["--target-dir", "target/ebpf-clippy", "--", "--deny", "warnings"]),
    );
    let failed: Vec<String> =
        [format, lint, lint_ebpf].into_iter().filter_map(Result::err).map(|e| format!("{e:#}")).collect();
    if !failed.is_empty() {
        bail!("{}", failed.join("; "));
    }
    Ok(())
}
