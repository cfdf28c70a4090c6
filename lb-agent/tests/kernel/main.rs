//! What needs a kernel: loading, pinning, attaching, and the maps themselves.

mod agent;
mod loading;
mod maps;
mod network;
mod sandbox;
mod xdp;
