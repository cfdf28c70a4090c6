//! What needs a kernel: loading, pinning, attaching, and the maps themselves.

mod agent;
mod cli;
mod loading;
mod maps;
mod network;
mod sandbox;
mod xdp;
