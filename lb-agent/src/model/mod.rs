//! From Kubernetes' objects to what every service port should be, without side effects.

mod claims;
mod desired;
mod family;
mod health_check;
mod inputs;
mod intern;
mod network;
mod no_local;
mod node;
mod policy;
mod remembered;
mod topology;

pub mod objects;

#[cfg(test)]
mod desired_tests;
#[cfg(test)]
pub(crate) mod testing;

pub use claims::Conflict;
pub use desired::{DesiredBackend, DesiredPort, DesiredState, ServicePortName};
pub use family::{Cidr, Family, TableNames};
pub use health_check::HealthCheck;
pub(crate) use health_check::HealthChecks;
pub use inputs::Inputs;
pub use network::NodeNetwork;
pub use no_local::NoLocal;
pub(crate) use no_local::NoLocals;
pub use node::DesiredNode;
pub(crate) use node::detect_pods;
pub use objects::{
    BALANCE_ANNOTATION, Change, ChangeTrigger, Endpoint, EndpointSlice, Node, ObjectKey, ObjectKind, Protocol,
    Rejection, Service, ServicePort, ServiceType, SlicePort, SourceEvent, TrafficPolicy,
};
pub use policy::{Balance, DetectLocal, NodePortAddresses, Policy, UnknownBalance};
