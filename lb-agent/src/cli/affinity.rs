use std::net::IpAddr;

use anyhow::Result;
use aya::Pod;
use clap::Args;
use lb_agent::{
    dataplane::{Affinities, FamilyMaps, KernelMaps},
    jiffies::Jiffies,
    loader::Pins,
    model::Family,
};
use lb_common::abi::{self, AffinityKey, BackendFlags};
use serde::Serialize;

use super::{
    filter::{EndPattern, ServiceFilter},
    output::{Column, List, ListOutputArguments},
    view::View,
};

/// Which clients.
#[derive(Debug, Args)]
pub(super) struct AffinityFilter {
    #[command(flatten)]
    service: ServiceFilter,
    /// Of this client: ADDRESS or NETWORK/BITS.
    #[arg(short, long, value_name = "CLIENT")]
    client: Option<EndPattern>,
    /// To this backend: ADDRESS, ADDRESS:PORT or NETWORK/BITS.
    #[arg(short, long, value_name = "BACKEND")]
    backend: Option<EndPattern>,
}

/// Where a client's last new flow went.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Affinity {
    /// `IPv4` or `IPv6`.
    family: &'static str,
    /// `namespace/name:port/PROTOCOL`, or `<service N?>`.
    service: String,
    /// Source address of its packets; `null` for one that is known by its sockets.
    client: Option<IpAddr>,
    /// Cookie of the network namespace of its sockets; `null` for one that is known by its packets.
    network_namespace: Option<u64>,
    /// The list of endpoints that its frontend uses: `cluster` or `local`.
    list: &'static str,
    /// `address:port`, or `<backend N?>` where the endpoint has left the service since.
    backend: String,
    /// Seconds since its last new flow.
    idle_seconds: u64,
    /// Seconds that it may be idle; 0 where the service has no affinity any more.
    timeout_seconds: u32,
    /// Its next flow goes to `backend`. Entries that are not in force stay until the table needs room.
    in_force: bool,
}

const COLUMNS: &[Column<Affinity>] = &[
    Column::new("CLIENT", Affinity::client),
    Column::new("SERVICE", |affinity| affinity.service.clone()),
    Column::new("BACKEND", |affinity| affinity.backend.clone()),
    Column::new("IDLE", |affinity| format!("{}s", affinity.idle_seconds)),
    Column::new("TIMEOUT", |affinity| format!("{}s", affinity.timeout_seconds)),
    Column::new("IN FORCE", |affinity| affinity.in_force.to_string()),
    Column::wide("FAMILY", |affinity| affinity.family.to_owned()),
    Column::wide("LIST", |affinity| affinity.list.to_owned()),
];

/// Prints affinities in the order of the table.
pub(super) fn list(pins: &Pins, filter: &AffinityFilter, output: &ListOutputArguments) -> Result<()> {
    output.list("AffinityList", COLUMNS, |list| {
        of_family::<[u8; 4]>(pins, filter, list)?;
        of_family::<[u8; 16]>(pins, filter, list)
    })
}

fn of_family<A: Family>(pins: &Pins, filter: &AffinityFilter, list: &mut List<Affinity>) -> Result<()>
where
    KernelMaps: FamilyMaps<A>,
    AffinityKey<A>: Pod,
{
    let AffinityFilter { service, client, backend: end } = filter;
    if !service.family.includes::<A>() {
        return Ok(());
    }
    let view = View::<A>::read(pins)?;
    let wanted = service.services(&view);
    let clock = Jiffies::now()?;
    Affinities::<A>::open(|map| pins.open(map))?.visit(|keys, values| {
        for (key, value) in keys.iter().zip(values).filter(|(key, _)| wanted.contains(key.service)) {
            let affinity = Affinity::new(&view, clock, key, value);
            let is_client = |pattern: EndPattern| affinity.client.is_some_and(|client| pattern.matches_address(client));
            let is_backend =
                |pattern: EndPattern| affinity.backend.parse().is_ok_and(|backend| pattern.matches(backend));
            if client.is_none_or(is_client) && end.is_none_or(is_backend) {
                list.push(&affinity)?;
            }
        }
        Ok(())
    })
}

impl Affinity {
    fn new<A: Family>(view: &View<A>, clock: Jiffies, key: &AffinityKey<A>, value: &abi::Affinity) -> Self {
        let [low, high] = key.namespace.map(u64::from);
        let namespace = high << 32 | low;
        let timeout = view.services.get(&key.service).map_or(0, |(_, service)| service.affinity_seconds);
        let idle = clock.seconds_since(value.last_used);
        // As the programs judge it (`lb-ebpf/src/affinity.rs`).
        let holds = view.backends.get(&value.backend).is_some_and(|backend| {
            backend.generation == value.generation
                && backend.service == key.service
                && u32::from(backend.flags) & key.list != 0
        });
        Self {
            family: A::NAME,
            service: view.service(key.service),
            client: (namespace == 0).then(|| key.client.to_ip()),
            network_namespace: (namespace != 0).then_some(namespace),
            list: if key.list == u32::from(BackendFlags::IN_LOCAL) { "local" } else { "cluster" },
            backend: view.backend(value.backend, Some(value.generation)),
            idle_seconds: idle,
            timeout_seconds: timeout,
            in_force: holds && timeout > 0 && idle <= u64::from(timeout),
        }
    }

    fn client(&self) -> String {
        match (self.client, self.network_namespace) {
            (Some(address), _) => address.to_string(),
            (None, Some(cookie)) => format!("<netns {cookie}>"),
            (None, None) => "-".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use lb_agent::dataplane::Existing;
    use lb_common::abi::{Backend, Service, ServiceName};

    use super::*;

    #[test]
    fn an_affinity_is_in_force_as_long_as_the_programs_follow_it() {
        let name = ServiceName::new("shop", "web", "http", 6).expect("short");
        let service = Service { affinity_seconds: 100, ..Service::default() };
        let flags = BackendFlags::IN_CLUSTER;
        let backend = Backend { generation: 2, address: [10, 244, 1, 5], port: 8080, flags, service: 3 };
        let view = View::new(Existing {
            services: vec![(3, name, service)],
            backends: vec![(5, backend)],
            ..Existing::default()
        });
        let clock = Jiffies::now().expect("clocks");
        let list = u32::from(BackendFlags::IN_CLUSTER);
        let key = AffinityKey { namespace: [0; 2], client: [192, 0, 2, 7], service: 3, list };
        let ago = |seconds| abi::Affinity { backend: 5, generation: 2, last_used: clock.ago(seconds) };
        let shown = |key: &AffinityKey<[u8; 4]>, value: &abi::Affinity| Affinity::new(&view, clock, key, value);

        let expected = serde_json::json!({
            "family": "IPv4", "service": "shop/web:http/TCP", "client": "192.0.2.7", "networkNamespace": null,
            "list": "cluster", "backend": "10.244.1.5:8080", "idleSeconds": 99, "timeoutSeconds": 100, "inForce": true,
        });
        assert_eq!(serde_json::to_value(shown(&key, &ago(99))).expect("JSON"), expected);
        assert!(!shown(&key, &ago(101)).in_force);
        let other = shown(&key, &abi::Affinity { generation: 1, ..ago(0) });
        assert_eq!((other.in_force, &*other.backend), (false, "<backend 5?>"));
        let local = AffinityKey { list: u32::from(BackendFlags::IN_LOCAL), ..key };
        assert_eq!((shown(&local, &ago(0)).in_force, shown(&local, &ago(0)).list), (false, "local"));
        let socket = shown(&AffinityKey { namespace: [7, 1], client: [0; 4], ..key }, &ago(0));
        assert_eq!((socket.client, socket.network_namespace, socket.in_force), (None, Some((1 << 32) + 7), true));
        assert_eq!(socket.client(), "<netns 4294967303>");
    }
}
