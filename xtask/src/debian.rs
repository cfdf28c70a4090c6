//! Debian as a source: packages for this machine, and packages of another release that are only unpacked.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::{exec, workspace};

/// A program that we start, and where Debian has it.
#[derive(Clone, Copy)]
pub(crate) struct Program {
    pub(crate) name: &'static str,
    /// Or several, separated by spaces.
    pub(crate) package: &'static str,
    /// Completes "to …".
    pub(crate) why: &'static str,
}

/// What `vm` starts.
pub(crate) const VM_TOOLS: &[Program] = &[
    Program { name: "qemu-system-x86_64", package: "qemu-system-x86", why: "boot other kernels" },
    Program { name: "xz", package: "xz-utils", why: "unpack kernel modules" },
    Program { name: "strip", package: "binutils", why: "make the guest's programs small" },
];
/// What `provision-check` starts.
pub(crate) const DEBOOTSTRAP: Program =
    Program { name: "debootstrap", package: "debootstrap", why: "make a clean Debian root" };

/// Where Debian keeps the keys of its archive; the packages that we unpack are verified with them.
pub(crate) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Installs the package on this machine.
pub(crate) fn install(program: &Program) -> Result<()> {
    let Program { name, package, why } = program;
    let advice = || format!("{name} is missing (to {why}): install it; Debian has it in the package `{package}`");
    if exec::find("apt-get").is_none() {
        bail!("{}", advice());
    }
    let apt = |arguments: &[&str]| {
        exec::run(exec::as_root("apt-get").env("DEBIAN_FRONTEND", "noninteractive").args(arguments))
    };
    let mut install = vec!["install", "--yes", "--no-install-recommends"];
    install.extend(package.split(' '));
    // A machine that was just made has no package lists yet, and an old one has lists of versions that are gone.
    apt(&install).or_else(|_| apt(&["update"]).and_then(|()| apt(&install))).with_context(advice)
}

/// The packages of one Debian release, whatever release this machine runs. Nothing of the machine's own apt
/// configuration is changed: lists and downloads are in our cache.
pub(crate) struct Release {
    directory: PathBuf,
}

impl Release {
    /// The release with this code name, such as `bookworm`, from the mirror that this machine's apt uses.
    pub(crate) fn open(codename: &str) -> Result<Self> {
        let directory = workspace::cache()?.join("debian").join(codename);
        for part in ["state/lists/partial", "cache/archives/partial"] {
            std::fs::create_dir_all(directory.join(part))?;
        }
        std::fs::write(directory.join("state/status"), "")?;
        std::fs::write(directory.join("apt.conf"), apt_configuration(&directory))?;
        let source = format!("deb [signed-by={KEYRING}] {} {codename} main\n", mirror()?);
        let sources = directory.join("sources.list");
        let release = Self { directory };
        if std::fs::read_to_string(&sources).ok().as_ref() != Some(&source) {
            std::fs::write(&sources, &source)?;
            if let Err(error) = exec::run(release.apt("apt-get").arg("update")) {
                std::fs::remove_file(&sources)?;
                return Err(error);
            }
        }
        Ok(release)
    }

    /// The directory into which the package was unpacked.
    pub(crate) fn unpacked(&self, package: &str) -> Result<PathBuf> {
        let unpacked = self.directory.join("unpacked").join(package);
        if unpacked.is_dir() {
            return Ok(unpacked);
        }
        let download = self.directory.join("download").join(package);
        std::fs::create_dir_all(&download)?;
        let fetch = || exec::run(self.apt("apt-get").current_dir(&download).args(["download", package]));
        fetch().or_else(|_| exec::run(self.apt("apt-get").arg("update")).and_then(|()| fetch()))?;
        let archive = std::fs::read_dir(&download)?.filter_map(Result::ok).map(|entry| entry.path());
        let archive = archive.filter(|path| path.extension().is_some_and(|e| e == "deb")).max();
        let archive = archive.with_context(|| format!("apt-get downloaded no package {package}"))?;
        // Under its name only when it is complete.
        let unfinished = self.directory.join(format!("unpacking-{}", std::process::id()));
        exec::run(Command::new("dpkg-deb").arg("--extract").arg(&archive).arg(&unfinished))?;
        std::fs::create_dir_all(self.directory.join("unpacked"))?;
        std::fs::rename(&unfinished, &unpacked)?;
        std::fs::remove_dir_all(&download)?;
        Ok(unpacked)
    }

    /// The packages that `package` depends on, in its order. One of alternatives stands for all of them.
    pub(crate) fn dependencies(&self, package: &str) -> Result<Vec<String>> {
        let text = exec::capture(self.apt("apt-cache").args(["depends", package]))?;
        Ok(text.lines().filter_map(|line| line.trim().strip_prefix("Depends: ")).map(str::to_owned).collect())
    }

    /// Of the packages whose names match this regular expression, the one with the highest version.
    pub(crate) fn newest(&self, names: &str) -> Result<Option<String>> {
        let text = exec::capture(self.apt("apt-cache").args(["search", "--names-only", names]))?;
        Ok(newest_in(&text).map(str::to_owned))
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", self.directory.join("apt.conf"));
        command
    }
}

/// Has apt keep to `directory`. What else the machine's apt is configured with, such as a proxy, stays in force.
fn apt_configuration(directory: &Path) -> String {
    let directory = directory.display();
    format!(
        "Dir::State \"{directory}/state\";
Dir::State::status \"{directory}/state/status\";
Dir::Cache \"{directory}/cache\";
Dir::Etc::SourceList \"{directory}/sources.list\";
Dir::Etc::SourceParts \"/dev/null\";
// The unprivileged user that apt downloads as cannot write into our cache.
APT::Sandbox::User \"root\";
"
    )
}

/// The Debian mirror that this machine's apt is configured with.
pub(crate) fn mirror() -> Result<String> {
    ensure!(
        exec::find("apt-get").is_some() && Path::new(KEYRING).exists(),
        "this task needs a machine that runs Debian"
    );
    let targets = ["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Label: Debian"];
    let text = exec::capture(Command::new("apt-get").args(targets))?;
    let first = text.lines().next().context("apt on this machine is configured with no Debian mirror")?;
    Ok(first.to_owned())
}

/// Of the packages in apt-cache's "name - description" lines, whose names differ only in the numbers of a version, the
/// one with the highest.
fn newest_in(lines: &str) -> Option<&str> {
    let numbers = |name: &&str| -> Vec<u64> {
        name.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
    };
    lines.lines().filter_map(|line| line.split_whitespace().next()).max_by_key(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_package_has_the_highest_numbers_not_the_last_letters() {
        let lines = "linux-image-6.18.9+deb13-cloud-amd64 - Linux 6.18.9 for x86-64 cloud (signed)\n\
                     linux-image-6.18.15+deb13-cloud-amd64 - Linux 6.18.15 for x86-64 cloud (signed)\n\
                     linux-image-6.18.5+deb13-cloud-amd64 - Linux 6.18.5 for x86-64 cloud (signed)\n";
        assert_eq!(newest_in(lines), Some("linux-image-6.18.15+deb13-cloud-amd64"));
        assert_eq!(newest_in(""), None);
    }
}
