//! Tables: an object as JSON, and what becomes of it.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery, networking::v1 as networking};
use serde_json::{Value, json};

use super::{Reduce, Reduced, reduce};
use crate::model::{
    BALANCE_ANNOTATION, Balance, Change, ChangeTrigger, Endpoint, EndpointSlice, Node, ObjectKey, Protocol, Service,
    ServicePort, ServiceType, SlicePort, TrafficPolicy,
};

fn reduced<K: Reduce>(object: Value) -> Reduced {
    reduce(&serde_json::from_value::<K>(object).expect("an object"))
}

/// A good Service with some members of `spec` replaced.
fn service_with(spec: Value) -> Value {
    let mut object = json!({
        "metadata": { "namespace": "shop", "name": "web" },
        "spec": { "clusterIP": "10.96.0.10", "ports": [{ "name": "http", "port": 80 }] },
    });
    merge(&mut object["spec"], spec);
    object
}

/// A good slice with some members replaced.
fn slice_with(members: Value) -> Value {
    let mut object = json!({
        "metadata": { "namespace": "shop", "name": "web-1", "labels": { "kubernetes.io/service-name": "web" } },
        "addressType": "IPv4",
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
        "endpoints": [{ "addresses": ["10.0.0.1"] }],
    });
    merge(&mut object, members);
    object
}

fn merge(object: &mut Value, members: Value) {
    let Value::Object(members) = members else { panic!("an object") };
    for (name, value) in members {
        object[name] = value;
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a network")
}

fn taken_service(object: Value) -> Service {
    let reduced = reduced::<core::Service>(object);
    assert_eq!(reduced.rejections, []);
    let Some(Change::Service(_, Some(service))) = reduced.change else { panic!("not taken: {reduced:?}") };
    service
}

fn taken_slice(object: Value) -> EndpointSlice {
    let reduced = reduced::<discovery::EndpointSlice>(object);
    assert_eq!(reduced.rejections, []);
    let Some(Change::EndpointSlice(_, Some(slice))) = reduced.change else { panic!("not taken: {reduced:?}") };
    slice
}

/// Field and message of the only rejection of an object that was rejected whole.
fn rejected<K: Reduce>(object: Value) -> (String, String) {
    let reduced = reduced::<K>(object);
    assert_eq!(reduced.change, None, "{reduced:?}");
    let [rejection] = reduced.rejections.as_slice() else { panic!("not one rejection: {reduced:?}") };
    (rejection.field.clone(), rejection.to_string())
}

#[test]
fn a_service_keeps_every_field_in_use() {
    let object = json!({
        "metadata": { "namespace": "shop", "name": "web", "uid": "u-1", "creationTimestamp": "2026-01-01T00:00:10Z",
            "annotations": { BALANCE_ANNOTATION: "maglev" } },
        "spec": {
            "type": "LoadBalancer",
            "clusterIP": "10.96.0.10",
            "clusterIPs": ["10.96.0.010", "fd00::0010"],
            "externalIPs": ["203.0.113.007", "2001:db8::7"],
            "loadBalancerSourceRanges": ["203.0.113.000/025 ", "2001:db8::/064"],
            "internalTrafficPolicy": "Local",
            "externalTrafficPolicy": "Local",
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": 60 } },
            "healthCheckNodePort": 32000,
            "ports": [
                { "name": "http", "port": 80, "nodePort": 30080, "protocol": "TCP", "targetPort": "web" },
                { "name": "dns", "port": 53, "protocol": "UDP", "nodePort": 0 },
            ],
        },
        "status": { "loadBalancer": { "ingress": [
            { "ip": "198.51.100.1" },
            { "ip": "198.51.100.2", "ipMode": "VIP" },
            { "ip": "198.51.100.3", "ipMode": "Proxy" },
            { "hostname": "lb.example" },
        ] } },
    });
    let port = |name: &str, protocol, port, node_port| ServicePort { name: name.into(), protocol, port, node_port };
    assert_eq!(
        taken_service(object),
        Service {
            service_type: ServiceType::LoadBalancer,
            cluster_ips: vec![ip("10.96.0.10"), ip("fd00::10")],
            external_ips: vec![ip("203.0.113.7"), ip("2001:db8::7")],
            load_balancer_ips: vec![ip("198.51.100.1"), ip("198.51.100.2")],
            source_ranges: vec![net("203.0.113.0/25"), net("2001:db8::/64")],
            ports: vec![port("http", Protocol::Tcp, 80, Some(30080)), port("dns", Protocol::Udp, 53, None)],
            internal_policy: TrafficPolicy::Local,
            external_policy: TrafficPolicy::Local,
            affinity_seconds: Some(60),
            balance: Some(Balance::Maglev),
            health_check_node_port: Some(32_000),
            uid: Some("u-1".into()),
            created: 1_767_225_610,
        }
    );
}

#[test]
fn a_way_to_balance_that_does_not_exist_is_left_out() {
    let reduced = reduced::<core::Service>(json!({
        "metadata": { "namespace": "shop", "name": "web", "annotations": { BALANCE_ANNOTATION: "fairest" } },
        "spec": { "clusterIP": "10.96.0.10", "ports": [{ "port": 80 }] },
    }));
    let Some(Change::Service(_, Some(service))) = &reduced.change else { panic!("not taken: {reduced:?}") };
    assert_eq!(service.balance, None);
    let [rejection] = reduced.rejections.as_slice() else { panic!("not one rejection: {reduced:?}") };
    assert_eq!(
        rejection.to_string(),
        "Service shop/web: metadata.annotations[lb-agent/balance]: is \"fairest\", expected one of hash, maglev, round-robin, least-conn; the default is used"
    );
}

#[test]
fn a_service_has_one_cluster_ip_of_each_family() {
    for (spec, expected) in [
        (json!({}), vec!["10.96.0.10"]),
        (json!({ "clusterIPs": [] }), vec!["10.96.0.10"]),
        (json!({ "clusterIPs": ["fd00::1", "10.96.0.1", "10.96.0.2"] }), vec!["fd00::1", "10.96.0.1"]),
        (json!({ "clusterIP": "::ffff:10.96.0.9" }), vec!["10.96.0.9"]),
    ] {
        let expected: Vec<_> = expected.into_iter().map(ip).collect();
        assert_eq!(taken_service(service_with(spec.clone())).cluster_ips, expected, "{spec}");
    }
}

#[test]
fn a_health_check_is_that_of_a_load_balancer_with_a_local_policy() {
    let check = |service_type: &str, policy: &str, port: i32| {
        service_with(json!({ "type": service_type, "externalTrafficPolicy": policy, "healthCheckNodePort": port }))
    };
    for (object, expected) in [
        (check("LoadBalancer", "Local", 32000), Some(32_000)),
        (check("LoadBalancer", "Local", 0), None),
        (check("LoadBalancer", "Cluster", 32000), None),
        (check("NodePort", "Local", 70000), None),
    ] {
        assert_eq!(taken_service(object.clone()).health_check_node_port, expected, "{object}");
    }
    let (field, message) = rejected::<core::Service>(check("LoadBalancer", "Local", 70000));
    assert_eq!(field, "spec.healthCheckNodePort");
    assert!(message.ends_with("is 70000, expected 1 to 65535"), "{message}");
}

#[test]
fn absent_affinity_has_kubernetes_default() {
    assert_eq!(taken_service(service_with(json!({}))).affinity_seconds, None);
    assert_eq!(taken_service(service_with(json!({ "sessionAffinity": "ClientIP" }))).affinity_seconds, Some(10_800));
}

#[test]
fn services_that_are_not_ours_are_deletions() {
    let mut labelled = service_with(json!({}));
    labelled["metadata"]["labels"] = json!({ "service.kubernetes.io/service-proxy-name": "" });
    for object in [
        service_with(json!({ "clusterIP": "None" })),
        service_with(json!({ "clusterIP": "" })),
        service_with(json!({ "clusterIP": null })),
        // Only `clusterIP` decides, as in ShouldSkipService.
        service_with(json!({ "clusterIP": null, "clusterIPs": ["10.96.0.1"] })),
        service_with(json!({ "type": "ExternalName" })),
        json!({ "metadata": { "namespace": "shop", "name": "web" } }),
        labelled,
    ] {
        let reduced = reduced::<core::Service>(object.clone());
        assert_eq!(reduced.change, Some(Change::Service(ObjectKey::new("shop", "web"), None)), "{object}");
        assert_eq!(reduced.rejections, [], "{object}");
    }
}

#[test]
fn a_headless_label_on_a_service_alone_changes_nothing() {
    let mut object = service_with(json!({}));
    object["metadata"]["labels"] = json!({ "service.kubernetes.io/headless": "" });
    assert_eq!(taken_service(object), taken_service(service_with(json!({}))));
}

#[test]
fn a_broken_service_is_rejected_by_field() {
    let port = |port: Value| json!({ "ports": [{ "name": "a", "port": 1 }, port] });
    for (spec, field) in [
        (port(json!({ "name": "b", "port": 0 })), "spec.ports[1].port"),
        (port(json!({ "name": "b" })), "spec.ports[1].port"),
        (port(json!({ "name": "b", "port": 70000 })), "spec.ports[1].port"),
        (port(json!({ "name": "b", "port": -1 })), "spec.ports[1].port"),
        (port(json!({ "name": "b", "port": 65536 })), "spec.ports[1].port"),
        (port(json!({ "name": "b", "port": 2, "nodePort": 65536 })), "spec.ports[1].nodePort"),
        (port(json!({ "name": "b", "port": 2, "nodePort": -30000 })), "spec.ports[1].nodePort"),
        (port(json!({ "name": "a", "port": 2 })), "spec.ports[1].name"),
        (port(json!({ "name": "B", "port": 2 })), "spec.ports[1].name"),
        (port(json!({ "name": "b".repeat(64), "port": 2 })), "spec.ports[1].name"),
        (port(json!({ "name": "b", "port": 1 })), "spec.ports[1].port"),
        (json!({ "clusterIP": "10.96.0.256" }), "spec.clusterIP"),
        (json!({ "clusterIP": "0.0.0.0" }), "spec.clusterIP"),
        (json!({ "clusterIPs": ["10.96.0.1", "fd00::g"] }), "spec.clusterIPs[1]"),
        (json!({ "clusterIPs": ["None"] }), "spec.clusterIPs[0]"),
        (json!({ "externalIPs": ["203.0.113.1", "203.0.113"] }), "spec.externalIPs[1]"),
        (json!({ "externalIPs": ["127.0.0.1"] }), "spec.externalIPs[0]"),
        (json!({ "type": "Nodeport" }), "spec.type"),
        (json!({ "internalTrafficPolicy": "local" }), "spec.internalTrafficPolicy"),
        (json!({ "externalTrafficPolicy": "Nearest" }), "spec.externalTrafficPolicy"),
        (json!({ "sessionAffinity": "Cookie" }), "spec.sessionAffinity"),
        (
            json!({ "sessionAffinity": "ClientIP", "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": 0 } } }),
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
        ),
        (
            json!({ "sessionAffinity": "ClientIP", "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": 86401 } } }),
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
        ),
    ] {
        let (found, message) = rejected::<core::Service>(service_with(spec.clone()));
        assert_eq!(found, field, "{spec}");
        assert!(message.starts_with(&format!("Service shop/web: {field}: ")), "{message}");
    }
}

#[test]
fn a_message_says_what_was_found_and_expected() {
    let (_, message) = rejected::<core::Service>(service_with(json!({ "ports": [{ "port": 70000 }] })));
    assert_eq!(message, "Service shop/web: spec.ports[0].port: is 70000, expected 1 to 65535");
    let (_, message) = rejected::<core::Service>(service_with(json!({ "clusterIP": "10.96.0.1\u{1b}[31m" })));
    assert_eq!(message, r#"Service shop/web: spec.clusterIP: is "10.96.0.1\u{1b}[31m", expected an IP address"#);
    let (_, message) = rejected::<core::Service>(service_with(json!({ "clusterIP": "9".repeat(100_000) })));
    assert!(message.len() < 200, "{message}");
}

#[test]
fn ports_of_other_protocols_are_left_out_and_the_rest_is_served() {
    let ports = json!([
        { "name": "sctp", "port": 1, "protocol": "SCTP" },
        { "name": "http", "port": 80, "protocol": "TCP" },
        { "name": "new", "port": 2, "protocol": "QUIC" },
    ]);
    let reduced = reduced::<core::Service>(service_with(json!({ "ports": ports })));
    let Some(Change::Service(_, Some(service))) = reduced.change else { panic!("not taken") };
    assert_eq!(service.ports.iter().map(|port| &*port.name).collect::<Vec<_>>(), ["http"]);
    let fields: Vec<_> = reduced.rejections.iter().map(|rejection| rejection.field.as_str()).collect();
    assert_eq!(fields, ["spec.ports[0].protocol", "spec.ports[2].protocol"]);
}

#[test]
fn the_same_port_number_of_two_protocols_is_two_ports() {
    let ports = json!([{ "name": "dns", "port": 53, "protocol": "UDP" }, { "name": "dns-tcp", "port": 53 }]);
    assert_eq!(taken_service(service_with(json!({ "ports": ports }))).ports.len(), 2);
}

#[test]
fn a_broken_load_balancer_address_is_left_out() {
    let mut object = service_with(json!({ "type": "LoadBalancer" }));
    object["status"] =
        json!({ "loadBalancer": { "ingress": [{ "ip": "pending" }, { "ip": "198.51.100.1" }, { "ip": "" }] } });
    let reduced = reduced::<core::Service>(object);
    let Some(Change::Service(_, Some(service))) = reduced.change else { panic!("not taken") };
    assert_eq!(service.load_balancer_ips, [ip("198.51.100.1")]);
    assert_eq!(reduced.rejections.len(), 1);
    assert_eq!(reduced.rejections[0].field, "status.loadBalancer.ingress[0].ip");
}

#[test]
fn a_load_balancer_may_have_a_link_local_address_and_no_other_special_one() {
    let ingress = ["169.254.20.10", "127.0.0.1", "fe80::1", "::1", "224.0.0.1", "ff02::1", "0.0.0.0", "::"];
    let mut object = service_with(json!({ "type": "LoadBalancer" }));
    object["status"] = json!({ "loadBalancer": { "ingress": ingress.map(|ip| json!({ "ip": ip })) } });
    let reduced = reduced::<core::Service>(object);
    let Some(Change::Service(_, Some(service))) = reduced.change else { panic!("not taken") };
    assert_eq!(service.load_balancer_ips, [ip("169.254.20.10"), ip("fe80::1")]);
    let problems: Vec<_> = reduced.rejections.iter().map(|rejection| rejection.problem.as_str()).collect();
    assert_eq!(
        problems,
        [
            "is 127.0.0.1, a loopback address",
            "is ::1, a loopback address",
            "is 224.0.0.1, a multicast address",
            "is ff02::1, a multicast address",
            "is 0.0.0.0, the unspecified address",
            "is ::, the unspecified address",
        ]
    );
    let external = rejected::<core::Service>(service_with(json!({ "externalIPs": ["169.254.20.10"] })));
    assert_eq!(external.0, "spec.externalIPs[0]");
}

#[test]
fn one_object_cannot_flood_the_log() {
    let ports: Vec<_> =
        (1..=10_000).map(|port| json!({ "name": format!("p{port}"), "port": port, "protocol": "SCTP" })).collect();
    assert_eq!(reduced::<core::Service>(service_with(json!({ "ports": ports }))).rejections.len(), 8);
}

#[test]
fn a_slice_keeps_every_field_in_use() {
    let mut object = slice_with(json!({ "addressType": "IPv6", "ports": [
        { "name": "http", "port": 8080, "protocol": "TCP" },
        { "name": "nil", "protocol": "TCP" },
        { "name": "sctp", "port": 1, "protocol": "SCTP" },
        { "port": 53, "protocol": "UDP" },
    ], "endpoints": [
        { "addresses": ["fd00::001", "10.0.0.1"] },
        { "addresses": [] },
        {
            "addresses": ["fd00::2"],
            "conditions": { "ready": false, "serving": false, "terminating": true },
            "nodeName": "node-a",
            "hints": { "forZones": [{ "name": "z1" }, { "name": "z2" }], "forNodes": [{ "name": "node-a" }] },
        },
    ] }));
    let trigger_time = "endpoints.kubernetes.io/last-change-trigger-time";
    object["metadata"]["annotations"] = json!({ trigger_time: "2026-01-01T00:00:10.5Z" });
    let slice = taken_slice(object.clone());
    object["metadata"]["annotations"] = json!({ trigger_time: "yesterday" });
    assert_eq!(taken_slice(object).trigger, None);
    let port = |name: &str, protocol, port| SlicePort { name: name.into(), protocol, port };
    assert_eq!(
        slice,
        EndpointSlice {
            trigger: Some(ChangeTrigger { at: "2026-01-01T00:00:10.5Z".parse().expect("a time"), is_ipv4: false }),
            service: ObjectKey::new("shop", "web"),
            ports: vec![port("http", Protocol::Tcp, 8080), port("", Protocol::Udp, 53)],
            endpoints: vec![
                Endpoint {
                    address: ip("fd00::1"),
                    ready: true,
                    serving: true,
                    terminating: false,
                    node_name: None,
                    zone_hints: vec![],
                    node_hints: vec![],
                },
                Endpoint {
                    address: ip("fd00::2"),
                    ready: false,
                    serving: false,
                    terminating: true,
                    node_name: Some("node-a".into()),
                    zone_hints: vec!["z1".into(), "z2".into()],
                    node_hints: vec!["node-a".into()],
                },
            ],
        }
    );
}

#[test]
fn a_slice_s_port_of_zero_is_left_out_and_told() {
    let ports = json!([{ "name": "zero", "port": 0 }, { "name": "http", "port": 8080 }]);
    let reduced = reduced::<discovery::EndpointSlice>(slice_with(json!({ "ports": ports })));
    let Some(Change::EndpointSlice(_, Some(slice))) = reduced.change else { panic!("not taken") };
    assert_eq!(slice.ports.iter().map(|port| &*port.name).collect::<Vec<_>>(), ["http"]);
    let messages: Vec<_> = reduced.rejections.iter().map(ToString::to_string).collect();
    assert_eq!(messages, ["EndpointSlice shop/web-1: ports[0].port: is 0, expected 1 to 65535; this port is left out"]);
}

#[test]
fn slices_that_are_not_ours_are_deletions() {
    let labels = json!({ "kubernetes.io/service-name": "web", "service.kubernetes.io/headless": "" });
    for members in [
        json!({ "addressType": "FQDN", "endpoints": [{ "addresses": ["db.example"] }] }),
        json!({ "metadata": { "namespace": "shop", "name": "web-1", "labels": labels } }),
    ] {
        let reduced = reduced::<discovery::EndpointSlice>(slice_with(members.clone()));
        assert_eq!(reduced.change, Some(Change::EndpointSlice(ObjectKey::new("shop", "web-1"), None)), "{members}");
        assert_eq!(reduced.rejections, [], "{members}");
    }
    // The label of another proxy counts on Services only.
    let labels = json!({ "kubernetes.io/service-name": "web", "service.kubernetes.io/service-proxy-name": "x" });
    taken_slice(slice_with(json!({ "metadata": { "namespace": "shop", "name": "web-1", "labels": labels } })));
}

#[test]
fn a_broken_slice_is_rejected_by_field() {
    let metadata = |labels: Value| json!({ "metadata": { "namespace": "shop", "name": "web-1", "labels": labels } });
    let endpoint = |address: &str| json!({ "endpoints": [{ "addresses": ["10.0.0.1"] }, { "addresses": [address] }] });
    let service_name = "metadata.labels[kubernetes.io/service-name]";
    for (members, field) in [
        (metadata(json!({})), service_name),
        (metadata(json!({ "kubernetes.io/service-name": "" })), service_name),
        (metadata(json!({ "kubernetes.io/service-name": "Web/../x" })), service_name),
        (json!({ "addressType": "IPv5" }), "addressType"),
        (json!({ "addressType": null }), "addressType"),
        (json!({ "ports": [{ "port": 70000 }] }), "ports[0].port"),
        (json!({ "ports": [{ "port": -1 }] }), "ports[0].port"),
        (json!({ "ports": [{ "port": 1, "name": "a\nb" }] }), "ports[0].name"),
        (endpoint("fd00::1"), "endpoints[1].addresses[0]"),
        (endpoint("10.0.0"), "endpoints[1].addresses[0]"),
        (endpoint(""), "endpoints[1].addresses[0]"),
        (endpoint("127.0.0.1"), "endpoints[1].addresses[0]"),
        (endpoint("0.0.0.0"), "endpoints[1].addresses[0]"),
        (endpoint("169.254.169.254"), "endpoints[1].addresses[0]"),
        (endpoint("224.0.0.1"), "endpoints[1].addresses[0]"),
        (json!({ "addressType": "IPv6" }), "endpoints[0].addresses[0]"),
        (
            json!({ "addressType": "IPv6", "endpoints": [{ "addresses": ["::ffff:10.0.0.1"] }] }),
            "endpoints[0].addresses[0]",
        ),
    ] {
        let (found, message) = rejected::<discovery::EndpointSlice>(slice_with(members.clone()));
        assert_eq!(found, field, "{members}");
        assert!(message.starts_with(&format!("EndpointSlice shop/web-1: {field}: ")), "{message}");
    }
}

#[test]
fn objects_without_a_legal_name_are_rejected() {
    for (metadata, field) in [
        (json!({ "namespace": "shop" }), "metadata.name"),
        (json!({ "namespace": "shop", "name": "a/b" }), "metadata.name"),
        (json!({ "namespace": "shop", "name": "w".repeat(64) }), "metadata.name"),
        (json!({ "namespace": "shop", "name": "w".repeat(1_000_000) }), "metadata.name"),
        (json!({ "namespace": "shop", "name": "web\n2026-01-01 ERROR" }), "metadata.name"),
        (json!({ "name": "web" }), "metadata.namespace"),
        (json!({ "namespace": "SHOP", "name": "web" }), "metadata.namespace"),
    ] {
        let mut object = service_with(json!({}));
        object["metadata"] = metadata;
        let (found, message) = rejected::<core::Service>(object);
        assert_eq!(found, field);
        assert!(message.len() < 500 && !message.contains('\n'), "{message}");
    }
}

#[test]
fn a_node_keeps_every_field_in_use() {
    let object = json!({
        "metadata": {
            "name": "node-a.example",
            "labels": { "topology.kubernetes.io/zone": "z1" },
            "deletionTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": { "podCIDRs": ["10.244.01.0/24", "fd00:244::/64", "?"], "taints": [{ "key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule" }] },
        "status": { "addresses": [
            { "type": "Hostname", "address": "node-a" },
            { "type": "InternalIP", "address": "192.0.2.010" },
            { "type": "ExternalIP", "address": "203.0.113.1" },
            { "type": "InternalIP", "address": "node-a" },
            { "type": "InternalIP", "address": "2001:db8::a" },
        ] },
    });
    let reduced = reduced::<core::Node>(object);
    let expected = Node {
        zone: Some("z1".into()),
        internal_ips: vec![ip("192.0.2.10"), ip("2001:db8::a")],
        external_ips: vec![ip("203.0.113.1")],
        pod_cidrs: vec![net("10.244.1.0/24"), net("fd00:244::/64")],
        deleting: true,
        taints: vec!["ToBeDeletedByClusterAutoscaler".into()],
    };
    assert_eq!(reduced.change, Some(Change::Node(Some(expected))));
    let fields: Vec<_> = reduced.rejections.iter().map(|rejection| rejection.field.as_str()).collect();
    assert_eq!(fields, ["status.addresses[3].address", "spec.podCIDRs[2]"]);
}

#[test]
fn ranges_of_cluster_ips_are_read_whatever_their_conditions() {
    let object = json!({
        "metadata": { "name": "kubernetes", "deletionTimestamp": "2026-01-01T00:00:00Z" },
        "spec": { "cidrs": ["10.096.0.0/16", "fd00:96::/112"] },
        "status": { "conditions": [{ "type": "Ready", "status": "False", "reason": "", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z" }] },
    });
    let expected =
        Change::ServiceCidr(ObjectKey::new("", "kubernetes"), Some(vec![net("10.96.0.0/16"), net("fd00:96::/112")]));
    assert_eq!(reduced::<networking::ServiceCIDR>(object).change, Some(expected));
    let object = json!({ "metadata": { "name": "a" }, "spec": { "cidrs": ["10.96.0.0/16", "10.96.0.0"] } });
    let (field, message) = rejected::<networking::ServiceCIDR>(object);
    assert_eq!(field, "spec.cidrs[1]");
    assert!(message.ends_with("is \"10.96.0.0\", expected a network such as 192.0.2.0/24"), "{message}");
}

#[test]
fn a_source_range_that_is_no_network_is_no_reason_to_let_everybody_in() {
    let ranges = json!({ "type": "LoadBalancer", "loadBalancerSourceRanges": ["192.0.2.0/24", "everybody"] });
    assert_eq!(rejected::<core::Service>(service_with(ranges)).0, "spec.loadBalancerSourceRanges[1]");
    let mut annotated = service_with(json!({}));
    annotated["metadata"]["annotations"] =
        json!({ "service.beta.kubernetes.io/load-balancer-source-ranges": "192.0.2.0/24" });
    assert_eq!(taken_service(annotated).source_ranges, [], "kube-proxy does not read it");
}
