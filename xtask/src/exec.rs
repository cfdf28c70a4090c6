//! External commands, each printed before it runs.

use std::ffi::OsStr;
use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Prints the command, dimmed on a terminal, as one could paste it into a shell.
pub(crate) fn announce(command: &Command) {
    eprintln!("{}", dim(&format!("$ {}", shell_line(command))));
}

/// Announces the command, runs it, and fails when it fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    announce(command);
    let status = command.status().with_context(|| cannot_start(command))?;
    if !status.success() {
        bail!("{} failed ({status})", program(command));
    }
    Ok(())
}

/// What the command prints on standard output; not announced, for questions to the machine.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let output = command.stderr(Stdio::inherit()).output().with_context(|| cannot_start(command))?;
    if !output.status.success() {
        bail!("{} failed ({})", program(command), output.status);
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("{} printed something that is not UTF-8", program(command)))
}

/// Where `name` is on PATH; the system directories count too, since a user's PATH on Debian lacks them.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| is_executable(candidate))
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|data| data.is_file() && data.mode() & 0o111 != 0)
}

/// Whether this process is root. Namespaces and eBPF need it.
pub(crate) fn is_root() -> bool {
    Path::new("/proc/self").metadata().is_ok_and(|data| data.uid() == 0)
}

/// `program` as root: itself when we are root, through sudo with our environment when not.
pub(crate) fn as_root(program: impl AsRef<OsStr>) -> Command {
    if is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.arg("--preserve-env").arg("--").arg(program);
    command
}

/// Says that a command could not be started, and of sudo how to do without it.
pub(crate) fn cannot_start(command: &Command) -> String {
    not_started(&program(command), find("sudo").is_some())
}

fn not_started(program: &str, has_sudo: bool) -> String {
    if program == "sudo" && !has_sudo { NO_SUDO.to_owned() } else { format!("cannot start {program}") }
}

/// That this needs root, which we are not, and sudo is not there.
pub(crate) const NO_SUDO: &str =
    "this needs root, and sudo is missing: do it as root, or install sudo; Debian has it in the package `sudo`";

fn program(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

fn shell_line(command: &Command) -> String {
    let variables = command.get_envs().filter_map(|(name, value)| Some((name, value?)));
    let mut words: Vec<String> =
        variables.map(|(name, value)| format!("{}={}", name.to_string_lossy(), quoted(value))).collect();
    words.push(quoted(command.get_program()));
    words.extend(command.get_args().map(quoted));
    words.join(" ")
}

/// `word` as a shell reads it back.
fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.into_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// `text` in a weaker colour where people read it.
pub(crate) fn dim(text: &str) -> String {
    let coloured = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    if coloured { format!("\x1b[2m{text}\x1b[0m") } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_it_can_be_pasted_into_a_shell() {
        let mut command = Command::new("go");
        command.env("CGO_ENABLED", "0").args(["build", "-ldflags", "-s -w", "it's", ""]);
        assert_eq!(shell_line(&command), r"CGO_ENABLED=0 go build -ldflags '-s -w' 'it'\''s' ''");
    }

    #[test]
    fn who_has_neither_root_nor_sudo_is_told_how_to_get_it() {
        assert!(
            not_started("sudo", false).contains("do it as root, or install sudo; Debian has it in the package `sudo`")
        );
        assert_eq!(not_started("sudo", true), "cannot start sudo");
        assert_eq!(not_started("go", false), "cannot start go");
    }
}
