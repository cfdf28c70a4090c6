//! What the programs write for whoever watches, byte by byte, and that they write nothing for nobody.

use std::{
    net::{IpAddr, SocketAddr},
    ptr, slice, thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use aya::maps::{Array, MapData, PerCpuArray, RingBuf};
use lb_agent::{
    dataplane::{FamilyMaps, KernelMaps},
    jiffies::Jiffies,
    loader::Loaded,
    watch::monotonic,
};
use lb_common::abi::{Event, EventCounts, EventKind, EventPlace, FlowDirection, Hook, Monitor, Reason, capacity, maps};

use super::{
    Dataplane, Interface, Net, Packet, Verdict,
    dataplane::Arrival,
    rows::{Case, at},
    tables::network,
};

/// The maps of a watch.
#[expect(missing_debug_implementations, reason = "aya's maps have none")]
pub struct Events {
    switch: Array<MapData, Monitor>,
    counts: PerCpuArray<MapData, EventCounts>,
    ring: RingBuf<MapData>,
}

impl Events {
    pub(super) fn open(loaded: &mut Loaded) -> Result<Self> {
        Ok(Self {
            switch: loaded.take(maps::MONITOR)?.try_into()?,
            counts: loaded.take(maps::EVENT_COUNTS)?.try_into()?,
            ring: loaded.take(maps::EVENTS)?.try_into()?,
        })
    }

    /// Every kind, each one, as many as there are, for a minute from now.
    fn everything() -> Result<Monitor> {
        let kinds = EventKind::ALL.iter().fold(0, |kinds, kind| kinds | *kind as u32);
        Ok(Monitor { until: Jiffies::now()?.after(60), kinds, sample: 1, rate: u32::MAX, pad: 0 })
    }

    fn watch(&mut self, monitor: Monitor) -> Result<()> {
        Ok(self.switch.set(0, &monitor, 0)?)
    }

    /// The records that were written since the last time.
    fn take(&mut self) -> Vec<Vec<u8>> {
        let mut records = Vec::new();
        while let Some(record) = self.ring.next() {
            records.push(record.to_vec());
        }
        records
    }

    /// How many were written in this second, by whichever CPU, and lost: beyond the rate, and without room.
    fn counted(&self) -> Result<[u64; 3]> {
        let counts = self.counts.get(&0, 0)?;
        Ok(counts.iter().fold([0; 3], |[written, over, full], cpu| {
            [written + cpu.written, over + cpu.over_rate, full + cpu.no_room]
        }))
    }
}

/// An event as it lies in memory.
fn bytes(event: &Event) -> Vec<u8> {
    // SAFETY: `Event` has no padding, which the tests of its layout see to.
    unsafe { slice::from_raw_parts(ptr::from_ref(event).cast::<u8>(), size_of::<Event>()) }.to_vec()
}

fn wide(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

fn arrival(hook: Hook, interface: Interface, packet: &Packet) -> Arrival {
    Arrival { hook, interface, packet: packet.bytes(), gso_size: 0 }.addressed()
}

/// The only event that was written, which must be this one; its time aside, which must be between then and now.
fn assert_only(dataplane: &mut Dataplane, since: u64, expected: Event, what: &str) -> Result<()> {
    let records = dataplane.events.take();
    assert_eq!(records.len(), 1, "{what}: {records:?}");
    let time = records[0].first_chunk().map(|time| u64::from_ne_bytes(*time)).context("a time")?;
    assert!((since..=monotonic()?).contains(&time), "{what}: {since} {time}");
    assert_eq!(records[0], bytes(&Event { time, ..expected }), "{what}");
    Ok(())
}

/// Index of the only Service.
fn service_of(dataplane: &Dataplane, net: &Net) -> u32 {
    let first = |indices: Vec<u32>| indices.into_iter().next().expect("a service");
    if net.pod.is_ipv4() {
        let existing = <KernelMaps as FamilyMaps<[u8; 4]>>::existing(&dataplane.maps).expect("readable");
        first(existing.services.iter().map(|(index, _, _)| *index).collect())
    } else {
        let existing = <KernelMaps as FamilyMaps<[u8; 16]>>::existing(&dataplane.maps).expect("readable");
        first(existing.services.iter().map(|(index, _, _)| *index).collect())
    }
}

/// Each new flow, refusal and drop is one event with all that is known of it; packets of known flows are none.
pub fn events_are_exact(dataplane: &mut Dataplane, case: Case) -> Result<()> {
    let net = case.net;
    let (pod, client) = (at(net.pod, 40_000), at(net.client, 40_000));
    dataplane.forget()?;
    // Of the two endpoints, the first is on this node.
    let mut tables = case.two_backends();
    tables.services.iter_mut().for_each(|service| service.slices.truncate(1));
    tables.service_cidrs = vec![network(net.cluster_ip, if net.pod.is_ipv4() { 16 } else { 64 })];
    dataplane.fill(&tables)?;
    dataplane.events.watch(Monitor::default())?;
    let service = service_of(dataplane, net);
    let frontend = case.cluster_ip();
    let first = |from: SocketAddr, to: SocketAddr| case.first(from, to);
    let expected = |kind: EventKind, from: SocketAddr, to: SocketAddr| Event {
        client: wide(from.ip()),
        client_port: from.port(),
        frontend: wide(to.ip()),
        frontend_port: to.port(),
        protocol: case.protocol as u8,
        kind: kind as u8,
        service,
        reason: Event::NOTHING,
        interface: dataplane.world.index(Interface::Pod),
        family: if net.pod.is_ipv4() { 4 } else { 6 },
        place: EventPlace::Tc as u8,
        direction: FlowDirection::Request as u8,
        ..Event::default()
    };
    let uplink = dataplane.world.index(Interface::Uplink);
    let backend = |event: Event, backend: SocketAddr| Event {
        backend: wide(backend.ip()),
        backend_port: backend.port(),
        ..event
    };
    let new_flow = backend(expected(EventKind::NewFlow, pod, frontend), case.local());
    let undefined = SocketAddr::new(frontend.ip(), frontend.port() + 1);
    let refusal = Event { reason: Reason::UndefinedPort as u32, ..expected(EventKind::Refusal, pod, undefined) };
    let unallocated = at(net.second_cluster_ip, 80);
    let drop = Event {
        reason: Reason::UnallocatedClusterIp as u32,
        service: Event::NOTHING,
        ..expected(EventKind::Drop, pod, unallocated)
    };
    let from_pod = |to| arrival(Hook::PodIngress, Interface::Pod, &first(pod, to));

    // Nobody watches: nothing is written, and nothing would have been.
    let counted = dataplane.events.counted()?;
    for to in [frontend, undefined, unallocated] {
        dataplane.run(&from_pod(to), 1)?;
    }
    assert_eq!((dataplane.events.take(), dataplane.events.counted()?), (Vec::new(), counted));

    dataplane.events.watch(Events::everything()?)?;
    dataplane.run(&from_pod(frontend), 1)?;
    assert_eq!(dataplane.events.take(), Vec::<Vec<u8>>::new(), "a packet of a known flow");
    dataplane.forget()?;
    for (to, verdict, event) in [
        (frontend, Verdict::Next, new_flow),
        (undefined, Verdict::Redirect, refusal),
        (unallocated, Verdict::Drop, drop),
    ] {
        let since = monotonic()?;
        assert_eq!(dataplane.run(&from_pod(to), 1)?.verdict, verdict, "{to}");
        assert_only(dataplane, since, event, &to.to_string())?;
    }

    // At XDP, and what XDP leaves to TC is told there alone.
    let (from_outside, node_port) = (case.first_to_node_port(), case.node_port());
    let outside = arrival(Hook::UplinkIngress, Interface::Uplink, &from_outside);
    let since = monotonic()?;
    dataplane.run_xdp(&outside, 1)?;
    let at_xdp = Event {
        interface: uplink,
        place: EventPlace::Xdp as u8,
        ..backend(expected_from(&new_flow, client, node_port), case.local())
    };
    assert_only(dataplane, since, at_xdp, "a new flow at XDP")?;
    let refused = arrival(Hook::UplinkIngress, Interface::Uplink, &first(client, undefined));
    dataplane.run_xdp(&refused, 1)?;
    assert_eq!(dataplane.events.take(), Vec::<Vec<u8>>::new(), "a refusal that XDP leaves to TC");

    // What is known of a flow whose packets cannot be sent on, in both directions.
    dataplane.forget()?;
    dataplane.fill(&case.one_remote())?;
    let service = service_of(dataplane, net);
    let sent = dataplane.run(&outside, 1)?;
    assert_eq!(sent.verdict, Verdict::Redirect);
    dataplane.events.take();
    let expired = Event {
        kind: EventKind::Refusal as u8,
        reason: Reason::TtlExpired as u32,
        interface: uplink,
        service,
        ..backend(expected_from(&new_flow, client, node_port), case.remote())
    };
    let answer = case.answer(case.remote(), case.masqueraded()).ttl(1);
    for (packet, direction) in [(&from_outside.ttl(1), FlowDirection::Request), (&answer, FlowDirection::Reply)] {
        let since = monotonic()?;
        dataplane.run(&arrival(Hook::UplinkIngress, Interface::Uplink, packet), 1)?;
        let expired = Event { direction: direction as u8, ..expired };
        assert_only(dataplane, since, expired, &format!("{direction:?} at the end of its time to live"))?;
    }
    dataplane.events.watch(Monitor::default())
}

/// The same with other ends.
fn expected_from(event: &Event, client: SocketAddr, frontend: SocketAddr) -> Event {
    Event {
        client: wide(client.ip()),
        client_port: client.port(),
        frontend: wide(frontend.ip()),
        frontend_port: frontend.port(),
        ..*event
    }
}

/// Drops of [`events_are_bounded`].
const DROPS: u32 = 4000;

/// No more is written than is asked for, has room, and before the watch ends; what is not is counted.
pub fn events_are_bounded(dataplane: &mut Dataplane, case: Case) -> Result<()> {
    let net = case.net;
    dataplane.forget()?;
    let mut tables = case.two_backends();
    tables.service_cidrs = vec![network(net.cluster_ip, if net.pod.is_ipv4() { 16 } else { 64 })];
    dataplane.fill(&tables)?;
    let everything = Events::everything()?;
    let dropped = case.first(at(net.pod, 40_000), at(net.second_cluster_ip, 80));
    let dropped = arrival(Hook::PodIngress, Interface::Pod, &dropped);
    dataplane.events.watch(Monitor::default())?;
    dataplane.events.take();
    let mut play = |monitor: Monitor| -> Result<(u64, [u64; 2])> {
        dataplane.events.watch(monitor)?;
        let [_, over, full] = dataplane.events.counted()?;
        let outcome = dataplane.run(&dropped, DROPS)?;
        assert_eq!(outcome.verdict, Verdict::Drop);
        let [_, over_now, full_now] = dataplane.events.counted()?;
        dataplane.events.watch(Monitor::default())?;
        let written = dataplane.events.take().len();
        Ok((u64::try_from(written)?, [over_now - over, full_now - full]))
    };
    let all = u64::from(DROPS);

    let (written, lost) = play(Monitor { until: Jiffies::now()?.ago(1), ..everything })?;
    assert_eq!((written, lost), (0, [0, 0]), "after the end of the watch");
    let (written, lost) = play(Monitor { kinds: EventKind::NewFlow as u32, ..everything })?;
    assert_eq!((written, lost), (0, [0, 0]), "another kind");
    // The kernel has 8 bytes in front of each.
    let room = u64::from(capacity::EVENTS) / (u64::try_from(size_of::<Event>())? + 8);
    let (written, lost) = play(everything)?;
    assert_eq!((written, lost), (room, [0, all - room]), "more than there is room for");
    // What this second has seen already counts. Another may begin while the packets are played.
    thread::sleep(Duration::from_millis(1100));
    let (written, [over, full]) = play(Monitor { rate: 100, ..everything })?;
    assert!(written % 100 == 0 && (100..=500).contains(&written), "{written} at a rate of 100 a second");
    assert_eq!((over, full), (all - written, 0), "beyond the rate");
    // 1000 expected; five standard deviations of a binomial distribution are 137.
    let (written, lost) = play(Monitor { sample: 4, ..everything })?;
    assert!((863..=1137).contains(&written), "{written} of {DROPS} are one in four");
    assert_eq!(lost, [0, 0], "what is not chosen is not lost");
    Ok(())
}
