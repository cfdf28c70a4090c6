//! XDP in front of TC: what it must finish, what it must leave, and that the two together do what TC does alone.

use anyhow::{Result, ensure};
use aya::programs::{ProgramError, TestRun as _, TestRunOptions, Xdp};
use bytes::Bytes;
use lb_common::abi::{Reason, XdpDevice, XdpFlags, XdpState};

use super::{
    Dataplane, Interface, Verdict,
    dataplane::{Arrival, Outcome},
    packet::ETHERNET,
    row::Exchange,
};

/// What the program writes in front of packets that it has translated for the stack: the node's cookie.
pub const MARK: u64 = 0x0123_4567_89ab_cdef;

/// What an XDP program says (`enum xdp_action`, `include/uapi/linux/bpf.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// `XDP_DROP`.
    Drop,
    /// `XDP_PASS`.
    Pass,
    /// `XDP_TX`: back out of the device that it came by.
    Return,
    /// `XDP_REDIRECT`.
    Redirect,
    /// Anything else.
    Other(u32),
}

impl From<u32> for Action {
    fn from(number: u32) -> Self {
        match number {
            1 => Self::Drop,
            2 => Self::Pass,
            3 => Self::Return,
            4 => Self::Redirect,
            other => Self::Other(other),
        }
    }
}

/// What the program made of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XdpOutcome {
    /// Its verdict.
    pub action: Action,
    /// The packet after it.
    pub packet: Bytes,
    /// What it wrote in front of the packet.
    pub mark: Option<u64>,
    /// Nanoseconds that one run took, the average over all repetitions.
    pub nanoseconds: u64,
}

impl Dataplane {
    /// The program.
    pub fn xdp_program(&self) -> &Xdp {
        self.loaded.program("uplink_xdp").expect("the loader loads all programs").try_into().expect("an XDP program")
    }

    /// Says of both uplinks that their drivers can send what XDP redirects to them, or that they have no XDP.
    pub fn set_xdp(&mut self, redirects: bool) -> Result<()> {
        let device = if redirects {
            XdpDevice { state: XdpState::Native as u32, flags: XdpFlags::REDIRECT, detail: 0 }
        } else {
            XdpDevice::default()
        };
        for interface in [Interface::Uplink, Interface::Narrow] {
            let index = self.world.index(interface);
            self.loaded.xdp_devices().set(index, device)?;
        }
        Ok(())
    }

    /// Runs the XDP program on a packet, `repeat` times on what it left of it.
    pub fn run_xdp(&self, arrival: &Arrival, repeat: u32) -> Result<XdpOutcome, ProgramError> {
        let length = u32::try_from(arrival.packet.len()).expect("a packet");
        // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let ctx = [0, length, 0, self.world.index(arrival.interface), 0, 0].map(u32::to_ne_bytes).concat();
        let mut out = vec![0; arrival.packet.len() + 256];
        let result = self.xdp_program().test_run(TestRunOptions {
            data_in: Some(&arrival.packet),
            data_out: Some(&mut out),
            ctx_in: Some(&ctx),
            repeat,
            ..TestRunOptions::default()
        })?;
        out.truncate(usize::try_from(result.data_size_out).expect("a length"));
        // The kernel gives what is in front of the packet as its start. No verdict changes the length.
        let mut mark = None;
        if out.len() > arrival.packet.len() {
            let front: Vec<u8> = out.drain(..out.len() - arrival.packet.len()).collect();
            mark = Some(u64::from_ne_bytes(front.try_into().expect("the length of the mark")));
        }
        Ok(XdpOutcome {
            action: result.return_value.into(),
            packet: out.into(),
            mark,
            nanoseconds: u64::try_from(result.duration.as_nanos()).expect("not centuries"),
        })
    }
}

impl Exchange {
    /// Shows the packet to XDP and, where that leaves it, to TC. Fails where XDP leaves what it should finish, or the
    /// other way round.
    pub(super) fn run_at_xdp(&self, dataplane: &Dataplane) -> Result<Outcome> {
        // XDP is before any segments are put together, and on no promiscuous device: it does not see the device's address.
        if self.arrival.gso_size != 0 || self.arrival.packet[..6] != self.arrival.interface.mac() {
            return Ok(dataplane.run(&self.arrival, 1)?);
        }
        let before = dataplane.counters();
        let XdpOutcome { action, packet, mark, nanoseconds } = dataplane.run_xdp(&self.arrival, 1)?;
        let outcome = |verdict| Ok(Outcome { verdict, packet: packet.clone(), nanoseconds });
        if !self.is_for_xdp() {
            ensure!(action == Action::Pass, "XDP did not leave the packet: {action:?}");
            ensure!(packet == self.arrival.packet, "XDP passed the packet on, and changed it");
            ensure!(mark.is_none(), "XDP left the packet, and marked it");
            ensure!(dataplane.counters() == before, "XDP left the packet, and counted it");
            return Ok(dataplane.run(&self.arrival, 1)?);
        }
        match action {
            Action::Drop => outcome(Verdict::Drop),
            Action::Return | Action::Redirect => {
                let returns = self.output[6..12] == self.arrival.interface.mac();
                ensure!((action == Action::Return) == returns, "{action:?} by another device than {returns}");
                outcome(Verdict::Redirect)
            }
            Action::Pass => {
                ensure!(packet != self.arrival.packet, "XDP left the packet");
                ensure!(mark == Some(MARK), "TC must know that the packet is translated: {mark:x?}");
                outcome(Verdict::Next)
            }
            Action::Other(_) => outcome(Verdict::Other(-1)),
        }
    }

    /// Whether XDP can do what must be done with the packet.
    fn is_for_xdp(&self) -> bool {
        let policy = |reason: &Reason| {
            matches!(
                reason,
                Reason::NoLocalEndpoints
                    | Reason::SourceNotAllowed
                    | Reason::UnallocatedClusterIp
                    | Reason::TablesInconsistent
                    | Reason::FrontendRaced
                    | Reason::SnatPortsExhausted
            )
        };
        match self.verdict {
            // The rest are the way's drops: XDP leaves what it cannot send.
            Verdict::Drop => self.counted.iter().any(policy),
            // Refusals count; a neighbour that is not known is the kernel's to find; and a pod's interface is no uplink.
            Verdict::Redirect => {
                self.counted.is_empty()
                    && self.ignored == 0
                    && self.output[6..12] != Interface::Pod.mac()
                    && is_plain(&self.arrival.packet)
            }
            Verdict::Next => self.output != self.arrival.packet && is_plain(&self.arrival.packet),
            Verdict::Other(_) => false,
        }
    }
}

/// Whether it is no fragment, and a TCP or UDP header follows an IP header without options, and that an Ethernet header without
/// tags.
fn is_plain(frame: &[u8]) -> bool {
    match frame.get(ETHERNET - 2..) {
        Some([0x08, 0x00, ip @ ..]) => {
            let is_fragment = ip.get(6..8).is_none_or(|field| field[0] & 0x3f != 0 || field[1] != 0);
            ip.first() == Some(&0x45) && matches!(ip.get(9), Some(6 | 17)) && !is_fragment
        }
        Some([0x86, 0xdd, ip @ ..]) => matches!(ip.get(6), Some(6 | 17)),
        _ => false,
    }
}
