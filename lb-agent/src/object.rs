//! The eBPF object, as `build.rs` built it.

/// The ELF file, aligned for the parser.
pub static EBPF_OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb-ebpf"));
