//! Packet tests: every TC and XDP program of the real object, run on real packets by `BPF_PROG_TEST_RUN`.
//!
//! A [`Row`] says in a sentence what must happen, fills the tables from Kubernetes objects by the agent's own code,
//! and names packets: which hook they meet, and the verdict, the whole packet, the counters and the flow entries that
//! must come of it. Input and expected packet are built by etherparse ([`Packet`]), checksums included, so that the
//! programs' arithmetic is checked by an implementation that they do not share.
//!
//! Rows with packets that reach the node by an uplink are played twice: at TC, and with XDP in front of it.
//!
//! Routes and neighbours for `bpf_fib_lookup` are those of the [`world`], a network namespace of its own. The kernel
//! does not carry out a redirect in a test run; where it would go is seen in the MAC addresses.

pub mod dataplane;
pub mod diff;
pub mod events;
pub mod least_conn;
pub mod packet;
pub mod properties;
pub mod row;
pub mod rows;
pub mod tables;
pub mod world;
pub mod xdp;

pub use dataplane::{Dataplane, Verdict};
pub use packet::Packet;
pub use row::{FlowEntry, Row};
pub use tables::{Place, Tables, TestService};
pub use world::{Interface, Net, World};
