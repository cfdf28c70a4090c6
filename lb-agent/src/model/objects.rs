//! Kubernetes' objects, reduced to the fields in use. Sources reduce objects as they arrive; nothing else is kept.

use std::{fmt, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use k8s_openapi::jiff::Timestamp;

pub use lb_common::abi::Protocol;

use super::Balance;

/// Namespace and name of an object. A Node and a `ServiceCIDR` have no namespace: it is empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl ObjectKey {
    /// A key from its parts.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

/// The kinds of object that are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ObjectKind {
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` `EndpointSlice`.
    EndpointSlice,
    /// `v1` Node, this node's own.
    Node,
    /// `networking.k8s.io/v1` `ServiceCIDR`.
    ServiceCidr,
}

impl ObjectKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Service, Self::EndpointSlice, Self::Node, Self::ServiceCidr];

    /// The kind as manifests spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Node => "Node",
            Self::ServiceCidr => "ServiceCIDR",
        }
    }
}

/// `spec.type` of a Service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ServiceType {
    /// Cluster IP only.
    #[default]
    ClusterIp,
    /// And a port on every node.
    NodePort,
    /// And addresses of a load balancer.
    LoadBalancer,
    /// A DNS name; not ours.
    ExternalName,
}

/// `internalTrafficPolicy` and `externalTrafficPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TrafficPolicy {
    /// All endpoints of the cluster.
    #[default]
    Cluster,
    /// Endpoints of this node.
    Local,
}

/// Says how backends are selected for a Service: a name of [`Balance`].
pub const BALANCE_ANNOTATION: &str = "lb-agent/balance";

/// A Service that has cluster IPs. Services that are not served at all (headless, `ExternalName`, labelled for another
/// proxy) are deletions to the model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// `spec.type`.
    pub service_type: ServiceType,
    /// `spec.clusterIPs` (or `clusterIP`), canonical.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress[].ip` with `ipMode` absent or `VIP`.
    pub load_balancer_ips: Vec<IpAddr>,
    /// `spec.loadBalancerSourceRanges`, of both families.
    pub source_ranges: Vec<IpNet>,
    /// `spec.ports`, of protocols that are balanced.
    pub ports: Vec<ServicePort>,
    /// `spec.internalTrafficPolicy`.
    pub internal_policy: TrafficPolicy,
    /// `spec.externalTrafficPolicy`.
    pub external_policy: TrafficPolicy,
    /// `spec.sessionAffinityConfig.clientIP.timeoutSeconds` where `sessionAffinity` is `ClientIP`.
    pub affinity_seconds: Option<u32>,
    /// Annotation [`BALANCE_ANNOTATION`].
    pub balance: Option<Balance>,
    /// `spec.healthCheckNodePort` of a load balancer with `externalTrafficPolicy: Local` (`NeedsHealthCheck`).
    pub health_check_node_port: Option<u16>,
    /// `metadata.uid`, which Events name.
    pub uid: Option<Arc<str>>,
    /// `metadata.creationTimestamp`, seconds since the epoch; decides who keeps an address that two Services claim.
    pub created: i64,
}

/// One of `spec.ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Name; empty where the only port has none.
    pub name: Arc<str>,
    /// Protocol.
    pub protocol: Protocol,
    /// `port`, 1 to 65535.
    pub port: u16,
    /// `nodePort`, where allocated.
    pub node_port: Option<u16>,
}

/// An `EndpointSlice` of an address type that is balanced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Namespace and label `kubernetes.io/service-name`.
    pub service: ObjectKey,
    /// `ports`, those with a number.
    pub ports: Vec<SlicePort>,
    /// `endpoints`, those with an address. All addresses are of the slice's `addressType`.
    pub endpoints: Vec<Endpoint>,
    /// What made the slice as it is. Of an event, not of the state: [`Inputs`](super::Inputs) takes it out.
    pub trigger: Option<ChangeTrigger>,
}

/// The change of a pod or of a Service that made a slice change: annotation
/// `endpoints.kubernetes.io/last-change-trigger-time`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangeTrigger {
    /// When that was, by the clock of the control plane.
    pub at: Timestamp,
    /// Whether the slice is of IPv4.
    pub is_ipv4: bool,
}

/// One of a slice's `ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// Name; matches a Service port's name.
    pub name: Arc<str>,
    /// Protocol.
    pub protocol: Protocol,
    /// Port of the endpoint, 1 to 65535.
    pub port: u16,
}

/// One of a slice's `endpoints`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `addresses[0]`.
    pub address: IpAddr,
    /// `conditions.ready`, true where absent.
    pub ready: bool,
    /// `conditions.serving`, true where absent.
    pub serving: bool,
    /// `conditions.terminating`, false where absent.
    pub terminating: bool,
    /// `nodeName`.
    pub node_name: Option<Arc<str>>,
    /// `hints.forZones[].name`.
    pub zone_hints: Vec<Arc<str>>,
    /// `hints.forNodes[].name`.
    pub node_hints: Vec<Arc<str>>,
}

/// This node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    /// `status.addresses` of type `InternalIP`, the first of each family is the node's primary address.
    pub internal_ips: Vec<IpAddr>,
    /// Those of type `ExternalIP`, for a family without the former.
    pub external_ips: Vec<IpAddr>,
    /// `spec.podCIDRs`: networks of the pods of this node.
    pub pod_cidrs: Vec<IpNet>,
    /// `metadata.deletionTimestamp` is set.
    pub deleting: bool,
    /// Keys of `spec.taints`.
    pub taints: Vec<Arc<str>>,
}

/// A change of one object: its new state, or `None` when it is gone or no longer ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A Service.
    Service(ObjectKey, Option<Service>),
    /// An `EndpointSlice`.
    EndpointSlice(ObjectKey, Option<EndpointSlice>),
    /// This node.
    Node(Option<Node>),
    /// A `ServiceCIDR`: networks that cluster IPs are given out from.
    ServiceCidr(ObjectKey, Option<Vec<IpNet>>),
}

impl Change {
    /// The change that says that an object is gone.
    pub fn gone(kind: ObjectKind, key: ObjectKey) -> Self {
        match kind {
            ObjectKind::Service => Self::Service(key, None),
            ObjectKind::EndpointSlice => Self::EndpointSlice(key, None),
            ObjectKind::Node => Self::Node(None),
            ObjectKind::ServiceCidr => Self::ServiceCidr(key, None),
        }
    }

    /// Whether the object exists after the change.
    pub fn exists(&self) -> bool {
        match self {
            Self::Service(_, state) => state.is_some(),
            Self::EndpointSlice(_, state) => state.is_some(),
            Self::Node(state) => state.is_some(),
            Self::ServiceCidr(_, state) => state.is_some(),
        }
    }
}

/// Why an object, or a part of it, was not taken. The object's last good state stays in force.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} {object}{}: {field}: {problem}", kind.name(), origin.as_deref().map(|origin| format!(" in {origin}")).unwrap_or_default())]
pub struct Rejection {
    /// Kind of the object.
    pub kind: ObjectKind,
    /// The object.
    pub object: ObjectKey,
    /// Its `metadata.uid`.
    pub uid: Option<Arc<str>>,
    /// File and document it came from, if it came from a file.
    pub origin: Option<String>,
    /// Path of the field, for example `spec.ports[0].port`.
    pub field: String,
    /// What was found and what was expected.
    pub problem: String,
}

/// What a source says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceEvent {
    /// The objects of one kind, whole: what is not among them is gone. The first of each kind completes the source;
    /// later ones follow a lost watch.
    Replaced {
        /// The kind that is replaced.
        kind: ObjectKind,
        /// A `Some` change for each object that exists, all of `kind`.
        objects: Vec<Change>,
        /// Objects that exist and were rejected: their last good state stays, be it known, in the maps that a former
        /// agent left, or absent.
        rejected: Vec<ObjectKey>,
    },
    /// One object changed.
    Changed(Change),
    /// Whether there is something that the source could not read since it began, so that nobody knows which objects are
    /// in it. Told before the first list if so, and once more when it is over; what a source could read once and cannot
    /// now, it answers for itself.
    Unread(bool),
}
