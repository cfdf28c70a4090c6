//! Fragments: those that have no ports go where the first one of their packet went.

use std::net::IpAddr;

use etherparse::{Icmpv4Type, Icmpv6Type, IpFragOffset, IpNumber, Ipv6FragmentHeader, icmpv4, icmpv6};
use lb_agent::jiffies::Jiffies;
use lb_common::abi::{Flow, Hook, Protocol, Reason, Tuple};

use super::{Case, TARGET, at, lifetimes::MARGIN, too_big};
use crate::packets::{
    Dataplane, Interface, Packet, Place, Row, Tables, Verdict,
    dataplane::MapAddress,
    world::{OTHER_NODE_MAC, POD_MAC, ROUTER_MAC},
};

const POD_IN: Hook = Hook::PodIngress;
const POD_OUT: Hook = Hook::PodEgress;
const IN: Hook = Hook::UplinkIngress;
const OUT: Hook = Hook::UplinkEgress;

/// What the fragments of a packet have in common.
const ID: u16 = 0x1d1d;

/// The packet as a fragment.
pub(super) fn fragment(packet: &Packet, id: u16, offset: u16, more: bool) -> Packet {
    let offset = IpFragOffset::try_new(offset).expect("13 bits");
    if packet.is_ipv4() {
        packet.clone().ipv4(|ip| {
            (ip.identification, ip.dont_fragment, ip.more_fragments, ip.fragment_offset) = (id, false, more, offset);
        })
    } else {
        packet.clone().ipv6(|_, extensions| {
            // Both halves of the field matter.
            let id = u32::from(id) * 0x1_0001;
            extensions.fragment = Some(Ipv6FragmentHeader::new(IpNumber(0), offset, more, id));
        })
    }
}

fn first(packet: &Packet) -> Packet {
    fragment(packet, ID, 0, true)
}

/// A fragment that has data only.
fn data(case: Case, from: IpAddr, to: IpAddr, id: u16, more: bool) -> Packet {
    let protocol = match case.protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
    };
    fragment(&Packet::other(from, to, protocol), id, 185, more)
}

/// The others of the packet that [`first`] made a fragment of.
fn rest(case: Case, from: IpAddr, to: IpAddr) -> [Packet; 2] {
    [true, false].map(|more| data(case, from, to, ID, more))
}

fn on_uplink(packet: Packet, neighbour: [u8; 6]) -> Packet {
    packet.forwarded(Interface::Uplink.mac(), neighbour)
}

/// The first fragment of `packet`, which becomes one of `becomes` by `way`, and all others with it.
fn whole(
    row: Row,
    case: Case,
    hook: Hook,
    (packet, becomes): (&Packet, &Packet),
    ends: [(IpAddr, IpAddr); 2],
    (verdict, way): (Verdict, fn(Packet) -> Packet),
) -> Row {
    let [from, to] = ends.map(|(source, destination)| rest(case, source, destination));
    let row = row.packet(hook, first(packet), verdict, way(first(becomes)));
    from.into_iter().zip(to).fold(row, |row, (from, to)| row.packet(hook, from, verdict, way(to)))
}

pub(super) fn rows(case: Case) -> Vec<Row> {
    let mut rows = flows(case);
    rows.extend(others(case));
    rows.extend(first_ones(case));
    rows
}

fn flows(case: Case) -> Vec<Row> {
    let (pod, client, node) = (case.pod(), case.client(), case.masqueraded());
    let (cluster_ip, node_port, local, remote) = (case.cluster_ip(), case.node_port(), case.local(), case.remote());
    let stack: (Verdict, fn(Packet) -> Packet) = (Verdict::Next, |packet| packet);
    let mut rows = Vec::new();

    // New flows and known ones; requests, and replies where they leave.
    let (request, sent) = (case.later(pod, cluster_ip), case.later(pod, remote));
    let (reply, heard) = (case.later(remote, pod), case.later(cluster_ip, pod));
    let row = case.row("the fragments of a pod's packets follow the first, and so do the answer's", case.one_remote());
    let ends = [(pod.ip(), cluster_ip.ip()), (pod.ip(), remote.ip())];
    let row = whole(row, case, POD_IN, (&request, &sent), ends, stack);
    let row = whole(row, case, POD_IN, (&request, &sent), ends, stack);
    let ends = [(remote.ip(), pod.ip()), (cluster_ip.ip(), pod.ip())];
    rows.push(whole(row, case, POD_OUT, (&reply, &heard), ends, stack));

    let (request, sent) = (case.later(client, node_port), case.later(client, local));
    let (reply, heard) = (case.later(local, client), case.later(node_port, client));
    let row = case.row("fragments from outside to a backend here follow the first", case.one_local());
    let ends = [(client.ip(), node_port.ip()), (client.ip(), local.ip())];
    let row = whole(row, case, IN, (&request, &sent), ends, stack);
    // On their way out they pass the backend's interface, where nothing is known of them.
    let row = row.untouched(POD_IN, first(&reply));
    let row = rest(case, local.ip(), client.ip())
        .into_iter()
        .fold(row, |row, fragment| row.untouched(POD_IN, fragment).counted(Reason::Fragment));
    let ends = [(local.ip(), client.ip()), (node_port.ip(), client.ip())];
    rows.push(whole(row, case, OUT, (&reply, &heard), ends, stack));

    let (request, sent) = (case.later(client, node_port), case.later(node, remote));
    let (reply, heard) = (case.later(remote, node), case.later(node_port, client));
    let row = case.row("fragments from outside to a backend elsewhere follow the first", case.one_remote());
    let out: (Verdict, fn(Packet) -> Packet) = (Verdict::Redirect, |packet| on_uplink(packet, OTHER_NODE_MAC));
    let ends = [(client.ip(), node_port.ip()), (node.ip(), remote.ip())];
    let row = whole(row, case, IN, (&request, &sent), ends, out);
    let row = whole(row, case, IN, (&request, &sent), ends, out);
    let back: (Verdict, fn(Packet) -> Packet) = (Verdict::Redirect, |packet| on_uplink(packet, ROUTER_MAC));
    let ends = [(remote.ip(), node.ip()), (node_port.ip(), client.ip())];
    rows.push(whole(row, case, IN, (&reply, &heard), ends, back));

    let itself = at(pod.ip(), TARGET);
    let (request, sent) = (case.later(pod, cluster_ip), case.later(node, itself));
    let row = case.row("fragments of a pod to itself follow the first", case.one(itself, Place::Local));
    let out: (Verdict, fn(Packet) -> Packet) =
        (Verdict::Redirect, |packet| packet.forwarded(Interface::Pod.mac(), POD_MAC));
    let ends = [(pod.ip(), cluster_ip.ip()), (node.ip(), itself.ip())];
    rows.push(whole(row, case, POD_IN, (&request, &sent), ends, out));
    rows
}

/// Seconds for which fragments follow the first.
const PATIENCE: u64 = 30;

/// Makes what became of first fragments look these seconds older.
fn age(dataplane: &mut Dataplane, seconds: u64) -> anyhow::Result<()> {
    fn family<A: MapAddress>(dataplane: &mut Dataplane, ticks: u64) -> anyhow::Result<()>
    where
        Tuple<A>: aya::Pod,
        Flow<A>: aya::Pod,
    {
        let table = A::fragment_table(dataplane);
        let entries: Vec<_> = table.iter().collect::<Result<_, _>>()?;
        for (key, mut flow) in entries {
            flow.last_seen -= ticks;
            table.insert(&key, &flow, 0)?;
        }
        Ok(())
    }
    let ticks = seconds * Jiffies::now()?.per_second;
    family::<[u8; 4]>(dataplane, ticks)?;
    family::<[u8; 16]>(dataplane, ticks)
}

/// Fragments of which nothing is known.
fn others(case: Case) -> Vec<Row> {
    let (pod, cluster_ip, local) = (case.pod(), case.cluster_ip(), case.local());
    let (request, sent) = (case.later(pod, cluster_ip), case.later(pod, local));
    let one = || data(case, pod.ip(), cluster_ip.ip(), ID, true);
    let translated = data(case, pod.ip(), local.ip(), ID, true);
    let other_protocol =
        Case { protocol: if case.protocol == Protocol::Tcp { Protocol::Udp } else { Protocol::Tcp }, ..case };
    let mut rows = vec![
        case.row("a fragment that comes before the first passes, and is counted", case.one_local())
            .untouched(POD_IN, one())
            .counted(Reason::Fragment)
            .packet(POD_IN, first(&request), Verdict::Next, first(&sent))
            .packet(POD_IN, one(), Verdict::Next, translated.clone()),
        case.row("a fragment follows the first one of its own packet only", case.one_local())
            .packet(POD_IN, first(&request), Verdict::Next, first(&sent))
            .untouched(POD_IN, data(case, pod.ip(), cluster_ip.ip(), ID + 1, true))
            .counted(Reason::Fragment)
            .untouched(POD_IN, data(case, local.ip(), cluster_ip.ip(), ID, true))
            .counted(Reason::Fragment)
            .untouched(POD_IN, data(case, pod.ip(), case.net.load_balancer, ID, true))
            .counted(Reason::Fragment)
            .untouched(POD_IN, data(other_protocol, pod.ip(), cluster_ip.ip(), ID, true))
            .counted(Reason::Fragment)
            .untouched(IN, one())
            .counted(Reason::Fragment)
            .packet(POD_IN, one(), Verdict::Next, translated.clone()),
        case.row("a fragment that comes long after the first passes, and is counted", case.one_local())
            .packet(POD_IN, first(&request), Verdict::Next, first(&sent))
            .spoil("letting time pass", |dataplane| age(dataplane, PATIENCE - MARGIN))
            .packet(POD_IN, one(), Verdict::Next, translated.clone())
            .spoil("letting more time pass", |dataplane| age(dataplane, MARGIN + 1))
            .untouched(POD_IN, one())
            .counted(Reason::Fragment),
        case.row("a fragment of what is no Service's passes", case.one_local())
            .untouched(POD_IN, first(&sent))
            .untouched(POD_IN, translated.clone())
            .counted(Reason::Fragment),
        case.row("tags and options in front of a fragment stay", case.one_local())
            .packet(POD_IN, first(&request), Verdict::Next, first(&sent))
            .packet(POD_IN, one().vlans(&[7]), Verdict::Next, translated.clone().vlans(&[7])),
    ];
    let remote = case.one_remote();
    let from_outside = case.later(case.client(), case.node_port());
    let sent = case.later(case.masqueraded(), case.remote());
    let last = data(case, case.client().ip(), case.node_port().ip(), ID, false);
    rows.push(
        case.row("a fragment that has no time left is dropped", remote)
            .packet(IN, first(&from_outside), Verdict::Redirect, on_uplink(first(&sent), OTHER_NODE_MAC))
            .dropped(IN, last.ttl(1), Reason::TtlExpired),
    );
    rows
}

/// First fragments that are no usual ones.
fn first_ones(case: Case) -> Vec<Row> {
    let (pod, cluster_ip, local) = (case.pod(), case.cluster_ip(), case.local());
    let (request, sent) = (case.later(pod, cluster_ip), case.later(pod, local));
    let rest_passes =
        |row: Row| row.untouched(POD_IN, data(case, pod.ip(), cluster_ip.ip(), ID, true)).counted(Reason::Fragment);
    let refused = first(&request);
    let mut rows = Vec::new();
    if case.protocol == Protocol::Udp {
        let (from, to) = (cluster_ip.ip(), pod.ip());
        let error = if from.is_ipv4() {
            Packet::icmp4(from, to, Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::Port))
        } else {
            Packet::icmp6(from, to, Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::Port))
        };
        let answer = too_big::about(case, error, &refused);
        rows.push(rest_passes(
            case.row(
                "a first fragment that is refused is answered, and nothing follows it",
                Tables::new([case.service()]),
            )
            .packet(POD_IN, &refused, Verdict::Redirect, answer)
            .counted(Reason::NoEndpoints),
        ));
    }
    if !request.is_ipv4() {
        // RFC 6946: it has a fragment header, and is whole.
        let atomic = |packet| fragment(packet, ID, 0, false);
        rows.push(rest_passes(case.row("an atomic fragment is a whole packet", case.one_local()).packet(
            POD_IN,
            atomic(&request),
            Verdict::Next,
            atomic(&sent),
        )));
    }
    rows
}
