use clap::Parser;
use lb_agent::dataplane::Existing;
use lb_common::abi::{Backend, Flow as Entry, Service, ServiceName};

use super::*;

/// An entry as the kernel hands it out.
fn entry(bytes: [u8; 48]) -> Entry<[u8; 4]> {
    // SAFETY: a `Pod` of 48 bytes, of which every bit pattern is a value.
    unsafe { std::mem::transmute(bytes) }
}

fn key(bytes: [u8; 16]) -> Tuple<[u8; 4]> {
    // SAFETY: as above, 16 bytes.
    unsafe { std::mem::transmute(bytes) }
}

/// 192.0.2.7:40000 asks 10.96.0.10:80 and is seen as 10.0.0.1:2000 by 10.244.1.5:8080, backend 5 of generation 2 of service 3.
fn request() -> (Tuple<[u8; 4]>, Entry<[u8; 4]>) {
    let mut bytes = [0; 48];
    // owner, then Forward, UplinkIngress, syn + established, request
    bytes[..8].copy_from_slice(&[1, 2, 3, 4, 2, 4, 3, 0]);
    bytes[8..24].copy_from_slice(&tuple([10, 0, 0, 1], [10, 244, 1, 5], 2000, 8080));
    bytes[24..28].copy_from_slice(&5_u32.to_ne_bytes());
    bytes[28..32].copy_from_slice(&2_u32.to_ne_bytes());
    bytes[32..36].copy_from_slice(&3_u32.to_ne_bytes());
    (key(tuple([192, 0, 2, 7], [10, 96, 0, 10], 40000, 80)), entry(bytes))
}

fn reply() -> (Tuple<[u8; 4]>, Entry<[u8; 4]>) {
    let (asked, mut flow) = request();
    let to = flow.to;
    flow.direction = FlowDirection::Reply as u8;
    flow.to = asked.reversed();
    flow.tcp_state = TcpState::SYN | TcpState::ESTABLISHED | TcpState::FIN;
    (to.reversed(), flow)
}

fn tuple(src: [u8; 4], dst: [u8; 4], src_port: u16, dst_port: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&src);
    bytes[4..8].copy_from_slice(&dst);
    bytes[8..10].copy_from_slice(&src_port.to_ne_bytes());
    bytes[10..12].copy_from_slice(&dst_port.to_ne_bytes());
    bytes[12..].copy_from_slice(&6_u32.to_ne_bytes());
    bytes
}

fn view() -> View<[u8; 4]> {
    let name = ServiceName::new("shop", "web", "http", 6).expect("short");
    let backend = Backend { generation: 2, address: [10, 244, 1, 5], port: 8080, flags: 0, service: 3 };
    View::new(Existing {
        services: vec![(3, name, Service::default())],
        backends: vec![(5, backend)],
        ..Existing::default()
    })
}

fn filter(arguments: &str) -> FlowFilter {
    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        filter: FlowFilter,
    }
    let arguments = std::iter::once("x").chain(arguments.split_whitespace());
    Line::try_parse_from(arguments).unwrap_or_else(|error| panic!("{error}")).filter
}

#[test]
fn a_flow_is_the_same_from_either_entry() {
    let (view, clock) = (view(), Jiffies::now().expect("clocks"));
    let (asked, request) = request();
    let (answered, reply) = reply();
    let (keys, flow) = join(&view, clock, &asked, &request, Some(&reply));
    assert_eq!(keys, Keys { request: Some(asked), reply: Some(answered) });
    assert_eq!(join(&view, clock, &answered, &reply, Some(&request)), (keys, flow.clone()));

    let shown = serde_json::to_value(&flow).expect("JSON");
    let idle = shown["idleSeconds"].clone();
    let expected = serde_json::json!({
        "family": "IPv4", "protocol": "TCP", "client": "192.0.2.7:40000", "frontend": "10.96.0.10:80",
        "backend": "10.244.1.5:8080", "source": "10.0.0.1:2000", "service": "shop/web:http/TCP", "backendGone": false,
        "action": "forward", "idleSeconds": idle,
        "request": { "hooks": ["uplinkIngress"], "tcp": ["syn", "established"], "idleSeconds": idle },
        "reply": { "hooks": ["uplinkIngress"], "tcp": ["syn", "established", "fin"], "idleSeconds": idle },
    });
    assert_eq!(shown, expected);
    assert_eq!(flow.state(), "closing");

    let (keys, alone) = join(&view, clock, &answered, &reply, None);
    assert_eq!((keys.request, alone.request.clone()), (None, None));
    assert_eq!((alone.client, alone.backend, alone.source), (flow.client, flow.backend, flow.source));
    assert_eq!(alone.state(), "closing,no request entry");
}

#[test]
fn a_backend_of_another_generation_is_gone() {
    let (asked, mut request) = request();
    request.generation = 1;
    let (_, flow) = join(&view(), Jiffies::now().expect("clocks"), &asked, &request, None);
    assert!(flow.backend_gone);
    assert_eq!(flow.state(), "opening,backend gone,no reply entry");
}

#[test]
fn filters_see_the_flow_and_not_the_entry() {
    let view = view();
    for (arguments, matches) in [
        ("", true),
        ("--service shop/web", true),
        ("--service other --service web:http", true),
        ("--service other", false),
        ("--namespace shop", true),
        ("-n other", false),
        ("--client 192.0.2.7", true),
        ("--client 192.0.2.0/24 --backend 10.244.1.5:8080", true),
        ("--client 10.0.0.1", false),
        ("--client 192.0.2.7:40001", false),
        ("--backend 10.244.1.5:80", false),
        ("--protocol tcp", true),
        ("--protocol UDP", false),
    ] {
        let filter = filter(arguments);
        let wanted = filter.services(&view);
        for (key, flow) in [request(), reply()] {
            assert_eq!(filter.includes(&wanted, &key, &flow), matches, "{arguments}");
        }
        assert_eq!(filter.is_open(), arguments.is_empty(), "{arguments}");
    }
    let only = |arguments: &str| {
        let family = filter(arguments).service.family;
        (family.includes::<[u8; 4]>(), family.includes::<[u8; 16]>())
    };
    assert_eq!([only(""), only("-4"), only("-6")], [(true, true), (true, false), (false, true)]);
    // A flow of a service that has no name is no named service's.
    let (key, flow) = request();
    let nameless = Entry { service: 17, ..flow };
    let includes = |arguments: &str| filter(arguments).includes(&filter(arguments).services(&view), &key, &nameless);
    assert_eq!([includes(""), includes("--protocol tcp"), includes("--service web")], [true, true, false]);
}
