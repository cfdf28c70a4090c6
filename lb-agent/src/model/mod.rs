//! From Kubernetes' objects to what every service port should be, without side effects.

pub mod objects;

pub use objects::{
    Change, Endpoint, EndpointSlice, Node, ObjectKey, ObjectKind, Protocol, Rejection, Service, ServicePort,
    ServiceType, SlicePort, SourceEvent, TrafficPolicy,
};
