//! How many flows each backend has, counted anew for services that select by that (`least-conn`).
//!
//! The programs count what begins and nothing that ends, so that packets of known flows pay nothing. What lives is counted
//! here, from the flow tables, and written over what they counted: flows that ended, were evicted, or were counted twice
//! stop to count with that.
//!
//! What a socket was connected to by the socket hooks has no entry in a flow table; it counts for a flow until the socket is
//! closed. A datagram of a socket that is not connected counts until flows are counted next.
//!
//! Both directions of a flow are entries of the table, which know nothing of each other's state. Each counts for half a flow
//! while it lives: until its FIN or a RST passes, or until it was quiet for longer than the lifetime of its state.
//!
//! Where sockets cannot be counted, that they have no flows would send all that is new to those who have the most. So a
//! backend keeps what the table said that it has, less an eighth with each count, or has what was counted of its other
//! flows, if that is more. One count that fails changes little. But what nobody counts for long must not pile up: a
//! backend that comes would be given everything until it has as many flows as the others ever began.

use std::{collections::HashMap, io, time::Duration};

use aya::{Pod, maps::Map};
use lb_common::{
    abi::{Flow, LiveSocket, Load, LoadKey, TcpState, Tuple},
    lifetime,
};
use nix::time::{ClockId, clock_gettime};

use super::{
    MapError,
    seen::{Flows, Loads},
};
use crate::{
    jiffies::Jiffies,
    loader::{LiveSockets, LoaderError, Pins},
    model::Family,
};

/// What part of its flows a backend loses with each count without sockets: a half in 26 s.
const FORGOTTEN: u64 = 8;

/// Counts the flows of both families.
pub struct Recounter {
    v4: Tables<[u8; 4]>,
    v6: Tables<[u8; 16]>,
    sockets: Sockets,
    took: Duration,
}

/// Where the sockets are.
enum Sockets {
    /// Nobody looks at them.
    Nowhere,
    /// In the pinned maps of a data plane. To be loaded when it is needed.
    Pinned(Pins),
    Loaded(LiveSockets),
}

/// Why flows, or all of them, could not be counted.
#[derive(Debug, thiserror::Error)]
pub enum RecountError {
    /// A map failed.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The clock failed.
    #[error("the kernel's clock: {0}")]
    Clock(io::Error),
    /// The program that looks at sockets could not be loaded. All else was counted.
    #[error("sockets are not counted: {0}")]
    Program(#[from] LoaderError),
    /// It could not be run. All else was counted.
    #[error("sockets are not counted: {0}")]
    Sockets(io::Error),
}

impl std::fmt::Debug for Recounter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recounter").finish_non_exhaustive()
    }
}

/// What was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recount {
    /// Backends of which flows were counted since the last time, or had any then.
    pub backends: usize,
    /// Flows that they have.
    pub flows: u64,
}

struct Tables<A> {
    flows: Flows<A>,
    loads: Loads,
}

impl Recounter {
    /// Takes the maps from where `open` finds them, and looks at no sockets.
    pub fn open(mut open: impl FnMut(&'static str) -> Result<Map, LoaderError>) -> Result<Self, LoaderError> {
        let (v4, v6) = (Tables::open(&mut open)?, Tables::open(&mut open)?);
        Ok(Self { v4, v6, sockets: Sockets::Nowhere, took: Duration::ZERO })
    }

    /// Of the data plane at these pins, its sockets included.
    pub fn of_pins(pins: &Pins) -> Result<Self, LoaderError> {
        let recounter = Self::open(|map| pins.open(map))?;
        Ok(Self { sockets: Sockets::Pinned(pins.clone()), ..recounter })
    }

    /// Counts what lives now, and writes it. Looks at flows and sockets only where a backend's are of interest.
    pub fn recount(&mut self) -> Result<Recount, RecountError> {
        let began = time_on_cpu()?;
        let mut once = Duration::ZERO;
        let counted = self.count(&mut once);
        self.took = time_on_cpu()?.saturating_sub(began + once);
        counted
    }

    /// CPU time that the last count took, failed or not, without what is needed once only.
    pub fn took(&self) -> Duration {
        self.took
    }

    /// Adds to `once` the time that it took to load what will be there from now on.
    fn count(&mut self, once: &mut Duration) -> Result<Recount, RecountError> {
        let now = Jiffies::now().map_err(RecountError::Clock)?;
        let (v4, v6) = (self.v4.loads.read()?, self.v6.loads.read()?);
        if v4.is_empty() && v6.is_empty() {
            return Ok(Recount::default());
        }
        let (sockets, failure) = match self.sockets.load(once).and_then(|()| self.sockets.read()) {
            Ok(sockets) => (Some(sockets), None),
            Err(error) => (None, Some(error)),
        };
        let of = |is_v4: bool| {
            let sockets = sockets.as_ref()?.iter();
            Some(sockets.filter(move |socket| (socket.is_v4 != 0) == is_v4))
        };
        let [v4, v6] = [self.v4.recount(v4, of(true), now)?, self.v6.recount(v6, of(false), now)?];
        let counted = Recount { backends: v4.backends + v6.backends, flows: v4.flows + v6.flows };
        failure.map_or(Ok(counted), Err)
    }
}

fn time_on_cpu() -> Result<Duration, RecountError> {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID);
    time.map(Duration::from).map_err(|errno| RecountError::Clock(errno.into()))
}

impl Sockets {
    fn load(&mut self, once: &mut Duration) -> Result<(), RecountError> {
        if let Self::Pinned(pins) = self {
            let began = time_on_cpu()?;
            *self = Self::Loaded(LiveSockets::load(pins)?);
            *once += time_on_cpu()?.saturating_sub(began);
        }
        Ok(())
    }

    fn read(&self) -> Result<Vec<LiveSocket>, RecountError> {
        match self {
            Self::Loaded(sockets) => sockets.read().map_err(RecountError::Sockets),
            Self::Nowhere | Self::Pinned(_) => Ok(Vec::new()),
        }
    }
}

impl<A: Family> Tables<A>
where
    Tuple<A>: Pod,
    Flow<A>: Pod,
{
    fn open(open: &mut impl FnMut(&'static str) -> Result<Map, LoaderError>) -> Result<Self, LoaderError> {
        Ok(Self { flows: Flows::open(&mut *open)?, loads: Loads::open::<A>(&mut *open)? })
    }

    /// `before`: what the table held when the count began. `sockets`: `None` where they could not be counted.
    fn recount<'a>(
        &mut self,
        before: Vec<(LoadKey, Load)>,
        sockets: Option<impl Iterator<Item = &'a LiveSocket>>,
        now: Jiffies,
    ) -> Result<Recount, MapError> {
        if before.is_empty() {
            return Ok(Recount::default());
        }
        let mut halves: HashMap<LoadKey, u64> = before.iter().map(|(backend, _)| (*backend, 0)).collect();
        self.flows.visit(|tuples, flows| {
            for (tuple, flow) in tuples.iter().zip(flows) {
                let backend = LoadKey { backend: flow.backend, generation: flow.generation };
                if lives(tuple.protocol, flow, now)
                    && let Some(halves) = halves.get_mut(&backend)
                {
                    *halves += 1;
                }
            }
            Ok::<_, MapError>(())
        })?;
        let forget_by = if sockets.is_some() { 1 } else { FORGOTTEN };
        for LiveSocket { backend, generation, is_v4: _ } in sockets.into_iter().flatten() {
            let backend = LoadKey { backend: *backend, generation: *generation };
            if let Some(halves) = halves.get_mut(&backend) {
                *halves += 2;
            }
        }
        let mut counted = Recount { backends: before.len(), ..Recount::default() };
        for (backend, Load { flows }) in before {
            let kept = flows - flows.div_ceil(forget_by);
            let lives = halves.get(&backend).map_or(0, |halves| halves.div_ceil(2)).max(kept);
            counted.flows += lives;
            if lives == 0 {
                self.loads.remove(&backend)?;
            } else if lives != flows {
                self.loads.set(&backend, Load { flows: lives })?;
            }
        }
        Ok(counted)
    }
}

/// Whether a direction of a flow lives.
fn lives<A>(protocol: u32, flow: &Flow<A>, now: Jiffies) -> bool {
    flow.hooks != 0
        && flow.tcp_state & (TcpState::FIN | TcpState::RST) == 0
        && now.seconds_since(flow.last_seen) <= lifetime::of(protocol, flow.tcp_state)
}

#[cfg(test)]
mod tests {
    use lb_common::abi::{Hook, Protocol};

    use super::*;

    #[test]
    fn a_direction_lives_until_it_ends_or_is_quiet_for_too_long() {
        let now = Jiffies::now().expect("clocks");
        let (tcp, udp) = (Protocol::Tcp as u32, Protocol::Udp as u32);
        let (open, syn, fin, rst) = (TcpState::ESTABLISHED, TcpState::SYN, TcpState::FIN, TcpState::RST);
        let (uplink, nowhere) = (Hook::UplinkIngress as u8, 0);
        for (protocol, hooks, tcp_state, quiet, expected) in [
            (tcp, uplink, open | syn, 0, true),
            (tcp, uplink, open, 23 * 60 * 60, true),
            (tcp, uplink, open, 25 * 60 * 60, false),
            (tcp, uplink, syn, 55, true),
            (tcp, uplink, 0, 65, false),
            (tcp, uplink, open | fin, 0, false),
            (tcp, uplink, open | rst, 0, false),
            (udp, uplink, 0, 115, true),
            (udp, uplink, 0, 125, false),
            (tcp, nowhere, open, 0, false),
        ] {
            let flow = Flow::<[u8; 4]> { hooks, tcp_state, last_seen: now.ago(quiet), ..Flow::default() };
            assert_eq!(lives(protocol, &flow, now), expected, "{protocol} {hooks} {tcp_state} {quiet}");
        }
    }
}
