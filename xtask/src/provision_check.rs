//! `cargo xtask provision-check`: the provisioning script in a Debian that has nothing yet.
//!
//! What is not in the script or in `cargo xtask setup` is not there, so a forgotten prerequisite shows. The root is
//! made by debootstrap below the build directory; its mounts are in a mount namespace that ends with the check.

use std::path::Path;

use anyhow::{Context, Result};

use crate::{debian, exec, setup, workspace};

pub(crate) const AFTER_HELP: &str = "\
What is not committed is not in the clone. Packages, the Rust toolchain, crates and bpf-linker are fetched or compiled anew,
which takes minutes. The root is target/provision-check; it is removed at the end, or left to be looked at where a step fails.
";

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The Debian release, by its code name; trixie (13) is the first that has rustup
    #[arg(long, default_value = "trixie")]
    release: String,
    /// What to run in the clone of HEAD once it is provisioned
    #[arg(last = true, default_values = ["cargo", "xtask", "build"])]
    command: Vec<String>,
}

/// Where the clone is, in the new root.
const CLONE: &str = "root/lb";
/// Runs as process 1 of its own namespaces: $1 is the new root, the rest is the command.
const ENTER: &str = r#"
set -e
root=$1; shift
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount --rbind /dev "$root/dev"
exec chroot "$root" "$@"
"#;
const IN_CLONE: &str = r#"cd "/$0" && ./xtask/provision.sh && exec "$@""#;

pub(crate) fn main(options: &Options) -> Result<()> {
    setup::program(debian::DEBOOTSTRAP)?;
    let root = workspace::target().join("provision-check");
    remove(&root)?;
    exec::run(
        exec::as_root("debootstrap")
            .args(["--variant=minbase", "--include=ca-certificates", "--keyring", debian::KEYRING, &options.release])
            .arg(&root)
            .arg(debian::mirror()?),
    )?;
    take_over_network_settings(&root)?;
    exec::run(
        exec::as_root("git").args(["clone", "--quiet", "--no-hardlinks"]).arg(workspace::root()).arg(root.join(CLONE)),
    )?;

    let mut command = exec::as_root("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "--", "sh", "-c", ENTER, "sh"]).arg(&root);
    command.args(["env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"]);
    command.args(
        std::env::vars().filter(|(name, _)| reaches_registries(name)).map(|(name, value)| format!("{name}={value}")),
    );
    command.args(["sh", "-c", IN_CLONE, CLONE]).args(&options.command);
    exec::run(&mut command)?;
    remove(&root)
}

/// Whether the variable tells how registries are reached from this machine: a proxy, a mirror, a certificate.
fn reaches_registries(variable: &str) -> bool {
    const PREFIXES: [&str; 7] =
        ["RUSTUP_DIST", "RUSTUP_UPDATE", "CARGO_HTTP", "CARGO_NET", "CARGO_REGISTR", "CARGO_SOURCE", "SSL_CERT"];
    let name = variable.to_uppercase();
    name.ends_with("_PROXY")
        || matches!(name.as_str(), "GOPROXY" | "PIP_INDEX_URL" | "PIP_FIND_LINKS")
        || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Name servers, certificate authorities and apt's proxies are the machine's, not a matter of provisioning.
fn take_over_network_settings(root: &Path) -> Result<()> {
    let copy = |from: &Path, to: &str| exec::run(exec::as_root("cp").arg("--dereference").arg(from).arg(root.join(to)));
    copy(Path::new("/etc/resolv.conf"), "etc/resolv.conf")?;
    for (directory, extension) in [("/usr/local/share/ca-certificates", "crt"), ("/etc/apt/apt.conf.d", "proxy")] {
        for entry in std::fs::read_dir(directory).into_iter().flatten() {
            let path = entry.with_context(|| directory.to_owned())?.path();
            if path.to_string_lossy().ends_with(extension) {
                copy(&path, directory.trim_start_matches('/'))?;
            }
        }
    }
    let cargo = std::env::home_dir().unwrap_or_default().join(".cargo/config.toml");
    if cargo.is_file() {
        exec::run(exec::as_root("mkdir").arg("-p").arg(root.join("root/.cargo")))?;
        copy(&cargo, "root/.cargo/config.toml")?;
    }
    exec::run(exec::as_root("chroot").arg(root).arg("update-ca-certificates"))
}

fn remove(root: &Path) -> Result<()> {
    // One file system: should anything be mounted in there after all, it is not ours to empty.
    exec::run(exec::as_root("rm").args(["-rf", "--one-file-system"]).arg(root))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_variables_about_the_network_enter_the_clean_root() {
        for name in ["https_proxy", "RUSTUP_DIST_SERVER", "CARGO_REGISTRIES_CRATES_IO_PROTOCOL", "SSL_CERT_FILE"] {
            assert!(reaches_registries(name), "{name}");
        }
        for name in ["RUSTUP_TOOLCHAIN", "CARGO", "CARGO_HOME", "PATH", "LD_LIBRARY_PATH", "RUSTUP_AUTO_INSTALL"] {
            assert!(!reaches_registries(name), "{name}");
        }
    }
}
