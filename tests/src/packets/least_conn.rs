//! `least-conn`: new flows by the flows that backends have, and how these are counted.

use std::{collections::BTreeMap, net::SocketAddr};

use anyhow::{Context as _, Result, ensure};
use aya::Pod;
use lb_agent::{dataplane::FamilyMaps, dataplane::KernelMaps, model::Protocol};
use lb_common::abi::{Flow, Hook, Load, LoadKey, Tuple};

use super::{
    Dataplane, Interface, Packet, Place, Tables, TestService, Verdict,
    dataplane::{Arrival, MapAddress},
    rows::{Case, TARGET, at, quieten_all},
};

/// Port of the first flow of a test.
const FIRST_PORT: u16 = 40_000;

/// Tables of a Service with so many endpoints on this node, which differ by their ports.
fn tables(case: Case, endpoints: u16) -> Tables {
    let service = (0..endpoints).fold(case.service().least_conn(), |service: TestService, number| {
        service.endpoint(at(case.net.local_backend, TARGET + number), Place::Local)
    });
    Tables::new([service])
}

/// A flow of the pod: its port, and the endpoint that it was given, as a number from 0 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Begun {
    port: u16,
    endpoint: u16,
}

impl Begun {
    fn ends(self, case: Case) -> (SocketAddr, SocketAddr) {
        (at(case.net.pod, self.port), at(case.net.local_backend, TARGET + self.endpoint))
    }
}

/// Runs a program on a packet that it translates, and returns the destination's port.
fn translated(dataplane: &Dataplane, hook: Hook, packet: &Packet) -> Result<u16> {
    let packet = packet.bytes();
    let arrival = Arrival { hook, interface: Interface::Pod, packet, gso_size: 0 }.addressed();
    let outcome = dataplane.run(&arrival, 1)?;
    ensure!(outcome.verdict == Verdict::Next && outcome.packet != arrival.packet, "{outcome:?}");
    // Behind the Ethernet header, which says which, and a plain IP header.
    let port = if outcome.packet[12..14] == [0x86, 0xdd] { 14 + 40 + 2 } else { 14 + 20 + 2 };
    let port = outcome.packet.get(port..port + 2).context("a transport header")?;
    Ok(u16::from_be_bytes([port[0], port[1]]))
}

/// Begins a flow of the pod's.
fn begin(dataplane: &Dataplane, case: Case, port: u16) -> Result<Begun> {
    let first = case.first(at(case.net.pod, port), case.cluster_ip());
    let to = translated(dataplane, Hook::PodIngress, &first)?;
    Ok(Begun { port, endpoint: to.checked_sub(TARGET).context("an endpoint's port")? })
}

/// Begins so many flows, from this port on.
fn begin_many(dataplane: &Dataplane, case: Case, first: u16, flows: u16) -> Result<Vec<Begun>> {
    (first..first + flows).map(|port| begin(dataplane, case, port)).collect()
}

/// How many of these flows each of the endpoints was given.
fn shares(flows: &[Begun], endpoints: u16) -> Vec<usize> {
    (0..endpoints).map(|number| flows.iter().filter(|begun| begun.endpoint == number).count()).collect()
}

/// Ends a connection, with a FIN in each direction or with one RST.
fn end(dataplane: &Dataplane, case: Case, begun: Begun, with_reset: bool) -> Result<()> {
    let (pod, endpoint) = begun.ends(case);
    let (request, reply) = (case.later(pod, case.cluster_ip()), case.later(endpoint, pod));
    if with_reset {
        translated(dataplane, Hook::PodIngress, &request.tcp_header(|tcp| tcp.rst = true))?;
    } else {
        translated(dataplane, Hook::PodIngress, &request.tcp_header(|tcp| tcp.fin = true))?;
        translated(dataplane, Hook::PodEgress, &reply.tcp_header(|tcp| tcp.fin = true))?;
    }
    Ok(())
}

/// The elements of `LOADS*` and the endpoints that they are of.
fn backends<A: MapAddress>(dataplane: &Dataplane) -> Result<BTreeMap<u16, LoadKey>>
where
    Tuple<A>: Pod,
    Flow<A>: Pod,
    KernelMaps: FamilyMaps<A>,
{
    let existing = FamilyMaps::<A>::existing(&dataplane.maps)?.backends.into_iter();
    Ok(existing
        .map(|(index, backend)| (backend.port - TARGET, LoadKey { backend: index, generation: backend.generation }))
        .collect())
}

/// How many flows the table says that each endpoint has.
fn loads<A: MapAddress>(dataplane: &mut Dataplane, endpoints: u16) -> Result<Vec<u64>>
where
    Tuple<A>: Pod,
    Flow<A>: Pod,
    KernelMaps: FamilyMaps<A>,
{
    let of = backends::<A>(dataplane)?;
    let loads = A::loads(dataplane).read()?;
    let flows = |key: &LoadKey| loads.iter().find(|(backend, _)| backend == key).map_or(0, |(_, load)| load.flows);
    Ok((0..endpoints).map(|number| of.get(&number).map_or(0, flows)).collect())
}

/// Calls a test with the type of the case's addresses.
macro_rules! of_family {
    ($test:ident, $dataplane:expr, $case:expr) => {
        if $case.net.pod.is_ipv4() { $test::<[u8; 4]>($dataplane, $case) } else { $test::<[u8; 16]>($dataplane, $case) }
    };
}

/// Where endpoints have flows already, many more or fewer than there are new ones, each of these goes to the endpoint of
/// two that has fewer.
pub fn standing_flows_decide(dataplane: &mut Dataplane, case: Case) -> Result<()> {
    of_family!(standing_flows_decide_of, dataplane, case)
}

fn standing_flows_decide_of<A: MapAddress>(dataplane: &mut Dataplane, case: Case) -> Result<()>
where
    Tuple<A>: Pod,
    Flow<A>: Pod,
    KernelMaps: FamilyMaps<A>,
{
    const FLOWS: u16 = 1200;
    dataplane.forget()?;
    dataplane.fill(&tables(case, 4))?;
    for (endpoint, key) in backends::<A>(dataplane)? {
        let flows = [20_000, 0, 30_000, 10_000][usize::from(endpoint)];
        A::loads(dataplane).set(&key, Load { flows })?;
    }
    let shares = shares(&begin_many(dataplane, case, FIRST_PORT, FLOWS)?, 4);
    // Each of the 6 pairs of 4 endpoints is as likely: the least of all wins 3 of them, the next 2, the next 1, and the
    // one with the most flows none. Of n = 1200 that is 600, 400, 200 with standard deviations sqrt(n p (1-p)) of 17.3,
    // 16.3 and 12.9; the bounds are five of these, and as the ports are the same in every run, so is the outcome.
    for (endpoint, expected, bound) in [(0, 200, 65), (1, 600, 87), (2, 0, 0), (3, 400, 82)] {
        let share: usize = shares[endpoint];
        ensure!(share.abs_diff(expected) <= bound, "endpoint {endpoint} has {share}, expected {expected}: {shares:?}");
    }
    // What was counted is what was begun.
    let expected: Vec<_> =
        shares.iter().zip([20_000, 0, 30_000, 10_000]).map(|(new, standing)| standing + *new as u64).collect();
    assert_eq!(loads::<A>(dataplane, 4)?, expected);
    Ok(())
}

/// Flows to endpoints that had none are spread far more evenly than by their hashes.
pub fn flows_spread_evenly(dataplane: &mut Dataplane, case: Case) -> Result<()> {
    const FLOWS: u16 = 1600;
    const ENDPOINTS: u16 = 8;
    // 200 on average. By a hash alone the standard deviation would be sqrt(n p (1-p)) = 13.2. With two choices the most is
    // log2(ln 8) + O(1) = 1 + O(1) above the average however many flows there are (Berenbrink, Czumaj, Steger, Vöcking:
    // "Balanced allocations: the heavily loaded case", STOC 2000), and the fewest likewise in practice.
    const BOUND: usize = 5;
    dataplane.forget()?;
    dataplane.fill(&tables(case, ENDPOINTS))?;
    let flows = begin_many(dataplane, case, FIRST_PORT, FLOWS)?;
    let even = shares(&flows, ENDPOINTS);
    ensure!(even.iter().all(|share| share.abs_diff(200) <= BOUND), "{even:?}");
    // A known flow stays where it is.
    assert_eq!(begin(dataplane, case, flows[7].port)?, flows[7]);

    let mut by_hash = tables(case, ENDPOINTS);
    for service in &mut by_hash.services {
        service.service.balance = None;
    }
    dataplane.forget()?;
    dataplane.fill(&by_hash)?;
    let hashed = shares(&begin_many(dataplane, case, FIRST_PORT, FLOWS)?, ENDPOINTS);
    ensure!(hashed.iter().any(|share| share.abs_diff(200) > BOUND), "a hash does as well: {hashed:?}");
    Ok(())
}

/// Flows that have ended keep nobody off their endpoint once flows were counted; nor does what was counted wrong.
pub fn flows_that_end_free_their_place(dataplane: &mut Dataplane, case: Case) -> Result<()> {
    of_family!(flows_that_end_free_their_place_of, dataplane, case)
}

fn flows_that_end_free_their_place_of<A: MapAddress>(dataplane: &mut Dataplane, case: Case) -> Result<()>
where
    Tuple<A>: Pod,
    Flow<A>: Pod,
    KernelMaps: FamilyMaps<A>,
{
    const FLOWS: u16 = 200;
    dataplane.forget()?;
    dataplane.fill(&tables(case, 2))?;
    assert_eq!(dataplane.recount()?.backends, 0, "nobody's flows are of interest yet");
    let flows = begin_many(dataplane, case, FIRST_PORT, FLOWS)?;
    // Of two endpoints both are chosen from each time.
    assert_eq!(shares(&flows, 2), [100, 100]);
    assert_eq!(loads::<A>(dataplane, 2)?, [100, 100]);

    // Something counted wrong does not stay so.
    for (_, key) in backends::<A>(dataplane)? {
        A::loads(dataplane).set(&key, Load { flows: 5000 })?;
    }
    assert_eq!(dataplane.recount()?.flows, 200);
    assert_eq!(loads::<A>(dataplane, 2)?, [100, 100]);

    // Those of the first endpoint end, some by a FIN each way and some by a RST. A datagram flow ends by being quiet.
    let (first, others): (Vec<_>, Vec<_>) = flows.into_iter().partition(|begun| begun.endpoint == 0);
    match case.protocol {
        Protocol::Tcp => {
            for (number, begun) in first.iter().enumerate() {
                end(dataplane, case, *begun, number % 2 == 0)?;
            }
        }
        Protocol::Udp => {
            quieten_all(dataplane, 70)?;
            for begun in &others {
                let (pod, endpoint) = begun.ends(case);
                translated(dataplane, Hook::PodEgress, &case.later(endpoint, pod))?;
                assert_eq!(begin(dataplane, case, begun.port)?, *begun);
            }
            quieten_all(dataplane, 70)?;
        }
    }
    dataplane.recount()?;
    let [freed, kept] = loads::<A>(dataplane, 2)?[..] else { unreachable!("two endpoints") };
    assert_eq!((freed, kept), (0, 100));
    // So many new ones go there that both have the same, and then to both.
    let new = begin_many(dataplane, case, FIRST_PORT + FLOWS, 120)?;
    assert_eq!(shares(&new[..100], 2), [100, 0]);
    assert_eq!(shares(&new[100..], 2), [10, 10]);
    Ok(())
}
