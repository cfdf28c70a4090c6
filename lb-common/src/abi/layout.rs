//! Pins every size and offset. When a test here fails, the layout of a pinned map has changed: give it a new
//! `ABI_VERSION` and say in `docs/architecture.md` how the old maps are taken over.

use core::mem::{offset_of, size_of};

use super::*;

type V4 = [u8; 4];
type V6 = [u8; 16];

/// Size of the type and offset of each field, and a check that the fields leave no padding unnamed.
macro_rules! layout {
    ($type:ty, $size:literal, $($field:ident: $field_type:ty = $offset:literal),+ $(,)?) => {
        assert_eq!(size_of::<$type>(), $size, concat!("size of ", stringify!($type)));
        $(assert_eq!(offset_of!($type, $field), $offset, concat!(stringify!($type), ".", stringify!($field)));)+
        assert_eq!(0 $(+ size_of::<$field_type>())+, $size, concat!("unnamed padding in ", stringify!($type)));
    };
}

#[test]
fn the_layout_is_that_of_the_abi_version() {
    assert_eq!(ABI_VERSION, 5);

    layout!(Tuple<V4>, 16, src: V4 = 0, dst: V4 = 4, src_port: u16 = 8, dst_port: u16 = 10, protocol: u32 = 12);
    layout!(Tuple<V6>, 40, src: V6 = 0, dst: V6 = 16, src_port: u16 = 32, dst_port: u16 = 34, protocol: u32 = 36);
    layout!(
        Flow<V4>, 48, owner: u32 = 0, action: u8 = 4, hooks: u8 = 5, tcp_state: u8 = 6, direction: u8 = 7, to: Tuple<V4> = 8,
        backend: u32 = 24, generation: u32 = 28, service: u32 = 32, pad2: u32 = 36, last_seen: u64 = 40,
    );
    layout!(
        Flow<V6>, 72, owner: u32 = 0, action: u8 = 4, hooks: u8 = 5, tcp_state: u8 = 6, direction: u8 = 7, to: Tuple<V6> = 8,
        backend: u32 = 48, generation: u32 = 52, service: u32 = 56, pad2: u32 = 60, last_seen: u64 = 64,
    );
    layout!(FrontendKey<V4>, 8, address: V4 = 0, port: u16 = 4, protocol: u8 = 6, pad: u8 = 7);
    layout!(FrontendKey<V6>, 20, address: V6 = 0, port: u16 = 16, protocol: u8 = 18, pad: u8 = 19);
    layout!(Frontend, 8, service: u32 = 0, owner: u16 = 4, flags: u8 = 6, edition: u8 = 7);
    layout!(SlotRange, 8, first: u32 = 0, count: u32 = 4);
    layout!(Service, 24, cluster: SlotRange = 0, local: SlotRange = 8, flags: u32 = 16, affinity_seconds: u32 = 20);
    layout!(ServiceStats, 32, flows: u64 = 0, packets: u64 = 8, bytes: u64 = 16, rejected: u64 = 24);
    layout!(ServiceName, 192, namespace: [u8; 64] = 0, name: [u8; 64] = 64, port_name: [u8; 63] = 128, protocol: u8 = 191);
    layout!(Backend<V4>, 16, generation: u32 = 0, address: V4 = 4, port: u16 = 8, flags: u16 = 10, service: u32 = 12);
    layout!(Backend<V6>, 28, generation: u32 = 0, address: V6 = 4, port: u16 = 20, flags: u16 = 22, service: u32 = 24);
    layout!(Prefix<V4>, 8, address: V4 = 0, mask: V4 = 4);
    layout!(Prefix<V6>, 32, address: V6 = 0, mask: V6 = 16);
    layout!(AffinityKey<V4>, 20, namespace: [u32; 2] = 0, client: V4 = 8, service: u32 = 12, list: u32 = 16);
    layout!(AffinityKey<V6>, 32, namespace: [u32; 2] = 0, client: V6 = 8, service: u32 = 24, list: u32 = 28);
    layout!(Affinity, 16, backend: u32 = 0, generation: u32 = 4, last_used: u64 = 8);
    layout!(SourceRange<V4>, 12, service: u32 = 0, edition: u32 = 4, client: V4 = 8);
    layout!(SourceRange<V6>, 24, service: u32 = 0, edition: u32 = 4, client: V6 = 8);
    layout!(Allowed, 4, allowed: u32 = 0);
    layout!(ServiceCidr, 4, allocated: u32 = 0);
    layout!(Interface, 4, interface: u32 = 0);
    layout!(NodeAddress<V4>, 4, address: V4 = 0);
    layout!(NodeAddress<V6>, 16, address: V6 = 0);
    layout!(LocalAddressKey<V4>, 4, address: V4 = 0);
    layout!(LocalAddressKey<V6>, 16, address: V6 = 0);
    layout!(LocalAddress, 4, flags: u32 = 0);
    layout!(XdpDevice, 12, state: u32 = 0, flags: u32 = 4, detail: u32 = 8);
    layout!(LoadKey, 8, backend: u32 = 0, generation: u32 = 4);
    layout!(Load, 8, flows: u64 = 0);
    layout!(Slot, 4, backend: u32 = 0);
    layout!(ServiceIndex, 4, service: u32 = 0);
    layout!(Counter, 8, count: u64 = 0);
    layout!(Monitor, 24, until: u64 = 0, kinds: u32 = 8, sample: u32 = 12, rate: u32 = 16, pad: u32 = 20);
    layout!(EventCounts, 32, since: u64 = 0, written: u64 = 8, over_rate: u64 = 16, no_room: u64 = 24);
    layout!(
        Event, 88, time: u64 = 0, client: V6 = 8, frontend: V6 = 24, backend: V6 = 40, client_port: u16 = 56,
        frontend_port: u16 = 58, backend_port: u16 = 60, protocol: u8 = 62, kind: u8 = 63, service: u32 = 64,
        reason: u32 = 68, interface: u32 = 72, process: u32 = 76, family: u8 = 80, place: u8 = 81, direction: u8 = 82,
        pad: [u8; 5] = 83,
    );
    layout!(PortRange, 4, first: u16 = 0, count: u16 = 2);
    layout!(
        Config, 112, abi_version: u32 = 0, node_port_min: u16 = 4, node_port_max: u16 = 6,
        snat_ports: [PortRange; 4] = 8, snat_port_count: u32 = 24, flags: u32 = 28,
        cluster_ips4: Prefix<V4> = 32, pods4: Prefix<V4> = 40, cluster_ips6: Prefix<V6> = 48, pods6: Prefix<V6> = 80,
    );
    layout!(
        SocketFrontend, 48, frontend_address: V6 = 0, backend_address: V6 = 16, frontend_port: u16 = 32,
        backend_port: u16 = 34, backend: u32 = 36, generation: u32 = 40, pad: u32 = 44,
    );
    layout!(LiveSocket, 12, backend: u32 = 0, generation: u32 = 4, is_v4: u32 = 8);
    layout!(SocketPeerKey<V4>, 16, cookie: [u32; 2] = 0, address: V4 = 8, port: u16 = 12, direction: u8 = 14, pad: u8 = 15);
    layout!(SocketPeerKey<V6>, 28, cookie: [u32; 2] = 0, address: V6 = 8, port: u16 = 24, direction: u8 = 26, pad: u8 = 27);
    layout!(SocketPeer<V4>, 20, address: V4 = 0, port: u16 = 4, pad: u16 = 6, backend: u32 = 8, generation: u32 = 12, last_seen: u32 = 16);
    layout!(SocketPeer<V6>, 32, address: V6 = 0, port: u16 = 16, pad: u16 = 18, backend: u32 = 20, generation: u32 = 24, last_seen: u32 = 28);
}

#[test]
fn reasons_and_states_are_numbered_without_gaps() {
    for (index, reason) in Reason::ALL.iter().enumerate() {
        assert_eq!(*reason as usize, index, "{}", reason.name());
    }
    for (index, state) in XdpState::ALL.iter().enumerate() {
        assert_eq!(*state as usize, index, "{}", state.name());
    }
}

/// What follows `before` in a document, up to the end of the number there.
fn numbers_after<'a>(document: &'a str, before: &str) -> Vec<&'a str> {
    let number = |rest: &'a str| &rest[..rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len())];
    document.split(before).skip(1).map(number).collect()
}

#[test]
fn the_documents_name_this_abi_version() {
    let version = ABI_VERSION.to_string();
    let architecture = include_str!("../../../docs/architecture.md");
    assert_eq!(numbers_after(architecture, "\nABI version "), [version.as_str()]);
    for (document, before) in [
        (include_str!("../../../README.md"), "/sys/fs/bpf/lb/v"),
        // The help of the lab.
        (include_str!("../../../tests/src/bin/lb-lab/main.rs"), "/bpf/lb/v"),
    ] {
        let pins = numbers_after(document, before);
        assert!(!pins.is_empty() && pins.iter().all(|pin| *pin == version), "{pins:?}");
    }
}
