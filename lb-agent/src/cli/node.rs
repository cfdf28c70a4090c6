use std::path::PathBuf;

use clap::{Args, builder::NonEmptyStringValueParser};
use lb_agent::network;
use lb_common::ports::Reserved;

use super::PinArguments;

/// Where the data plane is on this node, for `run`, and for who asks whether that would work.
#[derive(Debug, Args)]
pub(super) struct NodeArguments {
    #[command(flatten)]
    pub(super) pins: PinArguments,
    /// Cgroup whose processes reach Services by their sockets [default: the root of the cgroup2 hierarchy].
    #[arg(long, value_name = "DIR")]
    pub(super) cgroup: Option<PathBuf>,
    /// Uplinks, separated by commas [default: devices with a route out, the node's address, or an address of a NIC]. One
    /// that is not there is an error in the log and in `lb-agent status`, and is served when it comes.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = NonEmptyStringValueParser::new())]
    devices: Option<Vec<String>>,
    /// The API server's --service-node-port-range.
    #[arg(long, value_name = "FIRST-LAST", default_value = "30000-32767", value_parser = port_range)]
    node_port_range: Reserved,
}

impl NodeArguments {
    /// What the agent looks for in the node's network.
    pub(super) fn network(&self) -> network::Options {
        network::Options { devices: self.devices.clone(), node_ports: self.node_port_range }
    }
}

/// `FIRST-LAST`.
fn port_range(text: &str) -> Result<Reserved, String> {
    let expected = || format!("{text:?} is not FIRST-LAST with ports from 1 to 65535");
    let (first, last) = text.split_once('-').ok_or_else(expected)?;
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(expected);
    let (first, last) = (port(first)?, port(last)?);
    if first > last { Err(format!("{first} is above {last}")) } else { Ok(Reserved { first, last }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_range_is_two_ports_in_order() {
        assert_eq!(port_range("30000-32767"), Ok(Reserved { first: 30000, last: 32767 }));
        assert_eq!(port_range("7-7"), Ok(Reserved { first: 7, last: 7 }));
        for wrong in ["", "30000", "0-7", "7-70000", "9-8", "a-b", "30000:32767", "-5"] {
            assert!(port_range(wrong).is_err(), "{wrong}");
        }
    }
}
