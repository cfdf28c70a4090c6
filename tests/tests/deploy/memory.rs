//! What the pods ask for is what agents use.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use lb_tests::{lab::sandbox::Sandbox, trial::measured};

use crate::{installed::with_installed, render::container};

/// Bytes in the units that `/proc` and Kubernetes use.
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// The number after a name in a file of `/proc`.
fn number(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

/// What the maps that a process holds take in the kernel, in bytes. It is accounted to the process that made them, with
/// its own memory.
fn maps(process: &Path) -> u64 {
    let entries = fs::read_dir(process.join("fdinfo")).expect("it runs");
    let texts = entries.filter_map(|entry| fs::read_to_string(entry.expect("it can be read").path()).ok());
    let by_id: BTreeMap<u64, u64> =
        texts.filter_map(|text| Some((number(&text, "map_id")?, number(&text, "memlock")?))).collect();
    assert!(by_id.len() > 20, "it holds its maps: {by_id:?}");
    by_id.values().sum()
}

pub(crate) fn the_memory_that_a_pod_asks_for_is_what_an_agent_uses(sandbox: Sandbox) {
    with_installed(sandbox, true, |installed| {
        let mut agent = installed.start_agent();
        agent.wait_ready(installed.node());
        let process = PathBuf::from(format!("/proc/{}", agent.id()));
        let status = fs::read_to_string(process.join("status")).expect("it runs");
        let (resident, maps) = (number(&status, "VmRSS").expect("it has memory") * KIB, maps(&process));
        measured(format!("resident {} MiB, maps {} MiB", resident / MIB, maps / MIB));

        let resources = &container(&installed.objects)["resources"];
        let asked =
            resources["requests"]["memory"].as_str().and_then(|text| text.strip_suffix("Mi")?.parse::<u64>().ok());
        let asked = asked.expect("a number of MiB") * MIB;
        assert!((maps + resident..2 * (maps + resident)).contains(&asked), "{asked} for {maps} and {resident}");
        // A limit would keep larger tables from being made.
        assert!(resources["limits"].is_null());
        assert!(agent.terminate().success());
    });
}
