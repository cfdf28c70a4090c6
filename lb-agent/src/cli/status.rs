use std::path::PathBuf;

use anyhow::Result;
use lb_agent::{
    dataplane::{Capacities, FamilyMaps, KernelMaps, Scraper},
    loader::{self, Attached, LoaderError, Pins, XdpDevices, XdpPlace},
    model::Family,
};
use lb_common::abi::{ABI_VERSION, XdpFlags, XdpState};
use serde::Serialize;

use super::{
    drops::ReasonCount,
    hooks::{self, Hook, device},
    output::{OutputArguments, table},
    view::View,
};

/// The data plane of this node.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    /// Version of the maps' layout.
    abi_version: u32,
    /// Directory of the pins.
    pins: PathBuf,
    /// Process id of the agent, if one runs and can be seen from here.
    agent: Option<u32>,
    /// Devices of `--devices` that the agent found missing last.
    missing_devices: Vec<String>,
    hooks: Vec<AttachedHook>,
    xdp: Vec<XdpUplink>,
    tables: Vec<TableFill>,
    counters: Vec<ReasonCount>,
}

/// A place where one of our programs is attached.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct AttachedHook {
    /// Name of a device, or `cgroup`. `<device N?>` and `<cgroup?>` are gone.
    target: String,
    /// `ingress`, `egress`, `xdp native` or `xdp generic`, or the name of the socket call.
    hook: &'static str,
    /// Name of the program; `<program N?>` where it is of an agent that did not come to its end.
    program: String,
    program_id: u32,
}

/// How far XDP came on an uplink.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct XdpUplink {
    /// Name of the device; `<device N?>` is gone.
    device: String,
    /// `native`, `generic`, or why it is neither.
    state: &'static str,
    /// The same for people.
    reason: String,
    /// Whether XDP of other uplinks sends packets by this one.
    sends_redirected: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct TableFill {
    /// Name of the map.
    name: &'static str,
    /// Elements in use.
    used: u32,
    capacity: u32,
}

pub(super) fn show(pins: &Pins, output: &OutputArguments) -> Result<()> {
    // First, since it tells best whether there is a data plane.
    let mut tables = tables::<[u8; 4]>(pins)?;
    tables.extend(self::tables::<[u8; 16]>(pins)?);
    let scraper = Scraper::open(pins)?;
    let counted = scraper.read_tables()?.into_iter();
    let counted: Vec<_> =
        counted.map(|fill| TableFill { name: fill.table, used: fill.used, capacity: fill.capacity }).collect();
    tables.extend(counted);
    let status = Status {
        abi_version: ABI_VERSION,
        pins: pins.root().to_owned(),
        agent: pins.agent(),
        missing_devices: pins.missing_devices(),
        hooks: hooks(pins)?,
        xdp: xdp(pins)?,
        tables,
        counters: scraper.read_reasons()?.into_iter().map(ReasonCount::new).collect(),
    };
    output.print("Status", &status, || status.text())
}

/// The tables that the agent alone writes. What others the kernel counts.
fn tables<A: Family>(pins: &Pins) -> Result<Vec<TableFill>>
where
    KernelMaps: FamilyMaps<A>,
{
    let maps = KernelMaps::open(|map| pins.open(map))?;
    let Capacities { frontends, services, slots, backends, source_ranges } = FamilyMaps::<A>::capacities(&maps);
    let view = View::<A>::read(pins)?;
    let names = A::TABLES;
    let fill = |name, used: usize, capacity| Ok(TableFill { name, used: u32::try_from(used)?, capacity });
    [
        fill(names.frontends, view.existing.frontends.len(), frontends),
        fill(names.services, view.services.len(), services),
        fill(names.slots, view.existing.slots.len(), slots),
        fill(names.backends, view.backends.len(), backends),
        fill(names.source_ranges, view.existing.source_ranges.len(), source_ranges),
    ]
    .into_iter()
    .collect()
}

fn hooks(pins: &Pins) -> Result<Vec<AttachedHook>> {
    let hooks = hooks::attached(pins)?.into_iter().map(|Hook { attached, program, program_id }| {
        let (target, hook) = match attached {
            Attached::Cgroup(hook, 0) => ("<cgroup?>".to_owned(), hook.program),
            Attached::Cgroup(hook, _) => ("cgroup".to_owned(), hook.program),
            Attached::Device(direction, index) => (device(index), direction.name()),
            Attached::Xdp(XdpPlace::Native, index) => (device(index), "xdp native"),
            Attached::Xdp(XdpPlace::Generic, index) => (device(index), "xdp generic"),
        };
        let program = program.map_or_else(|| format!("<program {program_id}?>"), ToOwned::to_owned);
        AttachedHook { target, hook, program, program_id }
    });
    Ok(hooks.collect())
}

fn xdp(pins: &Pins) -> Result<Vec<XdpUplink>> {
    let devices = match XdpDevices::open(pins) {
        // Pinned by an agent that had no XDP yet.
        Err(LoaderError::NotPinned { .. }) => return Ok(Vec::new()),
        devices => devices?.read()?,
    };
    let uplinks = devices.into_iter().map(|(index, found)| XdpUplink {
        device: device(index),
        state: XdpState::from_number(found.state).map_or("unknown", XdpState::name),
        reason: loader::describe_xdp(found),
        sends_redirected: found.flags & XdpFlags::REDIRECT != 0,
    });
    Ok(uplinks.collect())
}

impl Status {
    fn text(&self) -> String {
        let Self { abi_version, pins, agent, missing_devices, hooks, xdp, tables, counters } = self;
        let missing = match &missing_devices[..] {
            [] => String::new(),
            names => {
                format!("\nError: --devices {}: there is no such device, or none that can be served", names.join(", "))
            }
        };
        let agent = agent.map_or_else(|| "not running".to_owned(), |pid| format!("running, pid {pid}"));
        let hooks = table(
            &["TARGET", "HOOK", "PROGRAM", "ID"],
            hooks.iter().map(|hook| {
                vec![hook.target.clone(), hook.hook.to_owned(), hook.program.clone(), hook.program_id.to_string()]
            }),
        );
        let xdp = table(
            &["UPLINK", "XDP", "REASON"],
            xdp.iter().map(|XdpUplink { device, state, reason, sends_redirected: _ }| {
                vec![device.clone(), (*state).to_owned(), reason.clone()]
            }),
        );
        let tables = table(
            &["TABLE", "USED", "CAPACITY", "FILL"],
            tables.iter().map(|TableFill { name, used, capacity }| {
                let percent = u64::from(*used) * 100 / u64::from(*capacity).max(1);
                vec![(*name).to_owned(), used.to_string(), capacity.to_string(), format!("{percent}%")]
            }),
        );
        let counters = table(&["REASON", "DISPOSITION", "COUNT"], counters.iter().map(ReasonCount::row));
        format!(
            "Agent: {agent}\nMaps:  {} (ABI version {abi_version}){missing}\n\n{hooks}\n\n{xdp}\n\n{tables}\n\n{counters}",
            pins.display()
        )
    }
}
