//! What the eBPF programs and the agent agree on: the layout of every map, and the arithmetic done on packets.
//!
//! Byte order, for the whole crate: **addresses are arrays of octets in wire order; every other integer, ports
//! included, is in host order.** The programs convert ports where they read and write packets, so that
//! `bpftool map dump` shows `[10, 96, 0, 1]` and `80` and not their mirror images.
//!
//! The crate is `no_std` and knows nothing of Kubernetes. It is compiled for the BPF target by `lb-ebpf` and for the
//! host by everything else, where its tests run.

#![cfg_attr(not(test), no_std)]

pub mod abi;
pub mod checksum;
pub mod hash;
pub mod lifetime;
pub mod maglev;
pub mod ports;
