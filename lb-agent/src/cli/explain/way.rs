//! What one hook does with a question.

use std::net::SocketAddr;

use anyhow::Result;
use aya::Pod;
use lb_agent::{
    dataplane::Affinities,
    loader::{Pins, netns_cookie},
    model::Family,
};
use lb_common::abi::{AffinityKey, BackendFlags, Disposition, Flow, FrontendKey, Protocol, Reason, Tuple};

use super::{
    super::flow::hook_names,
    document::{Share, Way},
    question::Place,
    stage::{Run, Stage},
    tables::{Asker, Becomes, Finding, List, Networks, Tables, keys_of},
};

/// What the socket hooks do, by the tables. `None` where no hook looks at such a call.
pub(super) fn socket_way<A: Networks + Pod>(
    pins: &Pins,
    tables: &Tables<A>,
    place: Place,
    source: A,
    key: FrontendKey<A>,
) -> Result<Option<Way>>
where
    AffinityKey<A>: Pod,
{
    let is_node = place == Place::Node;
    let is_v4 = A::BITS == u32::BITS;
    let connect = if is_v4 { "connect4" } else { "connect6" };
    let hooks = match key.protocol {
        protocol if protocol == Protocol::Tcp as u8 => vec![connect],
        _ if is_node => vec![connect, if is_v4 { "sendmsg4" } else { "sendmsg6" }],
        // A pod's datagrams are translated one by one, at its interface.
        _ => return Ok(None),
    };
    let asker = if is_node { Asker::NodeSocket(source) } else { Asker::PodSocket };
    let finding = tables.ask(key, asker);
    let mut notes = Vec::new();
    let mut kept = None;
    if let (Becomes::Balanced(list, _), Some((_, frontend))) = (&finding.becomes, finding.frontend) {
        let has_affinity =
            tables.view.services.get(&frontend.service).is_some_and(|(_, service)| service.affinity_seconds > 0);
        if is_node {
            let cookie = netns_cookie()?;
            #[expect(clippy::cast_possible_truncation, reason = "two halves")]
            let namespace = [cookie as u32, (cookie >> 32) as u32];
            let client = AffinityKey { namespace, client: A::UNSPECIFIED, service: frontend.service, list: 0 };
            kept = tables.kept(&Affinities::open(|map| pins.open(map))?, client, *list)?;
        } else if has_affinity {
            notes.push(
                "affinity knows the sockets of a pod by its network namespace, which is not asked about here: `lb-agent \
                 affinity list`"
                    .to_owned(),
            );
        }
    }
    match finding.becomes {
        Becomes::ForPackets => notes.push(
            "a pod's socket has no address yet to be compared with the source ranges: its packets are judged"
                .to_owned(),
        ),
        Becomes::Rejected(reason, _) => notes.extend(fails_with(reason)),
        Becomes::Balanced(..) | Becomes::NotOurs => {}
    }
    let way = by_tables(tables, &finding, kept);
    // A socket that is translated sends to the endpoint itself.
    let masquerade = (way.verdict == Disposition::Translate.name()).then_some(false);
    Ok(Some(Way { asker: "socket", hooks, masquerade, notes, ..way }))
}

/// How a socket call ends that is not let through.
fn fails_with(reason: Reason) -> Option<String> {
    let error = match reason.disposition() {
        Disposition::Pass | Disposition::Translate => return None,
        Disposition::Refuse => "ECONNREFUSED",
        Disposition::Drop => "EHOSTUNREACH",
    };
    Some(format!("the socket's call fails with {error}"))
}

/// What the program does that meets the packet, or what the tables say where it is attached nowhere.
pub(super) fn packet_way<A: Networks + Pod>(
    tables: &Tables<A>,
    place: Place,
    tuple: &Tuple<A>,
    stage: Option<&mut Stage<A>>,
) -> Result<Way>
where
    Tuple<A>: Pod,
    Flow<A>: Pod,
    AffinityKey<A>: Pod,
{
    let from_pod = place == Place::Pod;
    #[expect(clippy::cast_possible_truncation, reason = "a protocol number")]
    let key = FrontendKey::new(tuple.dst, tuple.dst_port, tuple.protocol as u8);
    let finding = tables.ask(key, Asker::Packet { source: tuple.src, from_pod });
    let Some(stage) = stage else {
        let hook = if from_pod { "podIngress" } else { "uplinkIngress" };
        let note = format!("no device has the program of {hook}: nothing looks at such packets now");
        return Ok(Way { asker: "packet", hooks: vec![hook], notes: vec![note], ..by_tables(tables, &finding, None) });
    };
    let service = finding.frontend.map_or(u32::MAX, |(_, frontend)| frontend.service);
    let client = AffinityKey { namespace: [0; 2], client: tuple.src, service, list: 0 };
    let kept = match &finding.becomes {
        Becomes::Balanced(list, _) => tables.kept(&stage.live_affinities, client, *list)?,
        _ => None,
    };
    let run = stage.run(tuple, &keys_of(client))?;
    let expected = by_tables(tables, &finding, kept);
    let by_tables_alone = expected.verdict;
    let mut way = Way {
        asker: "packet",
        hooks: vec![run.hook],
        device: Some(stage.entrance().name.clone()),
        found_by: "run",
        verdict: run.verdict.name(),
        reason: run.reason.map(Reason::name),
        known_flow: run.is_known,
        ..expected
    };
    if !stage.is_attached_build() {
        way.notes.push("the attached programs are of another build than this command, whose own were run".to_owned());
    }
    describe_flow(tables, tuple, &run, &mut way);
    if !run.is_known && way.verdict != by_tables_alone {
        way.notes.push(format!("by frontend and endpoints alone the verdict would be {by_tables_alone}"));
    }
    Ok(way)
}

/// What the entries of the packet's flow tell.
fn describe_flow<A: Family>(tables: &Tables<A>, tuple: &Tuple<A>, run: &Run<A>, way: &mut Way) {
    let Some((request, reply)) = &run.flow else { return };
    let endpoint = SocketAddr::new(request.to.dst.to_ip(), request.to.dst_port);
    way.endpoint = Some(endpoint);
    way.masquerade = Some(request.to.src != tuple.src);
    way.endpoint_sees = Some(SocketAddr::new(request.to.src.to_ip(), request.to.src_port));
    way.reply_hooks = reply.map_or_else(Vec::new, |reply| hook_names(reply.hooks));
    if way.endpoints.iter().all(|share| share.address != endpoint) {
        way.notes.push(format!("{endpoint} is not among those that new flows get"));
    }
    if run.is_known && tables.view.backends.get(&request.backend).is_none_or(|b| b.generation != request.generation) {
        way.notes.push(format!("{endpoint} has left the Service since"));
    }
}

/// A way as the tables tell it.
fn by_tables<A: Family>(tables: &Tables<A>, finding: &Finding<A>, kept: Option<u32>) -> Way {
    let (verdict, reason, list, shares) = match &finding.becomes {
        Becomes::NotOurs | Becomes::ForPackets => (Disposition::Pass, None, None, &[][..]),
        Becomes::Rejected(reason, list) => (reason.disposition(), Some(*reason), *list, &[][..]),
        Becomes::Balanced(list, shares) => (Disposition::Translate, None, Some(*list), &shares[..]),
    };
    let total: u32 = shares.iter().map(|(_, slots)| slots).sum();
    let address = |index| {
        let backend = tables.view.backends.get(&index)?;
        Some(SocketAddr::new(backend.address.to_ip(), backend.port))
    };
    let endpoints = shares.iter().filter_map(|(index, slots)| {
        let backend = tables.view.backends.get(index)?;
        let probability = match kept {
            None => f64::from(*slots) / f64::from(total),
            Some(kept) => f64::from(u8::from(kept == *index)),
        };
        Some(Share { address: address(*index)?, local: backend.flags & BackendFlags::LOCAL != 0, probability })
    });
    Way {
        asker: "",
        hooks: Vec::new(),
        device: None,
        found_by: "tables",
        verdict: verdict.name(),
        reason: reason.map(Reason::name),
        list: list.map(List::name),
        endpoints: endpoints.collect(),
        affinity: kept.and_then(address),
        endpoint: None,
        masquerade: None,
        endpoint_sees: None,
        reply_hooks: Vec::new(),
        known_flow: false,
        notes: Vec::new(),
    }
}
