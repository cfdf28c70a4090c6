//! Session affinity: which endpoint a client's next flow is given.

use anyhow::ensure;
use lb_agent::model::{ServicePort, SlicePort};
use lb_common::abi::{AffinityKey, Hook, Protocol};

use super::{CLIENT_PORT, Case, PORT, TARGET, at};
use crate::packets::{
    Dataplane, Place, Row, Tables, TestService, Verdict, dataplane::ClientAddress, properties::age_affinities,
};

const IN: Hook = Hook::PodIngress;
/// Seconds that affinities of these rows last.
const SECONDS: u32 = 60;
/// Flows that would not all go to one of two endpoints by chance.
const FLOWS: u16 = 12;

pub(super) fn rows(case: Case) -> Vec<Row> {
    let mut rows = vec![
        every_frontend(case),
        each_client(case),
        established(case),
        endpoint_gone(case),
        affinity_back(case),
        terminating(case),
        lists_of_paths(case),
        lists_apart(case),
        ports_of_a_service(case),
        another_services_backend(case),
    ];
    rows.push(if case.protocol == Protocol::Udp { udp_repick(case) } else { endpoint_back(case) });
    rows
}

fn service(case: Case) -> TestService {
    case.service().affinity(SECONDS)
}

fn one_local(case: Case) -> Tables {
    Tables::new([service(case).endpoint(case.local(), Place::Local)])
}

fn one_remote(case: Case) -> Tables {
    Tables::new([service(case).endpoint(case.remote(), Place::Remote)])
}

fn both(case: Case) -> Tables {
    Tables::new([service(case).endpoint(case.local(), Place::Local).endpoint(case.remote(), Place::Remote)])
}

/// Many new flows of the pod to a frontend, all of which must reach one endpoint.
fn flows(mut row: Row, case: Case, first_port: u16, frontend: std::net::SocketAddr, to: std::net::SocketAddr) -> Row {
    for port in first_port..first_port + FLOWS {
        let packet = case.first(at(case.net.pod, port), frontend);
        row = row.packet(IN, &packet, Verdict::Next, packet.clone().to(to));
    }
    row
}

/// The pod's first flow, to the only endpoint.
fn started(case: Case, sentence: &str, tables: Tables, to: std::net::SocketAddr) -> Row {
    let first = case.first(case.pod(), case.cluster_ip());
    case.row(sentence, tables).packet(IN, &first, Verdict::Next, first.clone().to(to))
}

fn every_frontend(case: Case) -> Row {
    let local = case.local();
    let row = started(
        case,
        "a client's flows to any frontend of a service port go where its last one went",
        one_local(case),
        local,
    );
    let row = flows(row.then(both(case)), case, CLIENT_PORT + 1, case.cluster_ip(), local);
    let row = flows(row, case, CLIENT_PORT + 100, case.load_balancer(), local);
    flows(row, case, CLIENT_PORT + 200, case.node_port(), local)
}

/// Clients are told by their addresses.
fn each_client(case: Case) -> Row {
    let (pod, client, local) = (case.pod(), case.client(), case.local());
    let row = case.row("each client has an affinity of its own", one_local(case));
    let row = [(IN, pod), (Hook::UplinkIngress, client), (IN, at(pod.ip(), CLIENT_PORT + 1))].into_iter().fold(
        row,
        |row, (hook, from)| {
            let packet = case.first(from, case.load_balancer());
            row.packet(hook, &packet, Verdict::Next, packet.clone().to(local))
        },
    );
    row.spoil("looking at the affinities", move |dataplane| {
        let mut clients = clients_of::<[u8; 4]>(dataplane)?;
        clients.extend(clients_of::<[u8; 16]>(dataplane)?);
        clients.sort_unstable();
        let mut expected = [pod.ip(), client.ip()];
        expected.sort_unstable();
        ensure!(clients == expected, "affinities of {clients:?}");
        Ok(())
    })
}

/// The addresses of all clients with an affinity.
fn clients_of<A: ClientAddress>(dataplane: &mut Dataplane) -> anyhow::Result<Vec<std::net::IpAddr>>
where
    std::net::IpAddr: From<A>,
    AffinityKey<A>: aya::Pod,
{
    let affinities = dataplane.affinities::<A>()?;
    ensure!(affinities.iter().all(|(key, _)| key.namespace == [0; 2]), "a packet is of no namespace");
    Ok(affinities.into_iter().map(|(key, _)| key.client.into()).collect())
}

/// The established path neither asks nor refreshes.
fn established(case: Case) -> Row {
    let (pod, local) = (case.pod(), case.local());
    let later = case.later(pod, case.cluster_ip());
    started(case, "packets of a known flow keep no affinity alive", one_local(case), local)
        .spoil("letting the affinity end", |dataplane| age_affinities(dataplane, u64::from(SECONDS) + 5))
        .packet(IN, &later, Verdict::Next, later.clone().to(local))
        .spoil("looking whether it is still old", |dataplane| {
            let now = lb_agent::jiffies::Jiffies::now()?;
            let mut stamps: Vec<_> = dataplane.affinities::<[u8; 4]>()?.iter().map(|(_, a)| a.last_used).collect();
            stamps.extend(dataplane.affinities::<[u8; 16]>()?.iter().map(|(_, affinity)| affinity.last_used));
            let [stamp] = stamps[..] else { anyhow::bail!("{} affinities", stamps.len()) };
            ensure!(now.seconds_since(stamp) >= u64::from(SECONDS), "the affinity is young again");
            Ok(())
        })
}

fn endpoint_gone(case: Case) -> Row {
    let (local, remote) = (case.local(), case.remote());
    let row =
        started(case, "an affinity to an endpoint that is gone ends", one_local(case), local).then(one_remote(case));
    let row = flows(row, case, CLIENT_PORT + 1, case.cluster_ip(), remote).then(both(case));
    flows(row, case, CLIENT_PORT + 100, case.cluster_ip(), remote)
}

/// An element of `BACKENDS*` that connections may still use is kept, and with it who had it. Those of UDP are not.
fn endpoint_back(case: Case) -> Row {
    let local = case.local();
    let row = started(
        case,
        "an endpoint that left and came back while its client was silent has its client again",
        one_local(case),
        local,
    );
    flows(row.then(one_remote(case)).then(both(case)), case, CLIENT_PORT + 1, case.cluster_ip(), local)
}

fn affinity_back(case: Case) -> Row {
    let local = case.local();
    let sentence = "a Service that gets its session affinity back has its clients where they were";
    let without = case.two_backends();
    let row = started(case, sentence, one_local(case), local).then(without).then(both(case));
    flows(row, case, CLIENT_PORT + 1, case.cluster_ip(), local)
}

fn terminating(case: Case) -> Row {
    let (local, remote) = (case.local(), case.remote());
    let tables = Tables::new([service(case).terminating(local, Place::Local).endpoint(remote, Place::Remote)]);
    let row = started(case, "an affinity to an endpoint that terminates ends", one_local(case), local).then(tables);
    flows(row, case, CLIENT_PORT + 1, case.cluster_ip(), remote)
}

/// A pod asks the cluster IP, for which the internal policy keeps it on its node, and the load balancer's address.
fn lists_of_paths(case: Case) -> Row {
    let (local, remote) = (case.local(), case.remote());
    let first = case.first(case.pod(), case.load_balancer());
    let tables =
        Tables::new([service(case).internal_local().endpoint(local, Place::Local).endpoint(remote, Place::Remote)]);
    let row = case
        .row("an affinity holds only where its endpoint is in the list of the path", one_remote(case))
        .packet(IN, &first, Verdict::Next, first.clone().to(remote))
        .then(tables);
    let row = flows(row, case, CLIENT_PORT + 1, case.load_balancer(), remote);
    let row = flows(row, case, CLIENT_PORT + 100, case.cluster_ip(), local);
    flows(row, case, CLIENT_PORT + 200, case.load_balancer(), remote)
}

/// The lists have nothing in common: the pods of this node that terminate are the local list, those elsewhere the cluster's.
fn lists_apart(case: Case) -> Row {
    let (local, remote) = (case.local(), case.remote());
    let second = at(case.net.second_remote_backend, TARGET);
    let tables = Tables::new([service(case)
        .internal_local()
        .terminating(local, Place::Local)
        .endpoint(remote, Place::Remote)
        .endpoint(second, Place::Remote)]);
    let first = case.first(case.pod(), case.load_balancer());
    let row = case
        .row("a client keeps an affinity for each of two lists that have no endpoint in common", one_remote(case))
        .packet(IN, &first, Verdict::Next, first.clone().to(remote))
        .then(tables);
    let row = flows(row, case, CLIENT_PORT + 1, case.cluster_ip(), local);
    let row = flows(row, case, CLIENT_PORT + 100, case.load_balancer(), remote);
    flows(row, case, CLIENT_PORT + 200, case.cluster_ip(), local)
}

/// Two ports of one Service; at first each has one endpoint, another one.
fn ports_of_a_service(case: Case) -> Row {
    let (local, remote) = (case.local(), case.remote());
    let (second, second_target) = (at(case.net.cluster_ip, PORT + 1), at(remote.ip(), TARGET + 1));
    let tables = |first_has_remote: bool, second_has_local: bool| {
        let mut test = service(case).endpoint(local, Place::Local).endpoint(remote, Place::Remote);
        let protocol = case.protocol;
        test.service.ports.push(ServicePort { name: "q".into(), protocol, port: PORT + 1, node_port: None });
        let second = SlicePort { name: "q".into(), protocol, port: TARGET + 1 };
        let [of_local, of_remote] = &mut test.slices[..] else { panic!("a slice for each endpoint") };
        of_remote.ports.push(second.clone());
        if !first_has_remote {
            of_remote.ports.remove(0);
        }
        if second_has_local {
            of_local.ports.push(second);
        }
        Tables::new([test])
    };
    let other = case.first(case.pod(), second);
    let row = started(case, "each port of a Service has affinities of its own", tables(false, false), local)
        .packet(IN, &other, Verdict::Next, other.clone().to(second_target))
        .then(tables(true, true));
    let row = flows(row, case, CLIENT_PORT + 1, case.cluster_ip(), local);
    flows(row, case, CLIENT_PORT + 100, second, second_target)
}

/// What a reader would see whose element was given to another client.
fn another_services_backend(case: Case) -> Row {
    let local = case.local();
    let (second, other) = (at(case.net.second_cluster_ip, PORT), at(case.net.second_remote_backend, TARGET));
    let tables = Tables::new([
        service(case).endpoint(local, Place::Local),
        TestService::new("second", case.protocol, second).affinity(SECONDS).endpoint(other, Place::Remote),
    ]);
    let to_second = case.first(case.pod(), second);
    let row = started(case, "an affinity to another Service's backend is not believed", tables, local)
        .packet(IN, &to_second, Verdict::Next, to_second.clone().to(other))
        .spoil("exchanging the values of the two affinities", |dataplane| {
            exchange::<[u8; 4]>(dataplane)?;
            exchange::<[u8; 16]>(dataplane)
        });
    let row = flows(row, case, CLIENT_PORT + 1, case.cluster_ip(), local);
    flows(row, case, CLIENT_PORT + 100, second, other)
}

fn exchange<A: ClientAddress>(dataplane: &mut Dataplane) -> anyhow::Result<()>
where
    AffinityKey<A>: aya::Pod,
{
    let affinities = dataplane.affinities::<A>()?;
    let values: Vec<_> = affinities.iter().rev().map(|(_, value)| *value).collect();
    for ((key, _), value) in affinities.into_iter().zip(values) {
        A::affinity_table(dataplane).insert(&key, &value, 0)?;
    }
    Ok(())
}

/// As with kube-proxy, whose clean-up of conntrack entries makes the next datagram the first one of a flow.
fn udp_repick(case: Case) -> Row {
    let (local, remote, second) = (case.local(), case.remote(), at(case.net.second_remote_backend, TARGET));
    let later = case.later(case.pod(), case.cluster_ip());
    let more = Tables::new([service(case).endpoint(remote, Place::Remote).endpoint(second, Place::Remote)]);
    let row = started(
        case,
        "an exchange whose endpoint is gone goes where its client's last one went",
        one_local(case),
        local,
    )
    .then(one_remote(case));
    let row = flows(row, case, CLIENT_PORT + 1, case.cluster_ip(), remote).then(more);
    row.packet(IN, &later, Verdict::Next, later.clone().to(remote))
}
