//! Time of the TC programs, by `BPF_PROG_TEST_RUN`.
//!
//! A test run repeats on the packet that the run before it left, so an ordinary flow would be established for one run
//! only. Here flows form a ring: what one flow's packet is translated to is the next flow's packet. Every run then is
//! one of an established flow, another each time, and a ring is walked through as often as wanted. A chain of Services,
//! each the only endpoint of the one before it, gives a new flow in every run.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use aya::Pod;
use lb_agent::model::{Family, Protocol};
use lb_common::{
    abi::{Flow, FlowAction, FlowDirection, Hook, TcpState, Tuple, capacity},
    hash,
};

use super::{report::Samples, tiny::Tiny};
use crate::packets::{
    Dataplane, Interface, Net, Packet, Place, Tables, TestService, Verdict,
    dataplane::{Arrival, MapAddress},
    diff,
};

/// Established flows.
pub const FLOWS: u32 = 1 << 14;
/// New flows in one measurement.
const NEW_FLOWS: u16 = 1000;
/// Times around the ring in one measurement.
const LAPS: u32 = 8;
/// Runs of one measurement for packets that stay as they are.
const RUNS: u32 = FLOWS * LAPS;
/// Port of the client.
const CLIENT_PORT: u16 = 40_000;

/// The destination of the flow at a place in the ring.
fn station(net: &Net, place: u32) -> SocketAddr {
    let place = place % FLOWS;
    // Ports differ from one to the next, as they do between frontends and endpoints.
    let port = if place.is_multiple_of(2) { 80 } else { 8080 };
    SocketAddr::new(numbered(net, 0x64, place), port)
}

/// The address of a number in a block of 2^18 of the family.
fn numbered(net: &Net, block: u8, number: u32) -> IpAddr {
    match net.pod {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from_bits(u32::from_be_bytes([10, block, 0, 0]) + number)),
        IpAddr::V6(_) => {
            let start = Ipv6Addr::new(0xfd00, u16::from(block), 0, 0, 0, 0, 0, 0);
            IpAddr::V6(Ipv6Addr::from_bits(start.to_bits() + u128::from(number)))
        }
    }
}

/// Enters the ring, and the entry of the opposite direction of each of its flows, which is never met.
fn enter_ring<A: MapAddress + Family>(dataplane: &mut Dataplane, net: &Net) -> Result<()>
where
    Tuple<A>: Pod,
    Flow<A>: Pod,
{
    let address = |ip| A::from_ip(ip).context("of the family");
    let client = address(net.pod)?;
    let tuple = |place| -> Result<Tuple<A>> {
        let station = station(net, place);
        Ok(Tuple::new(client, CLIENT_PORT, address(station.ip())?, station.port(), Protocol::Tcp as u8))
    };
    for place in 0..FLOWS {
        let (from, to) = (tuple(place)?, tuple(place + 1)?);
        let flow = Flow {
            owner: hash::owner(&from),
            action: FlowAction::Stack as u8,
            hooks: Hook::PodIngress as u8,
            tcp_state: TcpState::ESTABLISHED,
            direction: FlowDirection::Request as u8,
            to,
            ..Flow::default()
        };
        A::flow_table(dataplane).insert(&from, &flow, 0)?;
        let opposite = Flow {
            owner: hash::owner(&to.reversed()),
            hooks: Hook::PodEgress as u8,
            direction: FlowDirection::Reply as u8,
            to: from.reversed(),
            ..flow
        };
        A::flow_table(dataplane).insert(&to.reversed(), &opposite, 0)?;
    }
    Ok(())
}

/// `count` Services in a chain: each is the only endpoint of the one before it. The last one leads out of it.
fn chain(net: &Net, count: u32) -> Tables {
    let at = |number| SocketAddr::new(numbered(net, 0x68, number), 80);
    Tables::new((0..count).map(|number| {
        let name = format!("{}-{number}", net.name.to_lowercase());
        TestService::new(&name, Protocol::Tcp, at(number)).endpoint(at(number + 1), Place::Remote)
    }))
}

/// A packet from the pod.
fn packet(net: &Net, to: SocketAddr) -> Packet {
    Packet::tcp(SocketAddr::new(net.pod, CLIENT_PORT), to)
}

fn arrival(packet: &Packet) -> Arrival {
    Arrival { hook: Hook::PodIngress, interface: Interface::Pod, packet: packet.bytes(), gso_size: 0 }.addressed()
}

/// Runs and checks the packet that comes out.
#[expect(clippy::cast_precision_loss, reason = "nanoseconds of one run")]
fn timed(dataplane: &Dataplane, input: &Packet, repeat: u32, expected: &Packet) -> Result<f64> {
    let outcome = dataplane.run(&arrival(input), repeat)?;
    ensure!(outcome.verdict == Verdict::Next, "{:?}", outcome.verdict);
    if let Some(difference) = diff::difference(&arrival(expected).packet, &outcome.packet) {
        anyhow::bail!("the programs do not do what is measured:\n{difference}");
    }
    Ok(outcome.nanoseconds as f64)
}

/// All measurements with a number of Services in the tables.
#[derive(Debug)]
pub struct Times {
    /// Services in the tables of each family.
    pub services: u32,
    /// The program that does nothing, with the loop around it.
    pub empty: Samples,
    /// The program that does one lookup, likewise.
    pub lookup: Samples,
    /// The rest, likewise.
    pub ours: Vec<Samples>,
}

fn enter_rings(dataplane: &mut Dataplane) -> Result<()> {
    enter_ring::<[u8; 4]>(dataplane, &Net::V4)?;
    enter_ring::<[u8; 16]>(dataplane, &Net::V6)
}

/// Fills the flow table of a family to three quarters and empties it again, in the order of its hash: what is entered
/// from then on lies scattered over all of the table's memory, as it does on a node that has run for days.
fn age<A: MapAddress + Family>(dataplane: &mut Dataplane, net: &Net) -> Result<()>
where
    Tuple<A>: Pod,
    Flow<A>: Pod,
{
    for number in 0..capacity::FLOWS / 4 * 3 {
        let from = A::from_ip(numbered(net, 0x70, number)).context("of the family")?;
        let tuple = Tuple::new(from, CLIENT_PORT, from, 9, Protocol::Tcp as u8);
        A::flow_table(dataplane).insert(&tuple, &Flow::default(), 0)?;
    }
    dataplane.forget()
}

/// Once more than whole laps around the ring: that the last flow was met shows in the packet.
fn lap(dataplane: &Dataplane, net: &Net) -> Result<f64> {
    let (first, second) = (packet(net, station(net, 0)), packet(net, station(net, 1)));
    timed(dataplane, &first, RUNS + 1, &second)
}

/// New flows to the first Service, each from another port of the client: one run for each, since the packet that a run
/// leaves is for the Service's endpoint. A single run is timed with more around it than one of many; the program that
/// does nothing tells how much (`empty`: its time in a loop), and that is taken off.
#[expect(clippy::cast_precision_loss, reason = "nanoseconds")]
fn new_flows_to_one(dataplane: &Dataplane, net: &Net, empty_program: &Tiny, empty: f64) -> Result<f64> {
    let (service, endpoint) = (numbered(net, 0x68, 0), numbered(net, 0x68, 1));
    let (mut ours, mut nothing) = (0.0, 0);
    for port in CLIENT_PORT + 1..=CLIENT_PORT + NEW_FLOWS {
        let to = |address| Packet::tcp(SocketAddr::new(net.pod, port), SocketAddr::new(address, 80));
        nothing += u64::from(empty_program.run(&to(service).bytes(), 1)?);
        ours += timed(dataplane, &to(service), 1, &to(endpoint))?;
    }
    Ok((ours - nothing as f64) / f64::from(NEW_FLOWS) + empty)
}

/// Measures `rounds` times, what is compared in turns.
pub fn measure(dataplane: &mut Dataplane, services: u32, rounds: u32) -> Result<Times> {
    let (empty_program, lookup_program) = (Tiny::empty()?, Tiny::lookup()?);
    let mut tables = chain(&Net::V4, services);
    tables.services.extend(chain(&Net::V6, services).services);
    dataplane.fill(&tables)?;

    let samples = |name: String| Samples::new(name, "ns");
    let mut times = Times {
        services,
        empty: samples("empty program".to_owned()),
        lookup: samples("one hash lookup".to_owned()),
        ours: Vec::new(),
    };
    let nets = [Net::V4, Net::V6];
    for net in nets {
        times.ours.push(samples(format!("{} TCP, established flow", net.name)));
        times.ours.push(samples(format!("{} TCP, established flow, aged table", net.name)));
        times.ours.push(samples(format!("{} TCP, unrelated packet", net.name)));
        times.ours.push(samples(format!("{} TCP, new flow, one Service", net.name)));
        times.ours.push(samples(format!("{} TCP, new flow, another Service each", net.name)));
    }
    enter_rings(dataplane)?;
    for _ in 0..rounds {
        let reference = packet(&Net::V4, station(&Net::V4, 0)).bytes();
        times.empty.values.push(empty_program.run(&reference, RUNS)?.into());
        times.lookup.values.push(lookup_program.run(&reference, RUNS)?.into());
        for (net, ours) in nets.iter().zip(times.ours.chunks_mut(5)) {
            let [established, _, unrelated, _, _] = ours else { unreachable!("five for each family") };
            established.values.push(lap(dataplane, net)?);
            let stranger = packet(net, SocketAddr::new(net.stranger, 80));
            unrelated.values.push(timed(dataplane, &stranger, RUNS, &stranger)?);
        }
    }
    // From here on the table's elements lie in no order.
    age::<[u8; 4]>(dataplane, &Net::V4)?;
    age::<[u8; 16]>(dataplane, &Net::V6)?;
    let empty = times.empty.median();
    for _ in 0..rounds {
        dataplane.forget()?;
        enter_rings(dataplane)?;
        for (net, ours) in nets.iter().zip(times.ours.chunks_mut(5)) {
            let [_, aged, _, to_one, new] = ours else { unreachable!("five for each family") };
            aged.values.push(lap(dataplane, net)?);
            // The same traffic whatever else is in the tables.
            to_one.values.push(new_flows_to_one(dataplane, net, &empty_program, empty)?);
            let runs = services.min(NEW_FLOWS.into());
            let link = |number| packet(net, SocketAddr::new(numbered(net, 0x68, number), 80));
            if services > 1 {
                new.values.push(timed(dataplane, &link(0), runs, &link(runs))?);
            }
        }
    }
    times.ours.retain(|samples| !samples.values.is_empty());
    Ok(times)
}
