//! `cargo xtask k8s`: etcd, Kubernetes programs and Helm for the tests, found or built once.
//!
//! No binary of these programs is downloaded: they are compiled from the Go module proxy, by the versions and
//! checksums of `go.mod` and `go.sum` in `tests/k8s` and `tests/helm`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{exec, go, workspace};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Build these, even if others are found: etcd, kube-apiserver, kube-proxy, kubectl [default: the first two, unless
    /// `KUBEBUILDER_ASSETS` or PATH has them]
    programs: Vec<String>,
}

/// What the tests start.
const TESTED: [&str; 2] = ["etcd", "kube-apiserver"];

pub(crate) fn main(options: &Options) -> Result<()> {
    let directory = if options.programs.is_empty() {
        directory()?
    } else {
        let programs: Vec<&str> = options.programs.iter().map(String::as_str).collect();
        built(&programs)?
    };
    println!("{}", directory.display());
    Ok(())
}

/// The directory to give to the tests as `KUBEBUILDER_ASSETS`.
pub(crate) fn directory() -> Result<PathBuf> {
    if let Some(given) = std::env::var_os("KUBEBUILDER_ASSETS") {
        let given = PathBuf::from(given);
        ensure!(
            holds_all(&given, &TESTED),
            "KUBEBUILDER_ASSETS={}: no {} there",
            given.display(),
            TESTED.join(" or no ")
        );
        return Ok(given);
    }
    if let Some(found) = on_path()? {
        return Ok(found);
    }
    built(&TESTED)
}

/// The kube-proxy that ours is compared with: `KUBE_PROXY`, the one beside the API server, or one that is built.
pub(crate) fn kube_proxy(beside: &Path) -> Result<PathBuf> {
    given_or_beside("KUBE_PROXY", "kube-proxy", beside)
}

/// The kubectl that renders and applies `deploy`: `KUBECTL`, the one beside the API server, or one that is built.
pub(crate) fn kubectl(beside: &Path) -> Result<PathBuf> {
    given_or_beside("KUBECTL", "kubectl", beside)
}

/// The helm that renders the chart: `HELM`, or one that is built.
pub(crate) fn helm() -> Result<PathBuf> {
    const NAME: &str = "helm";
    const MODULE: &str = "helm.sh/helm/v4";
    if let Some(given) = given("HELM")? {
        return Ok(given);
    }
    let go_mod = include_str!("../../tests/helm/go.mod");
    let version = go::required_version(go_mod, MODULE).context("tests/helm/go.mod requires no Helm")?;
    let directory = workspace::cache()?.join(format!("helm-{version}"));
    if !holds_all(&directory, &[NAME]) {
        announce(NAME, version, &directory)?;
        let program = go::Program {
            module: "tests/helm",
            package: format!("{MODULE}/cmd/helm"),
            variables: vec![("helm.sh/helm/v4/internal/version.version", version)],
        };
        go::build(&program, &directory, NAME)?;
    }
    Ok(directory.join(NAME))
}

/// Tells a command where etcd, kube-apiserver and kube-proxy are.
pub(crate) fn name_to(command: &mut Command) -> Result<()> {
    let directory = directory()?;
    command.env("KUBE_PROXY", kube_proxy(&directory)?).env("KUBEBUILDER_ASSETS", directory);
    Ok(())
}

/// Tells a command where kubectl and helm are.
pub(crate) fn name_renderers_to(command: &mut Command) -> Result<()> {
    command.env("KUBECTL", kubectl(&directory()?)?).env("HELM", helm()?);
    Ok(())
}

fn given_or_beside(variable: &str, name: &str, beside: &Path) -> Result<PathBuf> {
    if let Some(given) = given(variable)? {
        return Ok(given);
    }
    let found = if holds_all(beside, &[name]) { beside.to_owned() } else { built(&[name])? };
    Ok(found.join(name))
}

/// The program that a variable names.
fn given(variable: &str) -> Result<Option<PathBuf>> {
    let Some(given) = std::env::var_os(variable).map(PathBuf::from) else { return Ok(None) };
    ensure!(given.is_file(), "{variable}={}: no such file", given.display());
    Ok(Some(given))
}

fn holds_all(directory: &Path, programs: &[&str]) -> bool {
    programs.iter().all(|program| directory.join(program).is_file())
}

/// A directory of PATH that holds all programs, when the API server is of the release that we test with.
fn on_path() -> Result<Option<PathBuf>> {
    let Some(server) = exec::find("kube-apiserver") else { return Ok(None) };
    let directory = server.parent().expect("a file has a directory").to_owned();
    let wanted = minor_release(version()?).to_owned();
    // "Kubernetes v1.36.3"
    let found = exec::capture(Command::new(&server).arg("--version"))?;
    let found = minor_release(found.trim().trim_start_matches("Kubernetes "));
    if found != wanted || !holds_all(&directory, &TESTED) {
        eprintln!("k8s: {} is {found} and not {wanted} with etcd beside it: not used", server.display());
        return Ok(None);
    }
    Ok(Some(directory))
}

/// `v1.36` of `v1.36.3`.
fn minor_release(version: &str) -> &str {
    version.rsplit_once('.').map_or(version, |(minor, _patch)| minor)
}

/// The pinned Kubernetes version, `v1.36.3`.
fn version() -> Result<&'static str> {
    let go_mod = include_str!("../../tests/k8s/go.mod");
    go::required_version(go_mod, "k8s.io/kubernetes").context("tests/k8s/go.mod requires no k8s.io/kubernetes")
}

/// Builds what the cache does not hold yet.
fn built(programs: &[&str]) -> Result<PathBuf> {
    let version = version()?;
    let directory = workspace::cache()?.join(format!("k8s-{version}"));
    let missing: Vec<&str> = programs.iter().copied().filter(|program| !directory.join(program).is_file()).collect();
    if missing.is_empty() {
        return Ok(directory);
    }
    announce(&missing.join(" and "), version, &directory)?;
    for program in missing {
        build(program, version, &directory)?;
    }
    Ok(directory)
}

/// Says what takes so long, and makes the directory for it.
fn announce(programs: &str, version: &str, directory: &Path) -> Result<()> {
    eprintln!(
        "k8s: building {programs} {version} from the Go module proxy into {}: 2 to 5 minutes, once",
        directory.display()
    );
    std::fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))
}

fn build(program: &str, version: &str, directory: &Path) -> Result<()> {
    let package = match program {
        "etcd" => "go.etcd.io/etcd/server/v3".to_owned(),
        _ => format!("k8s.io/kubernetes/cmd/{program}"),
    };
    // Kubernetes refuses to start without a version, which its own build passes like this.
    let (major, minor) =
        minor_release(version.trim_start_matches('v')).split_once('.').context("not a release: vX.Y.Z")?;
    let variables = vec![
        ("k8s.io/component-base/version.gitVersion", version),
        ("k8s.io/component-base/version.gitMajor", major),
        ("k8s.io/component-base/version.gitMinor", minor),
    ];
    go::build(&go::Program { module: "tests/k8s", package, variables }, directory, program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_kubernetes_is_a_release() {
        assert!(version().unwrap().starts_with("v1."));
        assert_eq!(minor_release("v1.36.3"), "v1.36");
    }
}
