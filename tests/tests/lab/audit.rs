//! Somebody else writes to the maps of an agent, and clients are there.

use std::{collections::BTreeMap, thread, time::Duration};

use lb_agent::{
    dataplane::{Existing, FamilyMaps, KernelMaps},
    loader::Pins,
    model::Family,
};
use lb_common::abi::Backend;
use lb_tests::lab::{
    Lab, Node, ReversePathFilter,
    client::{Conversation, DatagramSocket, Outcome, Transport},
    cluster::{Cluster, eventually_within},
    manifest::Service,
    path::paths,
    sandbox::Sandbox,
};

/// Two passes of the audit, and more.
const PATIENCE: Duration = Duration::from_secs(90);

fn maps(node: &Node) -> KernelMaps {
    let pins = Pins::new(&node.bpffs());
    KernelMaps::open(|map| pins.open(map)).unwrap_or_else(|error| panic!("{error}"))
}

/// What new flows are given backends by, in the order of keys.
fn table<A: Family>(maps: &KernelMaps) -> Existing<A>
where
    KernelMaps: FamilyMaps<A>,
{
    let mut existing = FamilyMaps::<A>::existing(maps).unwrap_or_else(|error| panic!("{error}"));
    existing.frontends.sort_unstable_by_key(|(key, _)| *key);
    existing.local_addresses.sort_unstable();
    existing
}

/// Sends all new flows to a port where nobody listens, by slots that all name the same backend, and takes every other
/// frontend away.
fn break_new_flows<A: Family>(maps: &mut KernelMaps)
where
    KernelMaps: FamilyMaps<A>,
{
    let Existing { frontends, slots, backends, .. } = table::<A>(maps);
    for (index, backend) in &backends {
        let written = maps.set_backend(*index, Backend { port: 1, ..*backend });
        written.unwrap_or_else(|error| panic!("{error}"));
    }
    for (slot, _) in &slots {
        let written = FamilyMaps::<A>::set_slots(maps, *slot, &[backends[0].0]);
        written.unwrap_or_else(|error| panic!("{error}"));
    }
    for (key, _) in frontends.iter().step_by(2) {
        maps.remove_frontend(key).unwrap_or_else(|error| panic!("{error}"));
    }
}

pub(crate) fn maps_that_others_broke_are_mended_and_flows_stay_where_they_are(sandbox: Sandbox) {
    let lab = Lab::new(sandbox, ReversePathFilter::Strict);
    let service = Service::new("web", 1).with_endpoints(lab.all_pods());
    let cluster = Cluster::start(lab, [&service]);
    let node = cluster.nodes()[0];
    let mut maps = maps(node);
    let before = (table::<[u8; 4]>(&maps), table::<[u8; 16]>(&maps));

    let mut conversations: Vec<_> = paths(&cluster.lab)
        .filter(|path| path.transport == Transport::Tcp)
        .map(|path| {
            let conversation = Conversation::open(path.client, path.address(&service));
            (path, conversation.unwrap_or_else(|outcome| panic!("{path}: {outcome:?}")))
        })
        .collect();
    // From outside and from the packet path: a socket of the node is given its backend by a look at the frontend each time.
    let by_packets = [cluster.lab.client.name(), node.vm.name()];
    let exchanges: Vec<_> = paths(&cluster.lab)
        .filter(|path| path.transport == Transport::Udp && by_packets.contains(&path.client.name()))
        .map(|path| {
            let socket = DatagramSocket::open(path.client, path.transport, path.address(&service));
            let backend = socket.ask().answer(path).backend;
            (path, socket, backend)
        })
        .collect();
    assert_eq!((conversations.len(), exchanges.len()), (8, 4));
    let mut go_on = |during: &str| {
        for (path, conversation) in &mut conversations {
            conversation.say(during).unwrap_or_else(|error| panic!("{path} {during}: {error}"));
        }
        for (path, socket, backend) in &exchanges {
            assert_eq!(socket.ask().answer(path).backend, *backend, "{path} {during}");
        }
    };

    break_new_flows::<[u8; 4]>(&mut maps);
    break_new_flows::<[u8; 16]>(&mut maps);
    let outside = paths(&cluster.lab).find(|path| path.transport == Transport::Tcp && path.node_port_of.is_some());
    let outside = outside.expect("a way from outside");
    let outcome = outside.ask(&service);
    assert!(!matches!(outcome, Outcome::Reached(_)), "{outside}: {outcome:?}");
    let look = || {
        go_on("while maps are broken and mended");
        // Tables of the default size: to read them takes time from whom it is to show.
        thread::sleep(Duration::from_millis(500));
        (table::<[u8; 4]>(&maps), table::<[u8; 16]>(&maps)) == before
    };
    eventually_within(PATIENCE, "the maps are as before", look, |same| *same);
    go_on("afterwards");
    let mut backends = BTreeMap::new();
    for path in paths(&cluster.lab) {
        *backends.entry(path.ask(&service).answer(path).backend).or_insert(0) += 1;
    }
    assert!(backends.len() > 1, "{backends:?}");
}
