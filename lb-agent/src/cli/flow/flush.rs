use anyhow::Result;
use aya::Pod;
use clap::Args;
use lb_agent::{
    dataplane::{FamilyMaps, Flows, KernelMaps},
    loader::Pins,
    model::Family,
};
use lb_common::abi::{self, Tuple};
use serde::Serialize;

use super::{super::output::OutputArguments, FlowFilter, Keys};

#[derive(Debug, Args)]
pub(in crate::cli) struct FlushArguments {
    #[command(flatten)]
    filter: FlowFilter,
    /// All flows of the node, where no filter says which.
    #[arg(long)]
    all: bool,
    /// Only count them.
    #[arg(long)]
    dry_run: bool,
}

/// No filter was given.
#[derive(Debug, thiserror::Error)]
#[error("say which flows, by --service, --client, --backend or another filter, or --all")]
pub(in crate::cli) struct NothingAsked;

/// What was removed.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Flushed {
    /// Nothing was changed.
    dry_run: bool,
    flows: u64,
}

/// Forgets flows: the next packet of a client starts a new one, with a backend that is eligible then.
pub(in crate::cli) fn flush(pins: &Pins, arguments: &FlushArguments, output: &OutputArguments) -> Result<()> {
    let FlushArguments { filter, all, dry_run } = arguments;
    if filter.is_open() && !all {
        return Err(NothingAsked.into());
    }
    let v4 = of_family::<[u8; 4]>(pins, filter, *dry_run)?;
    let v6 = of_family::<[u8; 16]>(pins, filter, *dry_run)?;
    let flushed = Flushed { dry_run: *dry_run, flows: v4 + v6 };
    output.print("FlowFlush", &flushed, || {
        let Flushed { dry_run, flows } = &flushed;
        format!(
            "{flows} flow{} {}",
            if *flows == 1 { "" } else { "s" },
            if *dry_run { "would be flushed" } else { "flushed" }
        )
    })
}

fn of_family<A: Family>(pins: &Pins, filter: &FlowFilter, dry_run: bool) -> Result<u64>
where
    KernelMaps: FamilyMaps<A>,
    Tuple<A>: Pod,
    abi::Flow<A>: Pod,
{
    let mut table = Flows::<A>::open(|map| pins.open(map))?;
    let mut count = 0;
    filter.visit::<A>(pins, |flows| {
        for (Keys { request, reply }, _) in flows {
            count += 1;
            if dry_run {
                continue;
            }
            // The request first: a packet in between makes a new flow, and not one without replies.
            for key in [request, reply].iter().flatten() {
                table.remove(key)?;
            }
        }
        Ok(())
    })?;
    Ok(count)
}
