//! `v1` Service, by `serviceport.go` and `ShouldSkipService` of kube-proxy.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as api;

use super::{Problem, Reduce, leave_out, not_a_network, not_a_port, port_name, port_number, protocol, quote};
use crate::{
    model::{
        BALANCE_ANNOTATION, Balance, Change, ObjectKey, ObjectKind, Service, ServicePort, ServiceType, TrafficPolicy,
    },
    source::address::{never_served, parse_cidr_sloppy, parse_ip_sloppy, special},
};

/// A Service with this label, whatever its value, belongs to another proxy.
pub(in crate::source) const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// `spec.clusterIP` of a Service without one.
const NO_CLUSTER_IP: &str = "None";
/// `sessionAffinityConfig.clientIP.timeoutSeconds` where it is not given (`DefaultClientIPServiceAffinitySeconds`).
const DEFAULT_AFFINITY_SECONDS: i32 = 10_800;
/// The longest affinity that the API server accepts (`MaxClientIPServiceAffinitySeconds`).
const MAX_AFFINITY_SECONDS: i32 = 86_400;

impl Reduce for api::Service {
    const KIND: ObjectKind = ObjectKind::Service;

    fn change(&self, key: &ObjectKey, left_out: &mut Vec<Problem>) -> Result<Change, Problem> {
        let state = if is_skipped(self) { None } else { Some(service(self, left_out)?) };
        Ok(Change::Service(key.clone(), state))
    }
}

/// Whether a Service is not served at all. A headless label on a Service does not count: kube-proxy looks for it on
/// slices only, so such a Service has no endpoints and refuses.
fn is_skipped(service: &api::Service) -> bool {
    let spec = service.spec.as_ref();
    let another_proxy = service.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(PROXY_NAME_LABEL));
    let no_cluster_ip = matches!(spec.and_then(|spec| spec.cluster_ip.as_deref()), None | Some("" | NO_CLUSTER_IP));
    let external_name = spec.and_then(|spec| spec.type_.as_deref()) == Some("ExternalName");
    another_proxy || no_cluster_ip || external_name
}

fn service(service: &api::Service, left_out: &mut Vec<Problem>) -> Result<Service, Problem> {
    let spec = service.spec.as_ref().ok_or_else(|| Problem::new("spec", "is missing"))?;
    let service_type = service_type(spec)?;
    let external_policy = policy("spec.externalTrafficPolicy", spec.external_traffic_policy.as_deref())?;
    Ok(Service {
        service_type,
        cluster_ips: cluster_ips(spec)?,
        external_ips: external_ips(spec)?,
        load_balancer_ips: load_balancer_ips(service.status.as_ref(), left_out),
        source_ranges: source_ranges(spec)?,
        ports: ports(spec, left_out)?,
        internal_policy: policy("spec.internalTrafficPolicy", spec.internal_traffic_policy.as_deref())?,
        external_policy,
        affinity_seconds: affinity_seconds(spec)?,
        balance: balance(service, left_out),
        health_check_node_port: health_check_node_port(spec, service_type, external_policy)?,
        uid: service.metadata.uid.as_deref().map(Arc::from),
        created: service.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
    })
}

fn service_type(spec: &api::ServiceSpec) -> Result<ServiceType, Problem> {
    match spec.type_.as_deref() {
        None | Some("ClusterIP") => Ok(ServiceType::ClusterIp),
        Some("NodePort") => Ok(ServiceType::NodePort),
        Some("LoadBalancer") => Ok(ServiceType::LoadBalancer),
        Some("ExternalName") => Ok(ServiceType::ExternalName),
        Some(other) => Err(Problem::new(
            "spec.type",
            format!("is {}, expected ClusterIP, NodePort, LoadBalancer or ExternalName", quote(other)),
        )),
    }
}

/// One address of each family at most: the first, as `GetClusterIPByFamily` chooses. `clusterIPs` wins over
/// `clusterIP`, which is its first element where an API server filled both in.
fn cluster_ips(spec: &api::ServiceSpec) -> Result<Vec<IpAddr>, Problem> {
    let listed = spec.cluster_ips.as_deref().unwrap_or_default();
    let single = || spec.cluster_ip.iter().map(|text| ("spec.clusterIP".to_owned(), text));
    let texts: Vec<_> = if listed.is_empty() {
        single().collect()
    } else {
        listed.iter().enumerate().map(|(index, text)| (format!("spec.clusterIPs[{index}]"), text)).collect()
    };
    let mut addresses: Vec<IpAddr> = Vec::new();
    for (field, text) in texts {
        let address = ordinary_address(field, text)?;
        if !addresses.iter().any(|known| known.is_ipv4() == address.is_ipv4()) {
            addresses.push(address);
        }
    }
    Ok(addresses)
}

fn external_ips(spec: &api::ServiceSpec) -> Result<Vec<IpAddr>, Problem> {
    let texts = spec.external_ips.as_deref().unwrap_or_default();
    let mut addresses = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        addresses.push(ordinary_address(format!("spec.externalIPs[{index}]"), text)?);
    }
    Ok(addresses)
}

/// An address that a user of the Service connects to.
fn ordinary_address(field: String, text: &str) -> Result<IpAddr, Problem> {
    address(field, text, special)
}

/// An address that nothing is `wrong` with.
fn address(field: String, text: &str, wrong: impl FnOnce(IpAddr) -> Option<&'static str>) -> Result<IpAddr, Problem> {
    let Some(address) = parse_ip_sloppy(text) else {
        return Err(Problem::new(field, format!("is {}, expected an IP address", quote(text))));
    };
    match wrong(address) {
        Some(what) => Err(Problem::new(field, format!("is {address}, {what}"))),
        None => Ok(address),
    }
}

/// The addresses that a load balancer hands us packets for unchanged. One that is broken, or cannot be served, is left
/// out: the status is another controller's, and the Service goes on without it.
fn load_balancer_ips(status: Option<&api::ServiceStatus>, left_out: &mut Vec<Problem>) -> Vec<IpAddr> {
    let ingress = status.and_then(|status| status.load_balancer.as_ref()?.ingress.as_deref()).unwrap_or_default();
    let mut addresses = Vec::new();
    for (index, ingress) in ingress.iter().enumerate() {
        let Some(text) = ingress.ip.as_deref().filter(|text| !text.is_empty()) else { continue };
        if matches!(ingress.ip_mode.as_deref(), None | Some("VIP")) {
            match address(format!("status.loadBalancer.ingress[{index}].ip"), text, never_served) {
                Ok(address) => addresses.push(address),
                Err(problem) => leave_out(left_out, problem),
            }
        }
    }
    addresses
}

/// Who may use the load-balancer addresses. White space around them is allowed by mistake of the API server's validation.
/// One that is no network is refused there; kube-proxy would ignore it, which could leave the Service open to everybody.
/// The annotation `service.beta.kubernetes.io/load-balancer-source-ranges` is for cloud controllers: kube-proxy does not
/// read it.
fn source_ranges(spec: &api::ServiceSpec) -> Result<Vec<IpNet>, Problem> {
    let texts = spec.load_balancer_source_ranges.as_deref().unwrap_or_default();
    let network = |(index, text): (usize, &String)| {
        let network = parse_cidr_sloppy(text.trim());
        network.ok_or_else(|| not_a_network(format!("spec.loadBalancerSourceRanges[{index}]"), text))
    };
    texts.iter().enumerate().map(network).collect()
}

fn ports(spec: &api::ServiceSpec, left_out: &mut Vec<Problem>) -> Result<Vec<ServicePort>, Problem> {
    let listed = spec.ports.as_deref().unwrap_or_default();
    let mut ports: Vec<ServicePort> = Vec::with_capacity(listed.len());
    for (index, listed) in listed.iter().enumerate() {
        let field = |name: &str| format!("spec.ports[{index}].{name}");
        let port = port_number(listed.port).ok_or_else(|| not_a_port(field("port"), listed.port))?;
        // 0 is an absent node port: Go's zero value.
        let node_port = match listed.node_port.filter(|number| *number != 0) {
            None => None,
            Some(number) => Some(port_number(number).ok_or_else(|| not_a_port(field("nodePort"), number))?),
        };
        let name = port_name(|| field("name"), listed.name.as_deref())?;
        let Some(protocol) = protocol(listed.protocol.as_deref()) else {
            let found = quote(listed.protocol.as_deref().unwrap_or_default());
            let problem = format!("is {found}, only TCP and UDP are balanced; this port is left out");
            leave_out(left_out, Problem::new(field("protocol"), problem));
            continue;
        };
        if ports.iter().any(|known| known.protocol == protocol && known.name == name) {
            return Err(Problem::new(field("name"), format!("is {} again", quote(&name))));
        }
        if ports.iter().any(|known| known.protocol == protocol && known.port == port) {
            return Err(Problem::new(field("port"), format!("is {port} again")));
        }
        ports.push(ServicePort { name, protocol, port, node_port });
    }
    Ok(ports)
}

/// Of interest only where the load balancer is to ask each node.
fn health_check_node_port(
    spec: &api::ServiceSpec,
    service_type: ServiceType,
    external_policy: TrafficPolicy,
) -> Result<Option<u16>, Problem> {
    let asked = service_type == ServiceType::LoadBalancer && external_policy == TrafficPolicy::Local;
    match spec.health_check_node_port.filter(|number| asked && *number != 0) {
        None => Ok(None),
        Some(number) => match port_number(number) {
            Some(port) => Ok(Some(port)),
            None => Err(not_a_port("spec.healthCheckNodePort".to_owned(), number)),
        },
    }
}

fn policy(field: &str, policy: Option<&str>) -> Result<TrafficPolicy, Problem> {
    match policy {
        // Empty is what Go writes for an external policy that does not apply.
        None | Some("" | "Cluster") => Ok(TrafficPolicy::Cluster),
        Some("Local") => Ok(TrafficPolicy::Local),
        Some(other) => Err(Problem::new(field, format!("is {}, expected Cluster or Local", quote(other)))),
    }
}

fn affinity_seconds(spec: &api::ServiceSpec) -> Result<Option<u32>, Problem> {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => return Ok(None),
        Some("ClientIP") => {}
        Some(other) => {
            let problem = format!("is {}, expected None or ClientIP", quote(other));
            return Err(Problem::new("spec.sessionAffinity", problem));
        }
    }
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let seconds = config.and_then(|config| config.timeout_seconds).unwrap_or(DEFAULT_AFFINITY_SECONDS);
    u32::try_from(seconds).ok().filter(|_| (1..=MAX_AFFINITY_SECONDS).contains(&seconds)).map(Some).ok_or_else(|| {
        Problem::new(
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            format!("is {seconds}, expected 1 to {MAX_AFFINITY_SECONDS}"),
        )
    })
}

/// What the Service's annotation asks for. One that is wrong is left out: the Service is served with the default.
fn balance(service: &api::Service, left_out: &mut Vec<Problem>) -> Option<Balance> {
    let asked = service.metadata.annotations.as_ref()?.get(BALANCE_ANNOTATION)?;
    let known = asked.parse::<Balance>();
    if let Err(error) = &known {
        let field = format!("metadata.annotations[{BALANCE_ANNOTATION}]");
        leave_out(left_out, Problem::new(field, format!("is {}, {error}; the default is used", quote(asked))));
    }
    known.ok()
}
