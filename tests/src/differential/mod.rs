//! The differential harness: the same scenarios against the real kube-proxy and against `lb-agent`.
//!
//! ```text
//!                          ┌── relay ── node1 with kube-proxy, nftables ─┐   each with node2, pods, router
//! API server, [`api`] ─────┼── relay ── node1 with kube-proxy, iptables  ├── and an outside client of its own
//!                          └── relay ── node1 with lb-agent ─────────────┘   and with the same addresses: [`arm`]
//! ```
//!
//! A [`scenario`] is a file of Kubernetes YAML. After each of its steps every [kind of client](probe::ClientKind) asks at
//! every [frontend](target) of every Service, by connections of its own, until it is sure who answers ([`probe`]). What it
//! saw ([`observation`]) must be the same with kube-proxy in nftables mode and with `lb-agent`, or be explained by exactly
//! one entry of the table of announced differences ([`divergence`]). Where kube-proxy's two modes differ, nftables is
//! followed, and exactly one entry of a second table ([`modes`]) must explain what they differ in. With session affinity
//! each proxy makes a choice of its own, from what it reaches without ([`affinity`]), for as long as it should ([`lapse`]).
//!
//! A scenario may also [keep](kept) exchanges from one step to the next, whose [history] tells what may become of them,
//! and ask the proxies' own servers ([`http`]).

pub mod affinity;
pub mod api;
pub mod arm;
pub mod cell;
mod detect_rules;
pub mod divergence;
pub mod generate;
pub mod history;
pub mod http;
pub mod kept;
mod kept_rules;
pub mod kube_proxy;
pub mod lapse;
mod localhost;
pub mod modes;
mod node_source;
pub mod observation;
pub mod patience;
mod plan;
pub mod probe;
pub mod relay;
pub mod report;
pub mod scenario;
pub mod session;
pub mod target;
pub mod worker;
