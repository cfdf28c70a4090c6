//! `cargo xtask image`: the agent's image as an OCI archive, made without a container engine.

mod archive;
mod containerfile;
mod program;
mod read_back;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::{setup, workspace};
use archive::Program;
use containerfile::Instructions;
use program::Architecture;
use read_back::Image;

pub(crate) const AFTER_HELP: &str = "\
containerd takes the archive with `ctr --namespace k8s.io images import FILE`, Podman with `podman load --input FILE`;
`skopeo copy oci-archive:FILE docker://…` sends it to a registry. The programs are beside it, for engines that build from the
Containerfile. The archive is read back before the task ends: digests, and that each program is static, holds the eBPF
object, and (this machine's) runs.
";

#[derive(clap::Args)]
pub(crate) struct Options {
    /// For which machines; may be given several times [default: this machine's]
    #[arg(long, value_enum)]
    arch: Vec<Architecture>,
    /// What the image is called [default: lb-agent:VERSION, which `deploy` names]
    #[arg(long)]
    name: Option<String>,
    /// Where to write it [default: lb-agent.oci.tar in target/image]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// The largest download that is still thought small, in bytes.
const GOAL: u64 = 20_000_000;
/// That of the workspace, so of the agent.
const VERSION: &str = env!("CARGO_PKG_VERSION");

pub(crate) fn main(options: &Options) -> Result<()> {
    let Options { arch, name, output } = options;
    let mut architectures: BTreeSet<Architecture> = arch.iter().copied().collect();
    if architectures.is_empty() {
        let host = Architecture::of_host();
        architectures.insert(host.context("there is no image for machines like this one: name another with --arch")?);
    }
    setup::for_building()?;
    let directory = workspace::target().join("image");
    let mut programs = Vec::new();
    for architecture in architectures {
        let built = program::build(architecture)?;
        let staged = directory.join(architecture.name());
        std::fs::create_dir_all(&staged).with_context(|| format!("cannot create {}", staged.display()))?;
        std::fs::copy(&built, staged.join("lb-agent"))?;
        programs.push((architecture, std::fs::read(&built).with_context(|| built.display().to_string())?));
    }

    let text = std::fs::read_to_string(workspace::root().join("Containerfile")).context("Containerfile")?;
    let instructions = Instructions::read(&text)?;
    let name = name.clone().unwrap_or_else(|| format!("lb-agent:{VERSION}"));
    let inputs: Vec<_> =
        programs.iter().map(|(architecture, bytes)| Program { architecture: architecture.name(), bytes }).collect();
    let written = archive::write(&name, VERSION, &instructions, &inputs)?;
    let output = output.clone().unwrap_or_else(|| directory.join("lb-agent.oci.tar"));
    std::fs::write(&output, written).with_context(|| format!("cannot write {}", output.display()))?;

    let back = read_back::read(&std::fs::read(&output)?).with_context(|| output.display().to_string())?;
    ensure!(back.len() == programs.len(), "{} images instead of {}", back.len(), programs.len());
    println!("{name}: {}", output.display());
    for ((architecture, _), image) in programs.iter().zip(&back) {
        check(*architecture, image, &instructions).with_context(|| format!("the image for {}", architecture.name()))?;
        let Image { architecture, download, files, .. } = image;
        let unpacked: usize = files.values().map(|file| file.content.len()).sum();
        let megabytes = |bytes: u64| format!("{}.{:02} MB", bytes / 1_000_000, bytes % 1_000_000 / 10_000);
        println!("{architecture}: {} to download, {} unpacked", megabytes(*download), megabytes(unpacked as u64));
        ensure!(*download < GOAL, "the image for {architecture} is larger than {}", megabytes(GOAL));
    }
    Ok(())
}

/// What is in the archive is the program alone, and it works.
fn check(architecture: Architecture, image: &Image, instructions: &Instructions) -> Result<()> {
    ensure!(image.architecture == architecture.name(), "it says that it is for {}", image.architecture);
    let path = instructions.program.trim_start_matches('/');
    let file = image.files.get(path).with_context(|| format!("no file {path}"))?;
    ensure!(image.files.len() == 1, "other files than the program: {:?}", image.files.keys());
    ensure!(image.config["Entrypoint"][0] == instructions.program.as_str(), "it starts something else");
    ensure!(file.mode == 0o755 && file.owner == (0, 0), "{path} cannot be started: {:o}", file.mode);
    program::check(&file.content, architecture)?;
    if Architecture::of_host() == Some(architecture) {
        let unpacked = workspace::target().join(format!("image/.unpacked-{}", std::process::id()));
        std::fs::write(&unpacked, &file.content)?;
        std::fs::set_permissions(&unpacked, PermissionsExt::from_mode(file.mode))?;
        let outcome = program::run(&unpacked, VERSION);
        std::fs::remove_file(&unpacked)?;
        outcome?;
    }
    Ok(())
}
