//! What the end-to-end tests and the demonstration stand on: the [`lab`], in which network namespaces play hosts, and
//! the [`trial`] harness, which gives each test a lab of its own. What the packet tests and the benchmark stand on:
//! [`packets`]. And the comparison with the real kube-proxy: [`differential`].

#![expect(
    clippy::missing_panics_doc,
    reason = "everything here serves tests, which panic with what they saw: a lab that cannot be set up is a failed test"
)]

pub mod apiserver;
pub mod bench;
pub mod differential;
pub mod lab;
pub mod packets;
pub mod trial;
