//! Programs of others where ours will be.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::File,
    io,
    os::fd::AsFd as _,
    path::Path,
};

use aya::programs::loaded_programs;
use futures::TryStreamExt as _;

use super::Check;
use crate::{
    loader::{
        Device, Direction, Filter, LoaderError, Pins, SocketHook, bpf_filters, pinned_programs,
        syscall::{self, QueryTarget},
        xdp_program_at,
    },
    network::Network,
};

/// At most so many programs are named.
const NAMED: usize = 5;

const TC_REMEDY: &str = "let none of them translate what is for a Service; those that only filter or count may stay: ours run \
                         before programs at tcx, and before filters of clsact of a lower priority than 1";

/// What others attached, by device and to the cgroup.
pub(super) async fn checks(pins: &Pins, network: &Network, cgroup: Option<&Path>) -> Vec<Check> {
    let programs = Programs::read(pins);
    let mut checks = match on_devices(&programs).await {
        Ok(found) => {
            let uplinks = network.uplinks.iter().map(|device| of_device(&programs, &found, device));
            let mut checks: Vec<_> = uplinks.collect();
            checks.extend(of_pods(&programs, &found, &network.pods));
            checks
        }
        Err(error) => {
            vec![Check::unknown("device-programs", error.to_string(), "look at it with CAP_NET_ADMIN")]
        }
    };
    checks.extend(cgroup.map(|cgroup| of_cgroup(&programs, cgroup)));
    checks
}

/// Which programs are ours, and the names of all that can be seen.
struct Programs {
    ours: BTreeSet<u32>,
    /// Empty without `CAP_SYS_ADMIN`.
    names: HashMap<u32, String>,
}

impl Programs {
    fn read(pins: &Pins) -> Self {
        let seen = loaded_programs().map_while(Result::ok);
        let names = seen.filter_map(|program| Some((program.id(), program.name_as_str()?.to_owned()))).collect();
        Self { ours: pinned_programs(pins).into_keys().collect(), names }
    }

    fn is_foreign(&self, program: u32) -> bool {
        !self.ours.contains(&program)
    }

    fn name(&self, program: u32) -> String {
        match self.names.get(&program) {
            Some(name) if !name.is_empty() => format!("{name} ({program})"),
            _ => format!("program {program}"),
        }
    }

    fn list<'a>(&self, programs: impl IntoIterator<Item = (&'a str, u32)>) -> String {
        let all: Vec<_> =
            programs.into_iter().map(|(hook, program)| format!("{hook}: {}", self.name(program))).collect();
        let more = all.len().saturating_sub(NAMED);
        let named = all.into_iter().take(NAMED).collect::<Vec<_>>().join(", ");
        if more == 0 { named } else { format!("{named} and {more} more") }
    }
}

/// Programs of others, by interface index: where, and which.
type OnDevices = BTreeMap<u32, Vec<(&'static str, u32)>>;

async fn on_devices(programs: &Programs) -> Result<OnDevices, LoaderError> {
    let mut found = OnDevices::new();
    let foreign_filters = bpf_filters().await?.into_iter().filter(|filter| !filter.is_ours);
    for Filter { direction, device, program, .. } in foreign_filters {
        let hook = match direction {
            Direction::Ingress => "clsact ingress",
            Direction::Egress => "clsact egress",
        };
        found.entry(device).or_default().push((hook, program));
    }
    for (device, xdp) in links().await? {
        for (direction, hook) in Direction::ALL.into_iter().zip(["tcx ingress", "tcx egress"]) {
            // Before 6.6 there is no such hook.
            let attached = syscall::attached_programs(QueryTarget::Tcx(device), direction.attach_type());
            let foreign = attached.unwrap_or_default().into_iter().filter(|program| programs.is_foreign(*program));
            found.entry(device).or_default().extend(foreign.map(|program| (hook, program)));
        }
        let foreign = xdp.filter(|program| programs.is_foreign(*program));
        found.entry(device).or_default().extend(foreign.map(|program| ("XDP", program)));
    }
    Ok(found)
}

/// Every device, with the program that it has at XDP.
async fn links() -> Result<Vec<(u32, Option<u32>)>, LoaderError> {
    let failed = |source| LoaderError::Kernel { path: "rtnetlink: list of devices".to_owned(), source };
    let (connection, handle, _) = rtnetlink::new_connection().map_err(failed)?;
    tokio::spawn(connection);
    let mut messages = std::pin::pin!(handle.link().get().execute());
    let mut links = Vec::new();
    while let Some(message) = messages.try_next().await.map_err(|error| failed(io::Error::other(error)))? {
        links.push((message.header.index, xdp_program_at(&message)));
    }
    Ok(links)
}

fn of_device(programs: &Programs, found: &OnDevices, device: &Device) -> Check {
    const CHECK: &str = "device-programs";
    let others = found.get(&device.index).map(Vec::as_slice).unwrap_or_default();
    let check = if others.is_empty() {
        Check::ok(CHECK, "none of others")
    } else {
        Check::warning(CHECK, programs.list(others.iter().copied()), TC_REMEDY)
    };
    check.of_device(&device.name)
}

/// A node has many pods, whose interfaces are alike: one check for all.
fn of_pods(programs: &Programs, found: &OnDevices, pods: &BTreeSet<Device>) -> Option<Check> {
    const CHECK: &str = "pod-programs";
    let has_others = |pod: &&Device| found.get(&pod.index).is_some_and(|others| !others.is_empty());
    let with: Vec<_> = pods.iter().filter(has_others).collect();
    if pods.is_empty() {
        return None;
    }
    let Some(first) = with.first() else {
        return Some(Check::ok(CHECK, format!("none of others on {} interfaces of pods", pods.len())));
    };
    let on_first = found.get(&first.index).into_iter().flatten().copied();
    let on_first = programs.list(on_first);
    let found = format!("on {} of {} interfaces of pods; on {}: {on_first}", with.len(), pods.len(), first.name);
    Some(Check::warning(CHECK, found, TC_REMEDY))
}

fn of_cgroup(programs: &Programs, cgroup: &Path) -> Check {
    const CHECK: &str = "cgroup-programs";
    let attached = || -> io::Result<Vec<(&str, u32)>> {
        let dir = File::open(cgroup)?;
        let mut found = Vec::new();
        for hook in SocketHook::ALL {
            let attached = syscall::attached_programs(QueryTarget::Cgroup(dir.as_fd()), hook.attach_type)?;
            found.extend(attached.into_iter().map(|program| (hook.program, program)));
        }
        Ok(found)
    };
    match attached() {
        Ok(mut found) => {
            found.retain(|(_, program)| programs.is_foreign(*program));
            if found.is_empty() {
                return Check::ok(CHECK, "none of others");
            }
            Check::warning(
                CHECK,
                programs.list(found),
                "let none of them translate addresses of Services: both would run, one after the other",
            )
        }
        Err(error) => Check::unknown(CHECK, format!("{}: {error}", cgroup.display()), "look at it with CAP_NET_ADMIN"),
    }
}
