//! What must be mounted, and what an earlier agent left there.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::sys::statfs::{BPF_FS_MAGIC, CGROUP2_SUPER_MAGIC, statfs};

use super::Check;
use crate::loader::{self, Pins};

pub(super) fn bpffs(dir: &Path) -> Check {
    let shown = dir.display();
    let remedy = format!("do `mount -t bpf bpf {shown}` on the node, and mount it into the agent's container");
    match statfs(dir).map(|found| found.filesystem_type() == BPF_FS_MAGIC) {
        Ok(true) => Check::ok("bpffs", shown.to_string()),
        Ok(false) if fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()) => Check::failure(
            "bpffs",
            format!("{shown} is none, and not empty: one that is mounted there would hide what it holds"),
            "name an empty directory or a bpffs, as a rule --bpffs /sys/fs/bpf",
        ),
        Ok(false) if loader::has_sys_admin() => Check::ok("bpffs", format!("{shown}: the agent will mount one there")),
        Ok(false) => {
            Check::failure("bpffs", format!("{shown} is none, and without CAP_SYS_ADMIN none can be mounted"), remedy)
        }
        Err(errno) => Check::failure("bpffs", format!("{shown}: {errno}"), remedy),
    }
}

/// The cgroup of the socket programs, and its directory if it can be used.
pub(super) fn cgroup(wanted: Option<&Path>) -> (Check, Option<PathBuf>) {
    const REMEDY: &str = "mount it, `mount -t cgroup2 none DIR`, and say --cgroup DIR";
    let Ok(dir) = wanted.map_or_else(loader::cgroup2_root, |dir| Ok(dir.to_owned())) else {
        return (Check::failure("cgroup2", "not mounted", REMEDY), None);
    };
    let shown = dir.display().to_string();
    match statfs(&dir).map(|found| found.filesystem_type() == CGROUP2_SUPER_MAGIC) {
        Ok(true) => (Check::ok("cgroup2", shown), Some(dir)),
        Ok(false) => (Check::failure("cgroup2", format!("{shown} is no directory of a cgroup2"), REMEDY), None),
        Err(errno) => (Check::failure("cgroup2", format!("{shown}: {errno}"), REMEDY), None),
    }
}

/// What an earlier agent left.
pub(super) fn pins(pins: &Pins) -> Check {
    const CHECK: &str = "installed";
    let versions = match pins.versions() {
        Ok(versions) => versions,
        Err(error) => return Check::unknown(CHECK, error.to_string(), "look at it as root"),
    };
    if let Some(other) = versions.iter().find(|other| other.root() != pins.root()) {
        return Check::failure(
            CHECK,
            format!("{} is the data plane of an lb-agent with another layout of its maps", other.root().display()),
            "run `lb-agent cleanup`, which ends the connections that pass through it",
        );
    }
    match (versions.is_empty(), pins.agent()) {
        (true, _) => Check::ok(CHECK, "no"),
        (false, None) => Check::ok(CHECK, "a data plane, which the agent will take over"),
        (false, Some(pid)) => Check::warning(
            CHECK,
            format!("an lb-agent runs here, pid {pid}"),
            "stop it before you start another one: two do not work side by side",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Verdict, *};

    #[test]
    fn a_directory_of_another_file_system_is_no_cgroup() {
        let dir = tempfile::tempdir().expect("a directory");
        let (check, usable) = cgroup(Some(dir.path()));
        assert_eq!((check.verdict, usable), (Verdict::Failure, None));
        assert!(check.found.contains("no directory of a cgroup2") && check.remedy.is_some(), "{check:?}");
        let gone = dir.path().join("gone");
        assert_eq!(cgroup(Some(&gone)).0.verdict, Verdict::Failure);
        assert_eq!(bpffs(&gone).verdict, Verdict::Failure);
    }

    #[test]
    fn a_directory_that_holds_files_is_no_place_for_a_bpffs() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("theirs"), "").expect("written");
        let check = bpffs(dir.path());
        assert_eq!(check.verdict, Verdict::Failure);
        assert!(check.found.contains("not empty") && check.remedy.is_some(), "{check:?}");
        let error = Pins::create(dir.path()).expect_err("it would be hidden").to_string();
        assert!(error.starts_with(&format!("--bpffs {}: not a bpffs, and not empty", dir.path().display())), "{error}");
        assert!(dir.path().join("theirs").exists());
    }

    #[test]
    fn a_data_plane_of_another_version_is_in_the_way() {
        let dir = tempfile::tempdir().expect("a directory");
        let ours = Pins::new(dir.path());
        assert_eq!(pins(&ours).verdict, Verdict::Ok);
        fs::create_dir_all(ours.root()).expect("a directory");
        assert_eq!(pins(&ours), Check::ok("installed", "a data plane, which the agent will take over"));
        fs::create_dir_all(dir.path().join("lb/v1")).expect("a directory");
        let check = pins(&ours);
        assert_eq!(check.verdict, Verdict::Failure);
        assert!(check.found.contains("/lb/v1 ") && check.remedy.is_some_and(|remedy| remedy.contains("cleanup")));
    }
}
